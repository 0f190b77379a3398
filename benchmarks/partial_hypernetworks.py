"""Partial hypernetworks beside latent replay at the same cuts, on the CIFAR-100 subset, as Hemati et al. 2023 do.

    python benchmarks/partial_hypernetworks.py --table [--epochs 8] [--tasks 10] [--only latent_replay/cut3]
    python benchmarks/partial_hypernetworks.py --noise [--seeds 3]
    python benchmarks/partial_hypernetworks.py --page docs/partial_hypernetworks.md

The table: 20 tasks of 5 classes (100 training and 20 test images of each), the reduced ResNet-18, one thread. The noisy
stream: four tasks of 5 classes, each corrupted in its own way, and the same stream left clean; what noise costs is the
difference. Each run is kept as it ends, in benchmarks/results/partial_hypernetworks.json; runs that are there already
are not repeated. The data is looked for where HOLDFAST_DATA says.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import torch

KEPT = Path(__file__).parent / "results" / "partial_hypernetworks.json"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "partial_hypernetworks.png"
CUTS = range(5)
CAPACITY = 200
NOISE_CUTS = (3,)


def dataset() -> dict[str, Any]:
    """The CIFAR-100 subset, augmented as in the paper."""
    folder = Path(os.environ.get("HOLDFAST_DATA", "data")) / "cifar100_subset"
    return {"name": "npz", "path": str(next(folder.glob("*.npz"))), "normalise": True, "crop": 4, "flip": True}


def part(name: str) -> dict[str, Any]:
    """Model and method of a row: `hypernetwork/cut2`, `latent_replay/cut2`, `ewc` or `finetune`."""
    method, _, cut = name.partition("/cut")
    if method == "hypernetwork":
        sizes = {"embedding": 32, "hidden": [50, 32], "head_embedding": 32, "start": "copy"}
        model = {"name": "hypernetwork", "backbone": "resnet18", "cut": int(cut), "tasks": 1, **sizes}
        return {"model": model, "method": {"name": "partial_hypernetwork", "strength": 0.5, "tasks": 20}}
    network = {"name": "resnet18", "head": "task"}
    if method == "latent_replay":
        return {"model": network, "method": {"name": method, "capacity": CAPACITY, "cut": int(cut), "size": 16}}
    return {"model": network, "method": {"name": method, **({"strength": 1} if method == "ewc" else {})}}


def measured(name: str, stream: dict[str, Any], epochs: int, seed: int, tasks: int | None = None) -> dict[str, Any]:
    """One run: accuracies among the classes of the task, in percent, bytes and seconds."""
    from holdfast.config import build
    from holdfast.runs.opened import open as read
    from holdfast.runs.run import run

    trainer: dict[str, Any] = {"epochs": epochs, "batch_size": 16, "evaluate_before": False, "evaluate_during": 0}
    job = {"stream": stream, **part(name), "optimizer": {"name": "Adam", "lr": 0.001}, "trainer": trainer}
    trainer["limit_experiences"] = tasks
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        done = read(run(build.resolve({**job, "seed": seed, "threads": 1}), Path(folder) / "run", quiet=True))
        metrics = done.metrics
    learned = [float(metrics["task_aware_accuracy_matrix"][i][i]) for i in range(len(done.matrix))]
    return {
        "accuracy": 100 * metrics["task_aware_average_accuracy"],
        "learning": 100 * statistics.mean(learned),
        "forgetting": 100 * metrics["task_aware_forgetting_first"],
        "memory_bytes": metrics["memory_bytes"],
        "parameter_bytes": 4 * metrics["parameters"],
        "cpu_seconds": time.process_time() - start,
    }


def once(
    kept: dict[str, Any],
    table: str,
    name: str,
    stream: dict[str, Any],
    epochs: int,
    seed: int,
    tasks: int | None = None,
) -> None:
    """Measure one run unless it is kept, and keep it."""
    key = f"{name}, {epochs} epochs, seed {seed}"
    runs = kept.setdefault(table, {})
    if key not in runs:
        runs[key] = {k: round(v, 3) for k, v in measured(name, stream, epochs, seed, tasks).items()}
        KEPT.write_text(json.dumps({**kept, "torch": torch.__version__}, indent=1) + "\n")
    print(table, key, runs[key], flush=True)


ROWS = [
    "finetune",
    "ewc",
    *(f"hypernetwork/cut{cut}" for cut in CUTS),
    *(f"latent_replay/cut{cut}" for cut in CUTS if cut),
]


def table(kept: dict[str, Any], epochs: int, tasks: int, only: list[str]) -> None:
    """The rows of the table."""
    stream = {"name": "split", "dataset": dataset(), "experiences": 20, "class_order": "random", "paradigm": "task"}
    for name in only or sorted(ROWS, key=lambda one: (one.rpartition("cut")[2], one), reverse=True):
        kept["tasks"] = tasks
        once(kept, "table", name, {**stream, "seed": 0}, epochs, 0, tasks)


def noise(kept: dict[str, Any], epochs: int, seeds: int) -> None:
    """The noisy stream and the clean one, for both at the same cuts."""
    for seed in range(seeds):
        for cut in NOISE_CUTS:
            for corrupt in (True, False):
                stream = {"name": "noisy", "dataset": dataset(), "corrupt": corrupt, "seed": seed}
                for name in (f"hypernetwork/cut{cut}", f"latent_replay/cut{cut}"):
                    once(kept, "noisy" if corrupt else "clean", name, stream, epochs, seed)


def interval(values: list[float]) -> str:
    """Mean and standard error."""
    if len(values) < 2:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values) / len(values) ** 0.5:.1f}"


def generator_bytes(cut: int, tasks: int) -> int:
    """Of the generator of a row, with the embeddings of so many tasks."""
    from holdfast.models import hypernetwork, parameter_count

    sizes = {key: value for key, value in part(f"hypernetwork/cut{cut}")["model"].items() if key != "name"}
    model = hypernetwork(input_shape=(3, 32, 32), classes=100, **{**sizes, "tasks": tasks})
    return 4 * parameter_count(model.generator)


def page(kept: dict[str, Any]) -> str:
    """The page of the kept figures."""
    runs = kept["table"]
    epochs = next(iter(runs)).split(", ")[1]
    about = f"""
        Split CIFAR-100 subset, the first {kept["tasks"]} of 20 tasks of 5 classes (100 training images of each),
        reduced ResNet-18, Adam 1e-3, batches of 16, {epochs} a task, random crops and flips; one seed. Accuracies are
        in percent among the classes of the task, CPU seconds those of one thread of a busy machine. `hypernetwork` is
        the partial hypernetwork of Hemati et al. 2023 (embeddings of 32, hidden layers of 50 and 32, strength 0.5,
        first order, all earlier tasks at each step, the stem frozen after the first task); cut 0 generates
        everything, 4 the output layer alone. `latent_replay` remembers {CAPACITY} latents at the same cut and replays
        16 of them in each step. *Memory* is what remembered samples take, *generator* the generator with its
        embeddings; *model* is all parameters, the generator's among them."""
    theirs = """
        The paper's scripts train 100 epochs on 500 images a class in batches of 64, all 20 tasks, and the stem of their
        hypernetworks comes from a checkpoint that is not published: these are our figures, not the paper's. In the few
        steps of a task here a generator learns less than weights of its own would (*right after learning*), and
        forgets nearly none of it; latent replay learns more, forgets more, and ends higher but at the last cut.
        Written by `python benchmarks/partial_hypernetworks.py --page docs/partial_hypernetworks.md`."""
    head = ["method", "cut", "accuracy at the end", "right after learning", "forgetting", "memory, MB", "generator, MB",
            "model, MB", "seconds"]  # fmt: skip
    lines = ["# Partial hypernetworks beside latent replay", ""]
    for text in (about, theirs):
        lines += [textwrap.fill(" ".join(text.split()), 118), ""]
    lines += ["![Accuracy and forgetting by cut](images/partial_hypernetworks.png)", ""]
    lines += [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    for name in ROWS:
        run = next((run for key, run in runs.items() if key.startswith(f"{name},")), None)
        if run is None:
            lines.append(f"| {name.replace('/cut', ' | ')} | not measured | | | | | | |")
            continue
        method, _, cut = name.partition("/cut")
        made = f"{generator_bytes(int(cut), kept['tasks']) / 1e6:.2f}" if method == "hypernetwork" else ""
        bytes_of = f"{run['memory_bytes'] / 1e6:.2f} | {made} | {run['parameter_bytes'] / 1e6:.2f}"
        lines.append(
            f"| {method} | {cut} | {run['accuracy']:.1f} | {run['learning']:.1f} | {run['forgetting']:.1f} |"
            f" {bytes_of} | {run['cpu_seconds']:.0f} |"
        )
    return "\n".join([*lines, *noise_lines(kept)]) + "\n"


def noise_lines(kept: dict[str, Any]) -> list[str]:
    """The part of the page about the noisy stream."""
    if "noisy" not in kept or "clean" not in kept:
        return []
    seeds = 1 + max(int(key.rsplit(" ", 1)[1]) for key in kept["clean"])
    lines = [
        "",
        "## The noisy stream",
        "",
        "Four tasks of 5 classes: clean, solarized, blurred, grey; and the same classes left clean. The claim is",
        "that noise makes latent replay forget more than a partial hypernetwork. Mean and standard error over",
        f"{seeds} seed{'s' * (seeds > 1)}; *more* is the paired difference.",
        "",
        "| method | cut | accuracy, clean | noisy | forgetting, clean | noisy | more |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    more: dict[str, list[float]] = {}
    for cut in NOISE_CUTS:
        for method in ("hypernetwork", "latent_replay"):
            keys = [key for key in kept["clean"] if key.startswith(f"{method}/cut{cut},") and key in kept["noisy"]]
            if not keys:
                continue
            column = {
                (part, what): [kept[part][key][what] for key in keys]
                for part in ("clean", "noisy")
                for what in ("accuracy", "forgetting")
            }
            more[f"{method}/{cut}"] = [
                b - a for a, b in zip(column["clean", "forgetting"], column["noisy", "forgetting"])
            ]
            cells = [interval(column[part, what]) for what in ("accuracy", "forgetting") for part in ("clean", "noisy")]
            lines.append(f"| {method} | {cut} | {' | '.join(cells)} | {interval(more[f'{method}/{cut}'])} |")
    lines += ["", verdict(more)]
    return lines


def verdict(more: dict[str, list[float]]) -> str:
    """Whether the paper's claim is seen, in words."""
    said = []
    for cut in NOISE_CUTS:
        ours, theirs = more.get(f"hypernetwork/{cut}"), more.get(f"latent_replay/{cut}")
        if not ours or not theirs:
            continue
        differences = [b - a for a, b in zip(ours, theirs)]
        mean = statistics.mean(differences)
        error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
        if len(differences) < 2:
            said.append(
                f"at cut {cut} noise added {mean:+.1f} points more forgetting to latent replay than to the hypernetwork"
                ", with one seed, which has no error: not shown"
            )
            continue
        seen = "seen" if mean > 2 * error else "not seen"
        said.append(
            f"at cut {cut} noise adds {mean:+.1f} ± {error:.1f} points more forgetting to latent replay than to the"
            f" hypernetwork ({seen})"
        )
    return "The claim: " + "; ".join(said) + "." if said else ""


def picture(kept: dict[str, Any]) -> None:
    """Accuracy and forgetting by cut."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, what, title in zip(axes, ("accuracy", "forgetting"), ("Accuracy at the end, %", "Forgetting, points")):
        for method, marker in (("hypernetwork", "o"), ("latent_replay", "s")):
            points = [
                (cut, run[what])
                for cut in CUTS
                for key, run in kept["table"].items()
                if key.startswith(f"{method}/cut{cut},")
            ]
            axis.plot(*zip(*points), marker=marker, label=method.replace("_", " "))
        for method, style in (("ewc", "--"), ("finetune", ":")):
            run = next((run for key, run in kept["table"].items() if key.startswith(f"{method},")), None)
            if run is not None:
                axis.axhline(run[what], linestyle=style, color="grey", label=method)
        axis.set(title=title, xlabel="cut: stages below it are not generated, or frozen", xticks=list(CUTS))
    axes[0].legend()
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="run what the table lacks")
    parser.add_argument("--noise", action="store_true", help="run what the noisy stream lacks")
    parser.add_argument("--only", action="append", default=[], choices=ROWS, help="this row of the table alone")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=10, help="of the twenty, the first ones")
    parser.add_argument("--seeds", type=int, default=3, help="of the noisy stream")
    parser.add_argument("--page", help="write the page and its picture of what is kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    if arguments.table:
        table(kept, arguments.epochs, arguments.tasks, arguments.only)
    if arguments.noise:
        noise(kept, arguments.epochs, arguments.seeds)
    if arguments.page:
        picture(kept)
        Path(arguments.page).write_text(page(kept))


if __name__ == "__main__":
    main()
