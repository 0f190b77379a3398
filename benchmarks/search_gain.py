"""Whether a search is worth its time: what it finds beside single methods tuned for as long, and random draws.

python benchmarks/search_gain.py --out gain --budget 20m
python benchmarks/search_gain.py --out gain --budget 20m --words "stream.dataset=npz stream.dataset.path=DIR/data.npz"

Everything has the same stream, memory, budget, protocol and fresh seeds: `holdfast search`, the same search with random
proposals, and `holdfast sweep` of each of four methods. What is compared is test accuracy, seed by seed. Folders that
are there are gone on with, so that a run that was stopped can be started again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from holdfast.discovery import Outcome, search, sweep
from holdfast.metrics.log import Log, read_json
from holdfast.metrics.statistics import paired, side_by_side, spread
from holdfast.metrics.summary import compute

TUNED = ("er", "der_plus_plus", "ewc_online", "finetune")


def reached(outcome: Outcome) -> dict[int, float]:
    """Test accuracy by seed of the composition that was chosen."""
    said = read_json(outcome.folder / "search.json")
    chosen = (said.get("finalists") or [""])[0]
    found = {}
    for place in sorted((outcome.folder / "final").glob(f"{chosen}-*")):
        value = compute(Log.read(place))["average_accuracy"]
        if value is not None:
            found[int(place.name.rsplit("-", 1)[1])] = value
    return found


def main() -> None:
    """Search, tune, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", default="20m")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--words", default="trainer.epochs=5", help="changes of the job, settings of the search")
    arguments = parser.parse_args()
    words = arguments.words.split()
    common = {"budget": arguments.budget, "jobs": arguments.jobs, "final_seeds": arguments.seeds, "quiet": False}
    found = {"search": reached(search(None, *words, out=arguments.out / "search", warm_start=False, **common))}
    drawn = search(None, *words, out=arguments.out / "random", sampler="random", warm_start=False, **common)
    found["random search"] = reached(drawn)
    for method in TUNED:
        found[method] = reached(sweep(None, f"method={method}", *words, out=arguments.out / method, **common))
    for name, values in found.items():
        one = spread(values.values())
        half = "" if one is None or one.half is None else f" ± {100 * one.half:.1f}"
        print(f"{name:16} {'nothing measured' if one is None else f'{100 * one.mean:.1f}{half} %'}")
    names = [name for name in found if name != "search"]
    results = [(name, paired(found["search"], found[name])) for name in names]
    known = [(name, result) for name, result in results if result is not None]
    for (name, _), result in zip(known, side_by_side([result for _, result in known])):
        half = "" if result.half is None else f" ± {100 * result.half:.1f}"
        chance = "" if result.corrected is None else f" (p = {result.corrected:.2g}, corrected by Holm)"
        print(f"search less {name}: {100 * result.difference:+.1f}{half} points{chance}")
    (arguments.out / "gain.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
