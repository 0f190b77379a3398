"""Published accuracies, measured: each row is a committed configuration, run over several seeds.

    python benchmarks/accuracy.py --list
    python benchmarks/accuracy.py --row split_mnist_online/er/500 [--seeds 5] [--jobs 2]
    python benchmarks/accuracy.py --table split_mnist_online
    python benchmarks/accuracy.py --check
    python benchmarks/accuracy.py --page docs/results.md

A row passes where its mean over seeds is equal to the published value and known well enough to say so, for every
measure that was published.

Accuracies are in percent; `loss_0`, `loss_1`, ... are the mean losses on each experience's test data in the end, times
1,000, of which less is better.

Equal: within max(1.5 points, 2 standard errors) of it (the error is that of the difference where the paper gives its
spread: `published_error`), and above its fine-tuning control by more than that, unless it is a control itself or the
paper's own value is hardly above its control (`beats_control`: false). Where nothing was published a row has a lower
bound of our own instead (`at_least`), and must be above its control all the same.

Known: two standard errors of ours are at most 1.5 points, or at most the paper's own two where these are more, or at
most the row's `tolerance`, or for a lower bound at most what the mean is above it. A row that is equal with a wider
error is not known yet, which is no yes: `--check` lists these rows, each with the command that adds about as many seeds
as it needs.

A row that is known not to pass is `open`, with the reason: it is shown as failing, and `--check` fails for all others,
and for an open row that passes; with `--strict` also for those not known yet. Results are kept in `results/`, one file
a row, with a digest of the configuration; `--add` keeps the seeds that are there. One seed alone:
`holdfast run benchmarks/configs/<row>.json seed=3`.
The data is looked for where HOLDFAST_DATA says.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
CONTROLS = ("finetune", "joint")


def run_one(job: tuple[str, int]) -> dict[str, float]:
    """Train one row with one seed; returns its measures in percent."""
    import torch

    from holdfast.config.compose import load
    from holdfast.runs.opened import open as read
    from holdfast.runs.run import run

    torch.set_num_threads(1)
    row, seed = job
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = run(load(HERE / "configs" / f"{row}.json", [f"seed={seed}"]), Path(folder) / "run", quiet=True)
        metrics = {
            name: 100 * value
            for name, value in json.loads((out / "metrics.json").read_text()).items()
            if _number(value)
        }
        losses = read(out).table("loss_matrix")[-1]
    metrics |= {f"loss_{number}": 1000 * float(loss) for number, loss in enumerate(losses)}
    entry = expected()[row]
    found = {name: metrics[name] for name in [*wanted(entry), *entry.get("also", [])]}
    return {**found, "seconds": time.perf_counter() - start}


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def expected() -> dict[str, Any]:
    """Published values by row."""
    return json.loads((HERE / "expected.json").read_text())


def wanted(entry: dict[str, Any]) -> dict[str, float]:
    """The measures of an entry, each with its published value or its lower bound."""
    return entry.get("published") or entry["at_least"]


def result_file(row: str) -> Path:
    """Where a row's result is kept."""
    return HERE / "results" / f"{row}.json"


def digest(row: str) -> str:
    """Of what the row's configuration says."""
    content = json.loads((HERE / "configs" / f"{row}.json").read_text())
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and standard error."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def measure(rows: list[str], seeds: int, jobs: int, add: bool = False) -> None:
    """Run `rows` and keep their results; with `add`, only the seeds that have none yet."""
    import torch

    import holdfast

    found: dict[str, list[dict[str, float]]] = {row: [] for row in rows}
    for row in rows:
        if add and result_file(row).is_file():
            kept = json.loads(result_file(row).read_text())
            if kept["config"] != digest(row):
                sys.exit(f"{row} was measured with another configuration. Leave --add out to measure all of it again.")
            found[row] = kept["runs"][:seeds]
    work = [(row, seed) for row in rows for seed in range(len(found[row]), seeds)]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for (row, _), one in zip(work, pool.imap(run_one, work)):
            found[row].append(one)
            if len(found[row]) == seeds:
                path = result_file(row)
                path.parent.mkdir(parents=True, exist_ok=True)
                result = {
                    "row": row,
                    "command": f"python benchmarks/accuracy.py --row {row} --seeds {seeds}",
                    "config": digest(row),
                    "seeds": list(range(seeds)),
                    "versions": {"holdfast": holdfast.__version__, "torch": torch.__version__},
                    "runs": [{key: round(value, 4) for key, value in run.items()} for run in found[row]],
                }
                path.write_text(json.dumps(result, indent=1) + "\n")
                print(describe(row), flush=True)


