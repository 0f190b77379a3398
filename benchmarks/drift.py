"""Prequential accuracy on streams whose data really drift: networks with and without memory, and adaptive trees.

    HOLDFAST_DATA=<folder with streams/ and gas_drift/> python benchmarks/drift.py --out benchmarks/results/drift.json
    python benchmarks/drift.py --page docs/drift.md

One row at a time: predicted, counted, then learned. Every candidate gets the same rows, each feature less its mean over
the rows so far, divided by their deviation (labels play no part in it). The first 1,000 rows are for warming up: they
are learned and not counted, and the learning rate of each network is the one of 0.01, 0.03 and 0.1 that predicts them
best with a seed of its own. Long streams are cut to their first `ROWS` rows. What was measured before is kept: the same
command again does what is missing. CPU seconds of the process, one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROWS, WARM_UP, HIDDEN, CAPACITY, DRAWN = 10_000, 1_000, 100, 500, 10
RATES = (0.01, 0.03, 0.1)
SEED_OF_RATES = 100
STREAMS = {
    "elec": "elec: price of electricity, up or down, 2 classes",
    "weather": "weather: rain or none, 2 classes",
    "outdoorStream": "outdoorStream: objects in changing light, 40 classes",
    "gas": "gas: six gases, eight batches of ageing sensors",
}
CANDIDATES = {
    "last label": "the label of the row before (no model)",
    "static": "MLP, trained on the warm-up only",
    "mlp": "MLP without memory (a plain PyTorch loop)",
    "finetune": "fine-tuning (`finetune`)",
    "er": "ER (`er`)",
    "er newest": "ER from the newest rows (`er` with `policy=ring`)",
    "er drift": "ER from exemplars chosen at each drift (`er_exemplars`, `on_drift`: ADWIN on errors)",
    "der_plus_plus": "DER++ (`der_plus_plus`)",
    "hat": "Hoeffding adaptive tree (river)",
    "arf": "adaptive random forest, 10 trees (river)",
}
NETWORKS = ("mlp", "static", "finetune", "er", "er newest", "er drift", "der_plus_plus")


def read(name: str, seed: int) -> tuple[Any, Any]:
    """Standardised features `[rows, features]` float32 and class indices `[rows]`, as they are learned."""
    import numpy as np

    root = Path(os.environ["HOLDFAST_DATA"])
    if name == "gas":
        x, y = gas(root / "gas_drift", seed)
    else:
        table = np.loadtxt(root / "streams" / f"{name}.csv.gz", delimiter=",", skiprows=1)[:ROWS]
        x, y = table[:, :-1], np.unique(table[:, -1], return_inverse=True)[1]
    count = np.arange(1, len(x) + 1)[:, None]
    mean = x.cumsum(0) / count
    variance = np.maximum((x**2).cumsum(0) / count - mean**2, 0)
    scale = np.sqrt(variance)
    return np.where(scale > 1e-9, (x - mean) / np.maximum(scale, 1e-9), 0).astype("f4"), y


def gas(folder: Path, seed: int) -> tuple[Any, Any]:
    """The batches in the order of their months; within each, where rows are sorted by gas, in a random order."""
    import gzip

    import numpy as np

    draw, rows, labels = np.random.default_rng(seed), [], []
    for number in (1, 2, 3, 4, 5, 6, 8, 9):
        with gzip.open(folder / f"batch{number}.dat.gz", "rt") as file:
            lines = [line.split() for line in file]
        for line in (lines[row] for row in draw.permutation(len(lines))):
            labels.append(int(line[0].split(";")[0]))
            rows.append([float(pair.split(":")[1]) for pair in line[1:129]])
    return np.array(rows), np.unique(labels, return_inverse=True)[1]


def by_network(name: str, x: Any, y: Any, classes: int, seed: int, lr: float) -> tuple[int, int]:
    """Right predictions of the warm-up and of the rest, by the endless loop."""
    import torch

    from holdfast import StreamTrainer, methods
    from holdfast.boundaries import OnDrift
    from holdfast.core.source import Arrays
    from holdfast.models import mlp

    made: dict[str, Callable[[], Any]] = {
        "finetune": methods.finetune,
        "static": methods.finetune,
        "er": lambda: methods.er(capacity=CAPACITY, size=DRAWN),
        "er newest": lambda: methods.er(capacity=CAPACITY, size=DRAWN, policy="ring"),
        "er drift": lambda: methods.er_exemplars(capacity=CAPACITY, size=DRAWN),
        "der_plus_plus": lambda: methods.der_plus_plus(capacity=CAPACITY, size=DRAWN),
    }
    model = mlp(input_shape=x.shape[1:], classes=classes, hidden=[HIDDEN], seed=seed)
    optimizer = {"name": "SGD", "lr": lr}
    boundary = OnDrift("adwin", on="error", warm_up=200) if name == "er drift" else None
    trainer = StreamTrainer(
        model, made[name](), optimizer=optimizer, boundary=boundary, on_divergence="go_on", seed=seed
    )
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    trainer.train(Arrays(inputs[:WARM_UP], targets[:WARM_UP]))
    first = round((trainer.accuracy or 0) * trainer.samples)
    if len(x) == WARM_UP:
        return first, 0
    if name == "static":
        return first, int((trainer.predict(inputs[WARM_UP:]).argmax(1) == targets[WARM_UP:]).sum())
    trainer.train(Arrays(inputs[WARM_UP:], targets[WARM_UP:]))
    return first, round((trainer.accuracy or 0) * trainer.samples) - first


def by_hand(x: Any, y: Any, classes: int, seed: int, lr: float) -> tuple[int, int]:
    """The same network in a plain loop of PyTorch, with nothing of ours."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    inputs, targets, first, right = torch.from_numpy(x), torch.from_numpy(y), 0, 0
    for row in range(len(x)):
        outputs = net(inputs[row : row + 1])
        hit = int(outputs.argmax() == targets[row])
        first, right = (first + hit, right) if row < WARM_UP else (first, right + hit)
        optimizer.zero_grad()
        nn.functional.cross_entropy(outputs, targets[row : row + 1]).backward()
        optimizer.step()
    return first, right


