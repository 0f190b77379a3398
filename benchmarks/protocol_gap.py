"""What a choice of settings costs that may not look at the test data: each protocol beside the best in hindsight.

python benchmarks/protocol_gap.py                                  six methods, two data sets, eight settings each
python benchmarks/protocol_gap.py --methods er,ewc --settings 3 --seeds 1 --json gap.json     a part of it
python benchmarks/protocol_gap.py --page docs/protocol_gap.md      the page of the committed results

For each method and data set, settings are drawn from the ranges on the method's signature and of the learning rate.
Each is trained once and measured on validation data after k experiences (`first-k`) and after all (`validation`), and
with fresh seeds and class orders on test data. `transfer` takes the setting that was best on the other data set. The
gap of a protocol is the test accuracy of the best setting in hindsight less that of the setting it chooses.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from holdfast.config.check import validated
from holdfast.discovery.plan import Plan
from holdfast.discovery.protocols import FRESH, Protocol
from holdfast.discovery.trial import finish, measures, reach
from holdfast.metrics.log import Log, read_json, write_json
from holdfast.metrics.statistics import spread
from holdfast.metrics.summary import compute

METHODS = ("finetune", "er", "der_plus_plus", "ewc_online", "lwf", "icarl")
DATA = ("digits", "usps")
RESULTS = Path(__file__).parent / "results" / "protocol_gap.json"
PROTOCOLS = ("validation", "first-k", "transfer")


class Drawn:
    """A trial whose values come from a generator of its own."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """One of them."""
        return self.random.choice(list(choices))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """A whole number."""
        return min(high, max(low, round(self.suggest_float(name, low, high, log=log))))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number, by factors where `log`."""
        return low * (high / low) ** self.random.random() if log else self.random.uniform(low, high)


def planned(method: str, data: str, words: list[str]) -> Plan:
    """The sweep of a method on a data set."""
    return Plan.of(None, [f"stream.dataset={data}", f"method={method}", "protocol=validation", *words], sweep=True)


def measured(plan: Plan, params: dict[str, Any], k: int, seeds: int, folder: Path) -> dict[str, float | None]:
    """The accuracy of one setting after k and after all experiences on validation data, and on test data."""
    reach(folder / "trial", plan.trial_job(params), plan.experiences)
    log = Log.read(folder / "trial")
    tests = []
    for seed in range(FRESH, FRESH + seeds):
        finish(folder / str(seed), validated(Protocol().final(plan.space.job(params), seed)).config)
        tests.append(compute(Log.read(folder / str(seed)))["average_accuracy"])
    mean = spread(tests)
    return {
        "first-k": measures(log, k).get("average_accuracy"),
        "validation": measures(log, plan.experiences).get("average_accuracy") if not log.diverged else None,
        "test": None if mean is None or log.diverged else mean.mean,
    }


def best(rows: list[dict[str, float | None]], key: str) -> int:
    """The setting that a measure chooses; one that diverged has none."""
    return max(range(len(rows)), key=lambda index: -1.0 if (value := rows[index][key]) is None else value)