class Judged(NamedTuple):
    """One measure of a row beside what was published."""

    name: str
    mean: float
    error: float
    value: float
    equal: bool
    needed: int

    @property
    def known(self) -> bool:
        """Whether there are enough seeds to say so."""
        return not self.needed


MOST_SEEDS = 200
"""So many are never asked for at once."""


def judge(row: str) -> list[Judged]:
    """Each measure of a row: mean, standard error, published value or lower bound, and whether the two agree.

    `needed` is about how many seeds make the error small enough; 0 where there are as many.
    """
    result = json.loads(result_file(row).read_text())
    entry = expected()[row]
    judged = []
    for name, value in wanted(entry).items():
        mean, error = mean_and_error([run[name] for run in result["runs"]])
        theirs = entry.get("published_error", {}).get(name, 0.0)
        least = entry.get("tolerance", {}).get(name, 1.5)  # wider where one run was published, of what varies much
        tolerance = max(least, 0.0 if math.isnan(error) else 2 * math.hypot(error, theirs))
        good = abs(mean - value) <= tolerance if "published" in entry else mean >= value
        control = result_file(entry["control"])
        headline = name == next(iter(wanted(entry)))
        if headline and row.split("/")[1] not in CONTROLS and entry.get("beats_control", True) and control.is_file():
            runs = json.loads(control.read_text())["runs"]
            better = mean - mean_and_error([run[name] for run in runs])[0]
            good = good and (-better if name.startswith("loss") else better) > tolerance
        above = 0.0 if "published" in entry else mean - value  # a bound that is met by two errors is met
        seeds = seeds_needed(len(result["runs"]), error, max(least, 2 * theirs, above))
        judged.append(Judged(name, mean, error, value, good, seeds))
    return judged


def seeds_needed(seeds: int, error: float, allowed: float) -> int:
    """About how many seeds make two standard errors at most `allowed`; 0 where these do.

    >>> seeds_needed(5, 0.7, 1.5), seeds_needed(5, 1.5, 1.5), seeds_needed(1, math.nan, 1.5)
    (0, 20, 3)
    """
    if math.isnan(error):
        return 3
    if 2 * error <= allowed:
        return 0
    return min(MOST_SEEDS, math.ceil(seeds * (2 * error / allowed) ** 2))


def unknown_rows(rows: list[str]) -> dict[str, int]:
    """The rows that agree, or do not, with too wide an error to say so, and about how many seeds they need."""
    needed = {row: max(one.needed for one in judge(row)) for row in rows}
    return {row: seeds for row, seeds in needed.items() if seeds}


def more_seeds(row: str, seeds: int) -> str:
    """The command that adds them."""
    return f"python benchmarks/accuracy.py --row {row} --seeds {seeds} --add"


def as_expected(row: str) -> bool:
    """Whether a row agrees with what was published, or an open one still does not."""
    return all(one.equal for one in judge(row)) != ("open" in expected()[row])


def control_mean(row: str, measure: str) -> str:
    """What the row's fine-tuning control reaches in this measure, as text; empty where that was not measured."""
    control = result_file(expected()[row]["control"])
    if not control.is_file():
        return ""
    values = [run[measure] for run in json.loads(control.read_text())["runs"] if measure in run]
    return f"{mean_and_error(values)[0]:.2f}" if values else ""


def describe(row: str) -> str:
    """One line: measured beside published."""
    word = "published" if "published" in expected()[row] else "at least"
    failed = "  FAILS, and is open" if "open" in expected()[row] else "  FAILS"
    parts = []
    for one in judge(row):
        verdict = failed if not one.equal else "" if one.known else f"  NOT KNOWN YET, about {one.needed} seeds"
        parts.append(f"{one.name} {one.mean:6.2f} +- {one.error:.2f} ({word} {one.value:.2f}){verdict}")
    return f"{row:40s} " + "   ".join(parts)


TITLES = {
    "split_mnist_online": "Split MNIST, online",
    "permuted_mnist_online": "Permuted MNIST, online",
    "split_mnist_three": "Split MNIST, three scenarios",
    "split_mnist_hsu": "Split MNIST, Hsu et al. 2018",
    "hypernetworks_split_mnist": "Hypernetworks on Split MNIST, task inferred by lowest entropy",
    "hypernetworks_permuted_mnist": "Hypernetworks on Permuted MNIST, task inferred by lowest entropy",
    "hypernetworks_polynomials": "Hypernetworks on three polynomials (1-D regression)",
    "split_mnist_architecture": "Split MNIST, task-incremental: a part of the network for each task",
}
NOTES: dict[str, str] = {
    "permuted_mnist_online": "Each seed draws its own permutations; the model is evaluated at the end only.",
}
"""What must be known of a table besides."""

