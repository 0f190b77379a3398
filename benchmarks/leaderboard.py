"""Seconds from nothing to table A (Split MNIST online, all rows, ten seeds each), one line a machine.

    python benchmarks/leaderboard.py                    all rows, ten seeds at once
    python benchmarks/leaderboard.py --quick            two rows, two seeds, forty batches an experience: does it work?
    python benchmarks/leaderboard.py --write README.md  puts this machine's line into the table of a page
    python benchmarks/leaderboard.py --row split_mnist_online/er/500 --seeds 4 --write README.md   a line on that part

A row is its committed configuration (`benchmarks/configs/split_mnist_online`), run with its seeds stacked
(`trainer.stack=auto`), in a process that has loaded nothing before: imports, data, compiling, training, evaluations,
logs, checkpoints and reports count. CPU seconds are those of all its threads and of compilers that it started: they
hold on a busy machine too. A line stands only for a machine on which every row that was known to be equal to its
published value (`benchmarks/expected.json`) is so here too. The data is looked for where HOLDFAST_DATA says.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TABLE = "split_mnist_online"
BEGIN, END = "<!-- leaderboard -->", "<!-- end of leaderboard -->"


def rows() -> list[str]:
    """The rows of the table."""
    return sorted(
        f"{TABLE}/{path.relative_to(HERE / 'configs' / TABLE).with_suffix('')}"
        for path in (HERE / "configs" / TABLE).rglob("*.json")
    )


def machine() -> str:
    """What the line says of the machine."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    return f"{cores} CPU cores, {threads} thread{'s' * (threads > 1)}"


def cpu_seconds() -> float:
    """Of this process and of those that it started and waited for."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def train(row: str, seeds: int, changes: list[str]) -> dict[str, list[float]]:
    """Train one row with its seeds at once; returns its measures in percent, a list over seeds each."""
    from holdfast.config.compose import load
    from holdfast.runs.run import run

    device = "auto"
    with tempfile.TemporaryDirectory() as folder:
        words = [f"seeds={seeds}", "trainer.stack=auto", f"device={device}", *changes]
        out = run(load(HERE / "configs" / f"{row}.json", words), Path(folder) / "run", quiet=True)
        told = [json.loads((place / "metrics.json").read_text()) for place in sorted(out.glob("seed-*"))]
    measures: dict[str, list[float]] = {}
    for metrics in told:
        for name, value in metrics.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                measures.setdefault(name, []).append(100 * value)
    return measures


def outcome(row: str, measures: dict[str, list[float]]) -> tuple[str, bool]:
    """A line on a row, and whether it is as equal to what was published as it is known to be."""
    from accuracy import expected, mean_and_error, wanted

    entry, texts, equal = expected()[row], [], True
    for name, published in wanted(entry).items():
        if name not in measures:
            continue
        mean, error = mean_and_error(measures[name])
        allowed = max(1.5, 2 * error, 2 * entry.get("published_error", {}).get(name, 0.0))
        near = abs(mean - published) <= allowed if "published" in entry else mean >= published
        equal = equal and (near or "open" in entry)
        texts.append(f"{name} {mean:.2f} +- {error:.2f} (published {published:.2f})")
    return "; ".join(texts), equal


def write(page: Path, line: str) -> None:
    """Put a line into the table of a page, in the place of an older one on the same; the table is made once."""
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text:
        head = "| machine | what | seconds | CPU seconds | version |\n| --- | --- | --- | --- | --- |"
        section = f"## From nothing to table A\n\n{BEGIN}\n{head}\n{END}\n"
        before, licence, after = text.partition("## Licence")
        text = f"{before.rstrip()}\n\n{section}" + (f"\n{licence}{after}" if licence else "")
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    kept = [one for one in table.strip().splitlines() if one.split("|")[1:3] != line.split("|")[1:3]]
    page.write_text("\n".join([f"{before}{BEGIN}", *kept, line, f"{END}{after}"]), encoding="utf-8")


def main() -> int:
    """Print a line for each row, and one for the machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small part, which makes no line of the table")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--row", nargs="*", help="some rows only, whose line says how many they are")
    parser.add_argument("--busy", action="store_true", help="say in the line that other programs ran on the machine")
    parser.add_argument("--write", type=Path, help="a page with the table, for instance README.md")
    parser.add_argument("--change", nargs="*", default=[], help="changes of every row, as on the command line")
    arguments = parser.parse_args()
    if arguments.write is not None and not arguments.write.is_file():
        parser.error(f"there is no page {arguments.write} to write the line into.")
    chosen, seeds, changes = arguments.row or rows(), arguments.seeds, list(arguments.change)
    if arguments.quick:
        chosen, seeds = [f"{TABLE}/finetune", f"{TABLE}/er/500"], 2
        changes += ["trainer.limit_train_batches=40", "trainer.limit_test_batches=1"]
    unknown = sorted(set(chosen) - set(rows()))
    if unknown:
        parser.error(f"there is no row {', '.join(unknown)}. Choose from: {', '.join(rows())}")
    begun = time.perf_counter() - _age()
    good = True
    for row in chosen:
        start = time.perf_counter()
        told, equal = outcome(row, train(row, seeds, changes))
        good = good and equal
        print(
            f"{row:42s} {time.perf_counter() - start:7.1f} s  {'' if equal or arguments.quick else 'NOT EQUAL '}{told}",
            flush=True,
        )
    seconds = time.perf_counter() - begun
    names = "" if len(chosen) == len(rows()) else f" ({', '.join(row.removeprefix(TABLE + '/') for row in chosen)})"
    what = f"{len(chosen)} of {len(rows())} rows{names} x {seeds} seeds"
    took = f"{seconds:.0f} s{' (busy)' if arguments.busy else ''} | {cpu_seconds():.0f} s"
    line = f"| {machine()} | {what} | {took} | torch {_torch()} |"
    print(line)
    plain = not arguments.quick and not arguments.change
    if arguments.write is not None:
        if not (plain and good):
            print("no line is written: it stands for rows as they are, equal to what was published.", file=sys.stderr)
            return 1
        write(arguments.write, line)
    return 0 if good or not plain else 1


def _age() -> float:
    """Seconds that this process has been there already: imports count."""
    told = subprocess.run(["ps", "-o", "etimes=", "-p", str(os.getpid())], capture_output=True, text=True, check=False)
    return float(told.stdout.strip() or 0)


def _torch() -> Any:
    import torch

    return torch.__version__


if __name__ == "__main__":
    sys.exit(main())
