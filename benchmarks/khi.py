"""Regions of a Kelvin-Helmholtz instability one after the other: what is forgotten, and momenta from radiation.

    python benchmarks/khi.py --part clouds      five seeds of the first; into benchmarks/results/khi.json
    python benchmarks/khi.py --part momenta     five seeds of the second; into the same file
    python benchmarks/khi.py --part stream      five seeds of the third; likewise
    python benchmarks/khi.py --page docs/streams_from_outside.md     writes the tables into the page

Three things are measured on `picongpu_khi` (HOLDFAST_DATA says where it lies), each for five seeds:

1. A variational autoencoder of clouds of 64 particles, six numbers each, learns region after region. After the last,
   the Chamfer distance of held-out clouds of the five earlier regions, with fine-tuning and with replay (`er`).
2. A conditional invertible network learns momenta given the radiation of the region, region after region, with replay.
   After the last, for held-out particles of each region: the energy score E|x' - x| - E|x' - x''| / 2 of its draws x',
   beside that of predicting the mean momentum of all regions, and of predicting the region's own mean, which knows
   which region it is and nothing of the spread; and the mean squared error of its mean beside that of the first.
3. The first again, as a simulation gives it: the regions are six iterations of an openPMD series, which the source
   `open_pmd` reads once. The autoencoder learns from a window of the newest clouds, eight steps for each 16 clouds that
   arrive, and is told nothing of regions.

All numbers are standardised by all regions together. Lower is better everywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from holdfast.config.build import build_method, build_model, build_stream
from holdfast.models.losses import chamfer, flow
from holdfast.sources import OpenPMD, Window
from holdfast.streams.datasets.khi import COMPONENTS
from holdfast.training import Trainer
from holdfast.training.endless import StreamTrainer

DATA = Path(os.environ.get("HOLDFAST_DATA", "data")) / "picongpu_khi" / "khi_t950_6regions_16384particles.npz"
RESULT = Path(__file__).resolve().parent / "results" / "khi.json"
SEEDS = range(5)
MARKERS = ("<!-- khi -->", "<!-- /khi -->")

CLOUDS: dict[str, Any] = {
    "stream": {"name": "grouped", "dataset": {"name": "khi", "path": str(DATA), "points": 64, "particles": 8192}},
    "model": {"name": "cloud_vae", "channels": [16, 32, 64], "latent": 16, "base": [8]},
    "trainer": {"epochs": 8, "batch_size": 16, "evaluate_when": "end"},
}
MOMENTA: dict[str, Any] = {
    "stream": {
        "name": "inversion",
        "of": {"name": "grouped"},
        "dataset": {"name": "khi", "path": str(DATA), "task": "momentum", "particles": 2048},
    },
    "model": {"name": "invertible", "embedding": 16, "hidden": 64},
    "trainer": {
        "epochs": 10,
        "batch_size": 128,
        "evaluate": "none",
        "clip_norm": 1.0,
        "optimizer": {"name": "Adam", "lr": 2e-3},
    },
}


WINDOW = {"rows": 96, "batch_size": 16, "min_steps": 8, "max_steps": 8}

METHODS: dict[str, Any] = {"fine-tuning": "finetune", "er": {"name": "er", "capacity": 120}}


def train(job: dict[str, Any], method: dict[str, Any] | str, criterion: Any, seed: int) -> tuple[Any, Any, Trainer]:
    """Stream, model and trainer after the last region."""
    stream = build_stream(job["stream"], seed)
    model = build_model(job["model"], stream, seed)
    trainer = Trainer(
        build_method(method),
        criterion=criterion,
        seed=seed,
        **{"evaluate": "test", "optimizer": {"name": "Adam", "lr": 1e-3}, **job["trainer"]},
    )
    trainer.fit(model, stream)
    return stream, model, trainer


def reconstruction(method: dict[str, Any] | str, seed: int) -> dict[str, Any]:
    """Chamfer distances of each region's held-out clouds after the last region."""
    stream, _, trainer = train(CLOUDS, method, chamfer, seed)
    losses = {(e["after"], e["experience"]): e["loss"] for e in trainer.events if e["event"] == "evaluate"}
    last = len(stream) - 1
    return {
        "regions": [one.name for one in stream],
        "after_all": [losses[last, index] for index in range(last + 1)],
    }


def written(folder: Path) -> str:
    """The training particles of the first part as an openPMD series, an iteration for each region; its path."""
    import openpmd_api as io

    path = str(folder / "regions.bp")
    series = io.Series(path, io.Access.create_linear, '{"iteration_encoding": "variable_based"}')
    for number, one in enumerate(build_stream(CLOUDS["stream"], 0)):
        rows = one.train.gather(torch.arange(len(one.train))).inputs.flatten(0, 1).numpy()  # type: ignore[union-attr]
        iteration = series.snapshots()[number]
        for column, name in enumerate(COMPONENTS):
            record, axis = name.split("/")
            component = iteration.particles["e"][record][axis]
            component.reset_dataset(io.Dataset(rows.dtype, [len(rows)]))
            component.store_chunk(rows[:, column].copy())
        iteration.close()
    series.close()
    return path


