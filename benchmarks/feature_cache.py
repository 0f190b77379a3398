"""What the feature cache saves: CPU seconds of runs on a frozen ResNet-18 without it, with it empty, and filled.

    python benchmarks/feature_cache.py --data DIR [--size 32] [--methods ranpac simple_cil slda fecam]

`DIR` holds the CIFAR-100 subset (100 training and 20 test images of each class). The weights are random, saved to a
file first: seconds do not depend on them. Writes benchmarks/results/feature_cache.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

METHODS: dict[str, Any] = {
    "ranpac": "ranpac",
    "simple_cil": "simple_cil",
    "slda": {"name": "slda", "space": "features"},
    "fecam": {"name": "fecam", "adapt": 0},
}


def run_once(job: dict[str, Any], folder: Path) -> tuple[float, float]:
    """CPU seconds of one run from configuration to the accuracy matrix, and the final mean accuracy."""
    from holdfast.config import build
    from holdfast.runs.assemble import make_trainer

    start = time.process_time()
    config = build.resolve(job)
    stream = build.build_stream(config["stream"], 0)
    model = build.build_model(config["model"], stream, 0)
    stream = build.with_features(stream, model)
    events = make_trainer(config).fit(model, stream)
    seconds = time.process_time() - start
    last = [event for event in events if event["event"] == "evaluate" and event["after"] == len(stream) - 1]
    return seconds, sum(event["correct"] for event in last) / sum(event["samples"] for event in last)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the CIFAR-100 subset")
    parser.add_argument("--size", type=int, default=32, help="height and width that images are resized to")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    given = parser.parse_args()
    from torchvision.models import resnet18

    torch.set_num_threads(1)
    file = next(Path(given.data).glob("*.npz"))
    target = Path(__file__).parent / "results" / "feature_cache.json"
    before = json.loads(target.read_text()) if target.is_file() else {}
    rows = before["rows"] if before.get("size") == given.size else {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        torch.manual_seed(0)
        torch.save(resnet18().state_dict(), folder / "resnet18.pt")
        for name in given.methods:
            model = {
                "name": "frozen",
                "library": "torchvision",
                "architecture": "resnet18",
                "weights": str(folder / "resnet18.pt"),
                "size": None if given.size == 32 else given.size,
            }
            job = {
                "stream": {"name": "split", "dataset": {"name": "npz", "path": str(file)}, "experiences": 5},
                "model": model,
                "method": METHODS[name],
                "trainer": {"evaluate_before": False, "epochs": 1},
            }
            row = {}
            row["without"], accuracy = run_once(job, folder)
            model |= {"cache": True, "cache_folder": str(folder / name)}
            row["first"], first = run_once(job, folder)
            row["second"], second = run_once(job, folder)
            row |= {"accuracy": accuracy, "equal": accuracy == first == second}
            rows[name] = row
            print(name, {key: round(value, 4) for key, value in row.items()}, flush=True)
            target.write_text(json.dumps({"size": given.size, "threads": 1, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