def row_of(method: str, data: str, found: dict[str, list[dict[str, float | None]]]) -> dict[str, Any]:
    """What each protocol chooses for a method on a data set, on test data, beside the best setting in hindsight."""
    other = next((one for one in found if one != data), data)
    rows = found[data]
    hindsight = rows[best(rows, "test")]["test"] or 0.0
    chosen = {name: best(rows, name) for name in ("validation", "first-k")}
    chosen["transfer"] = best(found[other], "validation")
    reached = {name: rows[index]["test"] or 0.0 for name, index in chosen.items()}
    tests = [one["test"] or 0.0 for one in rows]
    return {"method": method, "data": data, "hindsight": hindsight, "default": tests[0], "worst": min(tests),
            **reached, "settings": rows}  # fmt: skip


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The table, with the mean gap of each protocol in its last row."""
    lines = [
        "| method | data | best in hindsight, % | default, % | worst, % | gap of `validation`, points | of `first-k` "
        "| of `transfer` |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    gaps = {name: [100 * (row["hindsight"] - row[name]) for row in rows] for name in PROTOCOLS}
    for number, row in enumerate(rows):
        cells = " | ".join(f"{gaps[name][number]:.1f}" for name in PROTOCOLS)
        lines.append(f"| {row['method']} | {row['data']} | {100 * row['hindsight']:.1f} | {100 * row['default']:.1f} "
                     f"| {100 * row['worst']:.1f} | {cells} |")  # fmt: skip
    means = " | ".join(f"{sum(gaps[name]) / len(rows):.1f}" for name in PROTOCOLS)
    return [*lines, f"| mean | | | | | {means} |"]


def page(kept: dict[str, Any]) -> str:
    """The page of the committed results."""
    rows, about = kept["rows"], kept["about"]
    gaps = {name: sum(100 * (row["hindsight"] - row[name]) for row in rows) / len(rows) for name in PROTOCOLS}
    defaults = sum(100 * (row["hindsight"] - row["default"]) for row in rows) / len(rows)
    least = min(gaps, key=lambda name: gaps[name])
    text = f"""
        Settings of a method that were chosen on test data look better than anybody could have known. For each method
        and data set, {about["settings"]} settings (the defaults, and others drawn from the ranges on the method's
        signature and of the learning rate) are trained once with validation data, and with {about["seeds"]} fresh
        seeds and orders of classes on test data. A protocol chooses one of them: `validation` by validation data of
        all experiences, `first-k` by those of the first {about["k"]}, `transfer` by those of the other data set. Its
        gap is the mean test accuracy of the best setting in hindsight less that of the one it chooses. The best in
        hindsight is chosen and measured on the same runs, so that the gaps are, if anything, too large. A setting
        that diverges with validation data counts as 0 %; a run on test data that diverges, with what it had reached."""
    command = (
        f"python benchmarks/protocol_gap.py --methods {about['methods']} --data {about['data']} --settings "
        f'{about["settings"]} --seeds {about["seeds"]} --k {about["k"]} --words "{about["words"]}" --json FILE'
    )
    end = f"""
        On average `{least}` loses least here. The defaults, chosen without any data, lose {defaults:.1f} points. With
        {about["seeds"]} seeds, a difference of a point or two between protocols is chance."""
    where = "The numbers are in `benchmarks/results/protocol_gap.json`; `--page docs/protocol_gap.md` writes this page."
    absent = [name for name in about["methods"].split(",") if all(row["method"] != name for row in rows)]
    if absent:
        end += f" Not measured yet: {', '.join(absent)}."
    parts = ["# What it costs not to look at the test data", filled(text), f"```console\n{command}\n```", where,
             "\n".join(table(rows)), filled(end)]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def filled(text: str) -> str:
    """A paragraph in lines of the page's width."""
    return textwrap.fill(" ".join(text.split()), 118)


def main() -> None:
    """Measure, and print the table; or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--data", default=",".join(DATA), help="two data sets")
    parser.add_argument("--settings", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--k", type=int, default=2)
    parser.add_argument("--words", default="trainer.epochs=5 stream.experiences=5", help="changes of the job")
    parser.add_argument("--json", type=Path, help="file for every number; what it holds already is not measured again")
    parser.add_argument("--page", type=Path, help="write the page of the committed results, and measure nothing")
    arguments = parser.parse_args()
    if arguments.page is not None:
        arguments.page.write_text(page(json.loads(RESULTS.read_text())))
        return
    names = arguments.data.split(",")
    about = {key: getattr(arguments, key) for key in ("methods", "data", "settings", "seeds", "k", "words")}
    kept = {} if arguments.json is None else read_json(arguments.json)
    rows: list[dict[str, Any]] = kept["rows"] if kept.get("about") == about else []
    for method in arguments.methods.split(","):
        if any(row["method"] == method for row in rows):
            continue
        found: dict[str, list[dict[str, float | None]]] = {}
        for data in names:
            plan = planned(method, data, arguments.words.split())
            settings = [plan.space.usual(), *(plan.space.suggest(Drawn(n)) for n in range(arguments.settings - 1))]
            found[data] = []
            for params in settings:
                with tempfile.TemporaryDirectory() as place:
                    found[data].append(measured(plan, params, arguments.k, arguments.seeds, Path(place)))
        rows += [row_of(method, data, found) for data in names]
        if arguments.json is not None:
            write_json(arguments.json, {"about": about, "rows": rows})
        print(f"{method} measured", flush=True)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
