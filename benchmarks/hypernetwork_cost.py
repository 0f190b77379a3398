"""What a training step costs with generated weights and with latent replay, at every cut of the reduced ResNet-18.

    python benchmarks/hypernetwork_cost.py [--rounds 5] [--steps 3] [--json benchmarks/results/hypernetwork_cost.json]
    python benchmarks/hypernetwork_cost.py --page docs/hypernetwork_costs.md

Images of 32 x 32 in colour, batches of 64 of one task, Adam, one thread, CPU seconds of the process. `generated` is a
step of a partial hypernetwork (generator of Hemati et al. 2023) without a regulariser; `regularised` one with output
regularisation of one earlier task (lookahead of first order); both relative to the same step of the plain network.
`latent replay` is a step with the stages below the cut frozen and 64 latents replayed, relative to training the part
above the cut on 128 latents and a forward of the part below on 64 images, which is what it has to do. Rounds of what is
compared alternate, and the fastest round of each counts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast import Experience, Method
from holdfast.core.engine import Engine
from holdfast.core.experience import Batch
from holdfast.core.learner import Learner
from holdfast.core.needs import TRAINER
from holdfast.core.step import Now
from holdfast.models import hypernetwork, parameter_bytes, resnet18
from holdfast.operations import LatentReplay, OutputRegularisation
from holdfast.streams.data import TensorData
from holdfast.training.update import Update

KEPT = Path(__file__).parent / "results" / "hypernetwork_cost.json"
ROWS, CLASSES, CAPACITY, TASKS = 64, 10, 200, 20
CUTS = range(5)


def tensors(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A batch of images and labels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(ROWS, 3, 32, 32, generator=generator), torch.randint(CLASSES, (ROWS,), generator=generator)


class Mover:
    """Moves the weights of a learner by Adam."""

    def __init__(self, learner: Learner) -> None:
        self.optimizer = torch.optim.Adam(learner.optimized(), lr=1e-3)
        learner.optimizer = lambda: self.optimizer
        learner.on_growth.append(lambda new: self.optimizer.add_param_group({"params": new}))

    def move(self) -> None:
        """Move, and forget the gradient."""
        self.optimizer.step()
        self.optimizer.zero_grad()


def stepper(method: Method, model: nn.Module, tasks: int) -> Callable[[], None]:
    """One training step of a method, in its `tasks`-th task."""
    learner = Learner(model)
    engine = Engine(method, learner, TRAINER.offers)
    update = Update(engine, Mover(learner))
    inputs, targets = tensors()
    for task in range(tasks):
        data = TensorData(inputs, targets, task=task)
        experience = Experience(task, data, classes=tuple(range(CLASSES)), task=task)
        opened, _ = engine.begin(experience)
        if task < tasks - 1:
            engine.end(opened)
    model.train()

    def step() -> None:
        engine.step(Batch(inputs, targets, tasks - 1), Now(engine.index), update)
        learner.logged.clear()

    return step


def plain_step(model: nn.Module, make: Callable[[], Tensor], targets: Tensor) -> Callable[[], None]:
    """One hand-written step of `model` on what `make` gives."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(make()), targets).backward()
        optimizer.step()

    return step


def ratio(ours: Callable[[], None], theirs: Callable[[], None], rounds: int, steps: int) -> dict[str, float]:
    """Fastest rounds of both, and their ratio."""

    def seconds(step: Callable[[], None]) -> float:
        start = time.process_time()
        for _ in range(steps):
            step()
        return (time.process_time() - start) / steps

    ours(), theirs()  # type: ignore[func-returns-value]
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    fastest = [min(column) for column in zip(*pairs)]
    return {"ratio": round(fastest[0] / fastest[1], 3), "ms": round(1000 * fastest[0], 2)}


def measure(cut: int, rounds: int, steps: int) -> dict[str, Any]:
    """One row of the table."""
    images, targets = tensors()
    plain = resnet18(input_shape=(3, 32, 32), classes=CLASSES, head="task", seed=0)
    baseline = stepper(Method(), plain, 1)
    settings: dict[str, Any] = {"input_shape": (3, 32, 32), "classes": CLASSES, "tasks": TASKS, "seed": 0}
    made = [hypernetwork(backbone="resnet18", cut=cut, **settings) for _ in range(2)]
    row: dict[str, Any] = {"cut": cut}
    row["generated"] = ratio(stepper(Method(), made[0], 1), baseline, rounds, steps)
    regularised = Method(OutputRegularisation(strength=0.5, lookahead="sgd"))
    row["regularised"] = ratio(stepper(regularised, made[1], 2), baseline, rounds, steps)
    row["generator_bytes"] = parameter_bytes(made[0].generator)
    row["network_bytes"] = parameter_bytes(plain)
    if cut:
        network = resnet18(input_shape=(3, 32, 32), classes=CLASSES, head="task", seed=0)
        replay = LatentReplay(capacity=CAPACITY, cut=cut, size=ROWS)
        ours = stepper(Method(replay), network, 2)
        row["latent_bytes"] = replay._memory.nbytes
        twin = resnet18(input_shape=(3, 32, 32), classes=CLASSES, seed=0)
        below, upper = (nn.ModuleList(parts or []) for parts in Learner(twin).services.body.parts(cut))  # type: ignore[arg-type]
        above = nn.Sequential(*upper)
        below.eval().requires_grad_(False)

        def latents() -> Tensor:
            values = images
            for part in below:
                values = part(values)
            return values

        kept = latents()
        theirs = plain_step(above, lambda: torch.cat([latents(), kept]), torch.cat([targets, targets]))
        row["latent_replay"] = ratio(ours, theirs, rounds, steps)
    return row


def page(kept: dict[str, Any]) -> str:
    """The page of the kept figures."""
    lines = [
        "# What generated weights and latent replay cost",
        "",
        "The reduced ResNet-18 at every cut (0 generates everything, 4 the output layer only): CPU time of a training",
        "step at a batch of 64 with generated weights, relative to the plain network's (= 1.00); the same with output",
        "regularisation of one earlier task and lookahead; a step of latent replay (64 current images, 64 latents)",
        "relative to a hand-written one that does the same; and what each keeps: the generator for 20 tasks beside the",
        f"network's own {kept['rows'][0]['network_bytes'] / 1e6:.2f} MB, and {CAPACITY} latents of 32-bit floats.",
        "Weights are generated once for each task in a batch, so their number does not grow with the batch.",
        f"Measured with torch {kept['torch']} by `python benchmarks/hypernetwork_cost.py --json FILE`; this page is",
        "written by `python benchmarks/hypernetwork_cost.py --page docs/hypernetwork_costs.md`.",
        "",
        "| cut | generated | regularised | latent replay | generator, MB | latents, MB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in kept["rows"]:
        replay = f"{row['latent_replay']['ratio']:.2f}" if "latent_replay" in row else ""
        latents = f"{row['latent_bytes'] / 1e6:.2f}" if "latent_bytes" in row else ""
        cells = [str(row["cut"]), f"{row['generated']['ratio']:.2f}", f"{row['regularised']['ratio']:.2f}", replay]
        cells += [f"{row['generator_bytes'] / 1e6:.2f}", latents]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print one line a cut, or write the page of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--page", help="write the page of the kept figures to this file, and measure nothing")
    arguments = parser.parse_args()
    if arguments.page:
        Path(arguments.page).write_text(page(json.loads(KEPT.read_text())))
        return
    torch.set_num_threads(1)
    rows = []
    for cut in CUTS:
        rows.append(measure(cut, arguments.rounds, arguments.steps))
        print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
