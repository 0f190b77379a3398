"""What a choice of settings costs that may not look at the test data: each protocol beside the best in hindsight.

python benchmarks/protocol_gap.py                                  six methods, two data sets, eight settings each
python benchmarks/protocol_gap.py --methods er,ewc --settings 3 --seeds 1 --json gap.json

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
from pathlib import Path
from typing import Any

from holdfast.config.check import validated
from holdfast.discovery.plan import Plan
from holdfast.discovery.protocols import FRESH, Protocol
from holdfast.discovery.trial import finish, measures, reach
from holdfast.metrics.log import Log
from holdfast.metrics.statistics import spread
from holdfast.metrics.summary import compute

METHODS = ("finetune", "er", "der_plus_plus", "ewc_online", "lwf", "icarl")
DATA = ("digits", "synthetic")
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


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--data", default=",".join(DATA), help="two data sets")
    parser.add_argument("--settings", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--k", type=int, default=2)
    parser.add_argument("--words", default="trainer.epochs=5 stream.experiences=5", help="changes of the job")
    parser.add_argument("--json", type=Path, help="file for every number")
    arguments = parser.parse_args()
    names = arguments.data.split(",")
    table: list[dict[str, Any]] = []
    for method in arguments.methods.split(","):
        found: dict[str, list[dict[str, float | None]]] = {}
        for data in names:
            plan = planned(method, data, arguments.words.split())
            settings = [plan.space.usual(), *(plan.space.suggest(Drawn(n)) for n in range(arguments.settings - 1))]
            found[data] = []
            for params in settings:
                with tempfile.TemporaryDirectory() as place:
                    found[data].append(measured(plan, params, arguments.k, arguments.seeds, Path(place)))
        for data in names:
            other = next((one for one in names if one != data), data)
            rows = found[data]
            hindsight = rows[best(rows, "test")]["test"] or 0.0
            chosen = {name: best(rows, name) for name in ("validation", "first-k")}
            chosen["transfer"] = best(found[other], "validation")
            reached = {name: rows[index]["test"] or 0.0 for name, index in chosen.items()}
            table.append({"method": method, "data": data, "hindsight": hindsight, **reached, "settings": rows})
            gaps = "  ".join(f"{name} {100 * (hindsight - reached[name]):5.1f}" for name in PROTOCOLS)
            print(
                f"{method:16} {data:12} best in hindsight {100 * hindsight:5.1f} %, gap in points: {gaps}", flush=True
            )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