def streamed(path: str, method: dict[str, Any] | str, seed: int) -> dict[str, Any]:
    """Chamfer distances of each region's held-out clouds after the series was read once."""
    stream = build_stream(CLOUDS["stream"], 0)
    model = build_model(CLOUDS["model"], stream, seed)
    points = CLOUDS["stream"]["dataset"]["points"]
    clouds = len(stream[0].train)
    optimizer = {"name": "Adam", "lr": 1e-3}
    trainer = StreamTrainer(model, build_method(method), optimizer=optimizer, criterion=chamfer, seed=seed)
    records = ["particles/e/momentum", "particles/e/force"]
    source = OpenPMD(
        path, records, rows="iterations", points=points, clouds=clouds, standardise=False, seed=seed, batch_size=16
    )
    with Window(source, **WINDOW, seed=seed) as window:
        trainer.train(window)
    losses = []
    for one in stream:
        tests = one.test.gather(torch.arange(len(one.test))).inputs
        losses.append(float(chamfer(trainer.predict(tests), tests)))
    return {"regions": [one.name for one in stream], "after_all": losses, "steps": trainer.steps}


def energy_score(draws: Tensor, truth: Tensor) -> float:
    """E|x' - x| - E|x' - x''| / 2 of draws `[draws, d]` and what happened `[rows, d]`."""
    apart = torch.cdist(draws, draws).sum() / (len(draws) * max(1, len(draws) - 1))
    return float(torch.cdist(draws, truth).mean() - apart / 2)


def inversion(seed: int) -> dict[str, Any]:
    """Scores of each region's held-out momenta after the last region, beside two constant predictions."""
    stream, model, _ = train(MOMENTA, {"name": "er", "capacity": 1000}, flow, seed)
    means = [one.train.targets.mean(0) for one in stream]
    everywhere = torch.stack(means).mean(0)
    rows = []
    model.eval()
    for mean, one in zip(means, stream, strict=True):
        batch = one.test.gather(torch.arange(len(one.test)))
        observed = batch.inputs[:1, model.sought :]
        draws = model.sample(observed, 1000, torch.Generator().manual_seed(seed))[0]
        rows.append(
            {
                "region": one.name,
                "network": energy_score(draws, batch.targets),
                "mean": energy_score(everywhere[None], batch.targets),
                "region_mean": energy_score(mean[None], batch.targets),
                "network_error": float((draws.mean(0) - batch.targets).square().mean()),
                "mean_error": float((everywhere - batch.targets).square().mean()),
            }
        )
    return {"regions": rows}


def measured(part: str) -> dict[str, Any]:
    """One part for all seeds, beside what the file has of the other."""
    torch.set_num_threads(1)
    found: Any = [] if part == "momenta" else {name: [] for name in METHODS}
    folder = tempfile.TemporaryDirectory()
    path = written(Path(folder.name)) if part == "stream" else ""
    for seed in SEEDS:
        if part == "momenta":
            found.append(inversion(seed))
            rows = found[-1]["regions"]
            better = [sum(row["network"] < row[other] for row in rows) for other in ("mean", "region_mean")]
            print(f"seed {seed}: better than both means in {better} of {len(rows)} regions", flush=True)
            continue
        for name, method in METHODS.items():
            found[name].append(reconstruction(method, seed) if part == "clouds" else streamed(path, method, seed))
            early = found[name][-1]["after_all"][:-1]
            print(f"seed {seed} {name}: {fmean(early):.4f} on the earlier regions", flush=True)
    made = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    folder.cleanup()
    return {**result, "seeds": len(SEEDS), "made_with": made, "jobs": _without_paths(), part: found}


def _without_paths() -> dict[str, Any]:
    jobs = json.loads(json.dumps({"clouds": CLOUDS, "momenta": MOMENTA}))
    for job in jobs.values():
        job["stream"]["dataset"]["path"] = f"$HOLDFAST_DATA/{DATA.parent.name}/{DATA.name}"
    return jobs


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and standard deviation over seeds."""
    return f"{fmean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def of_clouds(methods: dict[str, Any], regions: list[str]) -> list[str]:
    """A table of Chamfer distances by region."""
    lines = [f"| method | {' | '.join(regions)} | the earlier five |", "| --- |" + " ---: |" * (len(regions) + 1)]
    for name, runs in methods.items():
        cells = [spread([run["after_all"][index] for run in runs]) for index in range(len(regions))]
        cells.append(f"**{spread([fmean(run['after_all'][:-1]) for run in runs])}**")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def page(result: dict[str, Any]) -> str:
    """The tables, as Markdown."""
    regions = result["clouds"]["er"][0]["regions"]
    lines = [
        f"Chamfer distance of held-out clouds of each region after the last one was learned ({result['seeds']} seeds,"
        " mean ± standard deviation; order of learning from left to right):",
        "",
        *of_clouds(result["clouds"], regions),
    ]
    if "stream" in result:
        lines += [
            "",
            "The same through the source `open_pmd`: six iterations of a series, read once, with a window of the newest"
            " clouds and nothing said of regions:",
            "",
            *of_clouds(result["stream"], regions),
        ]
    lines += [
        "",
        "Momenta from radiation: energy score of held-out momenta after all regions (lower is better), and the mean"
        " squared error of the mean:",
        "",
        "| region | invertible network | mean of the region | mean of all | squared error: network | mean of all |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for index, region in enumerate(regions):
        rows = [run["regions"][index] for run in result["momenta"]]
        cells = [
            spread([row[key] for row in rows])
            for key in ("network", "region_mean", "mean", "network_error", "mean_error")
        ]
        lines.append(f"| {region} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["clouds", "momenta", "stream"], help="what to measure")
    parser.add_argument("--page", type=Path, help="write the tables of the committed result between its markers")
    arguments = parser.parse_args()
    if arguments.part is not None:
        result = measured(arguments.part)
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if arguments.page is None:
        return
    text = arguments.page.read_text(encoding="utf-8")
    before, rest = text.split(MARKERS[0])
    after = rest.split(MARKERS[1])[1]
    table = page(json.loads(RESULT.read_text(encoding="utf-8")))
    arguments.page.write_text(f"{before}{MARKERS[0]}\n{table}\n{MARKERS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