def one_by_one(x: Any, y: Any, predict: Callable[[int], Any], learn: Callable[[int], Any]) -> tuple[int, int]:
    """Right predictions of the warm-up and of the rest: each row is predicted, then learned."""
    first = right = 0
    for row in range(len(x)):
        hit = int(predict(row) == y[row])
        first, right = (first + hit, right) if row < WARM_UP else (first, right + hit)
        learn(row)
    return first, right


def measured(name: str, x: Any, y: Any, seed: int, lr: float) -> tuple[int, int]:
    """Right predictions of the warm-up and of the rest."""
    classes = int(y.max()) + 1
    if name == "last label":
        return one_by_one(x, y, lambda row: y[row - 1] if row else -1, lambda row: None)
    if name == "mlp":
        return by_hand(x, y, classes, seed, lr)
    if name in ("hat", "arf"):
        from river import forest, tree

        model = (
            tree.HoeffdingAdaptiveTreeClassifier(seed=seed) if name == "hat" else forest.ARFClassifier(10, seed=seed)
        )
        rows = [dict(enumerate(row)) for row in x.tolist()]
        labels = y.tolist()
        return one_by_one(
            x, labels, lambda row: model.predict_one(rows[row]), lambda row: model.learn_one(rows[row], labels[row])
        )
    return by_network(name, x, y, classes, seed, lr)