MEASURES = {
    "average_accuracy": "accuracy",
    "task_aware_average_accuracy": "task-aware",
    **{f"loss_{number}": f"1,000 x loss, experience {number + 1}" for number in range(3)},
}


INTRODUCTION = """# Results

Every figure is the mean over seeds with its standard error, beside the published value. A row is one file in
`benchmarks/configs/`; `python benchmarks/accuracy.py --row ROW` measures it again. It passes where the mean is within
max(1.5 points, 2 standard errors) of the published value, and above its fine-tuning control by more, *and* is known
well enough to say so: two standard errors of ours are at most 1.5 points, or at most the paper's own two where it gives
them and they are more (a lower bound of our own has to be met by two standard errors). A row that agrees with a wider
error is "not known yet"; those rows are listed at the end with the command that adds seeds. The standard error of a
comparison is that of the difference where the paper gives its own spread, else ours alone. Where values vary much from
seed to seed, `python benchmarks/by_hand.py` gives what a plain loop without our training code does on the same
protocol.
This page is generated by `python benchmarks/accuracy.py --page docs/results.md`."""


TOO_FEW = """Two standard errors of these rows are above what they are allowed, so that they neither pass nor fail. The
commands keep the seeds that are there and add about as many as are needed, by the spread so far."""


def page() -> str:
    """The page of results for the documentation: every row that was measured, by table."""
    known = expected()
    lines = [INTRODUCTION]
    for table in dict.fromkeys(row.split("/")[0] for row in known):
        rows = [row for row in known if row.startswith(f"{table}/")]
        sources = dict.fromkeys(known[row]["source"] for row in rows)
        lines += ["", f"## {TITLES.get(table, table)}", "", f"Published: {'; '.join(sources)}.", ""]
        lines += [NOTES[table], ""] if table in NOTES else []
        lines += ["| row | measure | measured | published | fine-tuning | seeds | passes |", "| --- " * 7 + "|"]
        for row in rows:
            short = row.split("/", 1)[1]
            if not result_file(row).is_file():
                values = ", ".join(f"{value:.2f}" for value in wanted(known[row]).values())
                lines.append(f"| {short} | | not measured yet | {values} | | | |")
                continue
            bound = "" if "published" in known[row] else "at least "
            mark = " (figure)" if "figure" in known[row]["source"] else ""
            seeds = len(json.loads(result_file(row).read_text())["seeds"])
            for one in judge(row):
                verdict = "yes" if one.known else "not known yet"
                if not one.equal:
                    verdict = "**no**" + (f": {known[row]['open']}" if "open" in known[row] else "")
                lines.append(
                    f"| {short} | {MEASURES.get(one.name, one.name)} | {one.mean:.2f} ± {one.error:.2f} |"
                    f" {bound}{one.value:.2f}{mark} | {control_mean(row, one.name)} | {seeds} | {verdict} |"
                )
    needed = unknown_rows([row for row in known if result_file(row).is_file()])
    if needed:
        lines += ["", "## Not known yet", "", TOO_FEW, "", "```console"]
        lines += [more_seeds(row, seeds) for row, seeds in needed.items()]
        lines += ["```"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print every row's name")
    parser.add_argument("--row", action="append", default=[], help="run this row (may be repeated)")
    parser.add_argument("--table", action="append", default=[], help="run every row whose name begins so")
    parser.add_argument("--check", action="store_true", help="hold the committed results against the published values")
    parser.add_argument("--strict", action="store_true", help="with --check, fail for rows that are not known yet too")
    parser.add_argument("--page", help="write the documentation's page of results to this file")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--add", action="store_true", help="keep the seeds that were measured; run the others")
    arguments = parser.parse_args()
    known = expected()
    if arguments.list:
        print("\n".join(known))
        return 0
    rows = [row for row in known if row in arguments.row or any(row.startswith(table) for table in arguments.table)]
    missing = [row for row in arguments.row if row not in known]
    if missing:
        parser.error(f"unknown row {missing[0]!r}; --list prints them all")
    if rows:
        measure(rows, arguments.seeds, arguments.jobs, arguments.add)
    if arguments.check:
        rows = [row for row in known if result_file(row).is_file()]
        for row in rows:
            print(describe(row))
        for row in sorted(set(known) - set(rows)):
            print(f"{row:40s} no result yet")
        needed = unknown_rows(rows)
        if needed:
            print(f"\n{len(needed)} rows are not known yet: their errors are too wide, or too small to be true:")
            print("\n".join(more_seeds(row, seeds) for row, seeds in needed.items()))
    if arguments.page:
        Path(arguments.page).write_text(page())
        return 0
    if not rows:
        parser.error("nothing to do: give --list, --row, --table, --check or --page")
    return 0 if all(map(as_expected, rows)) and not (arguments.strict and unknown_rows(rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