def measure(out: Path, seeds: int, streams: list[str]) -> None:
    """Measure what the file does not have yet."""
    import torch

    torch.set_num_threads(1)
    found = json.loads(out.read_text()) if out.is_file() else {"settings": {}, "streams": {}}
    settings = {"rows": ROWS, "warm_up": WARM_UP, "hidden": HIDDEN, "capacity": CAPACITY, "drawn": DRAWN}
    found["settings"] = settings
    for seed, stream in ((seed, stream) for seed in range(seeds) for stream in streams):
        kept = found["streams"].setdefault(stream, {})
        x, y = read(stream, seed)
        kept["rows"], kept["classes"], kept["features"] = len(x), int(y.max()) + 1, x.shape[1]
        for name in CANDIDATES:
            one = kept.setdefault(name, {"accuracy": {}, "seconds": {}})
            if str(seed) in one["accuracy"]:
                continue
            if name in NETWORKS and "lr" not in one:
                wx, wy = (part[:WARM_UP] for part in read(stream, SEED_OF_RATES))
                tried = {lr: measured(name, wx, wy, SEED_OF_RATES, lr)[0] for lr in RATES}
                one["lr"] = max(tried, key=tried.__getitem__)
            begun = time.process_time()
            _, right = measured(name, x, y, seed, one.get("lr", 0.0))
            one["seconds"][str(seed)] = round(time.process_time() - begun, 2)
            one["accuracy"][str(seed)] = round(right / (len(x) - WARM_UP), 5)
            print(stream, seed, name, one["accuracy"][str(seed)], one["seconds"][str(seed)], flush=True)
            temporary = out.with_suffix(".tmp")
            temporary.write_text(json.dumps(found, indent=1) + "\n")
            temporary.replace(out)


def page(results: Path, path: Path) -> None:
    """Write the table into a page, between its markers."""
    from holdfast.metrics.statistics import spread

    found = json.loads(results.read_text())
    streams = [name for name in STREAMS if name in found["streams"]]
    lines = ["| | " + " | ".join(streams) + " | CPU seconds, all |", "| --- |" + " ---: |" * (len(streams) + 1)]
    every = [found["streams"][stream][name]["accuracy"] for stream in streams for name in CANDIDATES]
    seeds = sorted(set.intersection(*(set(one) for one in every)), key=int)
    shares = {
        (stream, name): spread(found["streams"][stream][name]["accuracy"][seed] for seed in seeds)
        for stream in streams
        for name in CANDIDATES
    }
    for name, words in CANDIDATES.items():
        cells, seconds = [], 0.0
        for stream in streams:
            one = shares[stream, name]
            assert one is not None
            half = "" if not one.half else f" ± {100 * one.half:.1f}"
            best = one.mean == max(shares[stream, other].mean for other in CANDIDATES if other != "last label")  # type: ignore[union-attr]
            text = f"{100 * one.mean:.1f}{half}"
            cells.append(f"**{text}**" if best else text)
            taken = found["streams"][stream][name]["seconds"]
            seconds += sum(taken[seed] for seed in seeds) / len(seeds)
        lines.append(f"| {words} | " + " | ".join(cells) + f" | {seconds:.0f} |")
    lengths = ", ".join(f"{name} {found['streams'][name]['rows']:,}" for name in streams)
    rates = ", ".join(
        f"{name} {'/'.join(str(found['streams'][stream][name]['lr']) for stream in streams)}" for name in NETWORKS
    )
    told = (
        f"Rows predicted right before they were learned, in per cent: mean ± 95 % t interval over {len(seeds)} seeds;"
        f" bold is the best model of a column. Rows: {lengths}. Learning rates, stream by stream: {rates}."
    )
    text = path.read_text()
    block = "\n".join(["<!-- drift: generated -->", told, "", *lines, "<!-- drift: end -->"])
    path.write_text(re.sub(r"<!-- drift: generated -->.*?<!-- drift: end -->", lambda _: block, text, flags=re.DOTALL))


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "drift.json")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--page", type=Path, help="write the table of --out into this page")
    arguments = parser.parse_args()
    if arguments.page is not None:
        page(arguments.out, arguments.page)
    else:
        measure(arguments.out, arguments.seeds, arguments.streams)


if __name__ == "__main__":
    main()
