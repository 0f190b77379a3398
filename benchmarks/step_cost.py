"""What one training step costs with each method, relative to plain fine-tuning, after one task and after ten.

    python benchmarks/step_cost.py [--rounds 7] [--steps 20] [--method er ...] [--json FILE]
    python benchmarks/step_cost.py --page docs/costs.md

A stream of MNIST-shaped noise, tasks of two classes, an MLP of 2x400 units, batches of 128 (replay of 128 too), Adam.
Steps are timed in the second and in the eleventh task, when penalties, memories and teachers are at work; what happens
at the boundaries is not in the figure. One thread, CPU seconds of the process. Rounds of the method and of fine-tuning
(with the same kind of head) alternate, and the fastest round of each counts, so that a loaded machine disturbs little.
`--json benchmarks/results/step_cost.json` measures all methods and keeps the figures; `--page` writes the page of them.
"""

from __future__ import annotations

import argparse
import inspect
import json
import time
from pathlib import Path
from typing import Any

import torch

from holdfast import Experience, Stream, methods
from holdfast.core.engine import Engine
from holdfast.core.experience import Batch
from holdfast.core.learner import Learner
from holdfast.core.needs import TRAINER
from holdfast.core.step import Now
from holdfast.models import hypernetwork, mlp
from holdfast.operations import OutputRegularisation
from holdfast.streams.data import TensorData
from holdfast.streams.dataset import Prepare
from holdfast.training.update import Update

KEPT = Path(__file__).parent / "results" / "step_cost.json"
BATCH, TASKS, BETWEEN = 128, 11, 6
"""Rows of a batch; tasks of the stream; steps in each task before the timed one."""
CHOSEN = {"size": BATCH, "candidates": 2 * BATCH, "capacity": 1000, "samples": 256, "strength": 1.0, "epochs": 1}
CHOSEN |= {"columns": TASKS, "copies": TASKS}
"""Arguments that are given to every method that has them."""
AFTER = (1, TASKS - 1)

FORMULA: dict[str, tuple[str, float | None]] = {
    "adahat": ("gates and rates of every unit and weight", None),
    "agem": ("a forward and backward on 128 old rows, one projection", 2.3),
    "agem_exemplars": ("a forward and backward on 128 old rows, one projection", 2.3),
    "ar1": ("a penalty, and the path's integral, of every parameter below the head", 1.3),
    "bic": ("128 old rows in the batch; one forward of the old model", 2.7),
    "cls_er": ("128 old rows, forwarded by two averages too; both averages move", 3.2),
    "continual_backprop": ("a running mean of every unit's activity", 1.3),
    "cumulative": ("fine-tuning's step, over more data", 1.1),
    "cwr": ("the backbone's backward falls away", 1.1),
    "der": ("a forward and backward on 128 old rows", 2.2),
    "der_plus_plus": ("a forward and backward on twice 128 old rows", 3.3),
    "dgr": ("128 generated rows, labelled by the old model; a step of the generator on 256 rows", None),
    "duplicate_backbone": ("forwards of the frozen backbones, one more each task", None),
    "er": ("128 old rows in the batch", 2.1),
    "er_ace": ("a forward and backward on 128 old rows", 2.2),
    "er_exemplars": ("128 old rows in the batch", 2.2),
    "ewc": ("a weighted difference of every parameter", 1.3),
    "ewc_online": ("a weighted difference of every parameter", 1.3),
    "exemplar_replay": ("fine-tuning's step, over more data", 1.1),
    "fecam": ("no step after the first task: statistics of one pass over the features", None),
    "fg_adahat": ("gates, rates and importances of every unit and weight", None),
    "finetune": ("the measure of all others", 1.1),
    "fix": ("no step after the first task", None),
    "freeze_backbone": ("the backbone's backward falls away", 1.1),
    "freeze_below": ("the backward of the stages below the cut falls away", 1.1),
    "gdumb": ("fine-tuning's step; the method trains at boundaries", 1.1),
    "gem": ("a forward and backward on 256 rows of every past task, and a small quadratic program", None),
    "generative_classifier": ("a step of one small generative model per class in the batch", None),
    "gss": ("128 old rows in the batch; a forward and a backward to the layers' outputs on 138 rows", 3.3),
    "hat": ("gates and rates of every unit and weight", None),
    "hypernetwork_regularised": ("generated weights: now, and of every earlier task as they were and will be", None),
    "icarl": ("one forward of the old model; old rows are part of the data", 1.6),
    "joint": ("no step after the first task, which has all data", None),
    "l2": ("a difference of every parameter", 1.3),
    "labels_trick": ("a mask of the outputs", 1.1),
    "latent_replay": ("a forward and backward of the stages above the cut on 128 old rows; none below it", 1.1),
    "lwf": ("one forward of the old model", 1.6),
    "mas": ("a weighted difference of every parameter", 1.3),
    "mir": ("the current gradient a second time, two forwards of 256 candidates, a step on 128 of them", 4.5),
    "ncm": ("128 old rows in the batch", 2.2),
    "packnet": ("weights of earlier tasks stay where they are", None),
    "partial_hypernetwork": ("as `hypernetwork_regularised`, for the weights above a frozen first stage", None),
    "piggyback": ("a mask of every weight", None),
    "progressive": ("forwards of the earlier columns, one more each task", None),
    "random": ("no step", None),
    "ranpac": ("no step after the first task: statistics of one pass over the features", None),
    "rwalk": ("running Fisher diagonal, score and penalty of every parameter", None),
    "separate_networks": ("fine-tuning's step; a network is kept per task", None),
    "si": ("a penalty, and the path's integral, of every parameter", 1.3),
    "simple_cil": ("no step after the first task: statistics of one pass over the features", None),
    "slda": ("a forward; means and a covariance of the inputs instead of a backward", None),
    "wa": ("128 old rows in the batch; one forward of the old model", 2.7),
    "wsn": ("the largest scores of every layer are found in every step", None),
    "xdg": ("gates of every unit", 1.3),
}
"""What each method's formula adds to a step, and the ratio that it must not exceed (None: no bound is promised)."""


def stream(steps: int, tasks: bool) -> Stream:
    """Tasks of two classes: `BETWEEN` batches each, and `steps` of the second and of the last."""
    generator = torch.Generator().manual_seed(0)
    experiences = []
    for task in range(TASKS):
        rows = BATCH * (steps if task in AFTER else BETWEEN)
        inputs = torch.randint(0, 256, (rows, 1, 28, 28), dtype=torch.uint8, generator=generator)
        targets = torch.randint(2 * task, 2 * task + 2, (rows,), generator=generator)
        label = task if tasks else None
        data = TensorData(inputs, targets, task=label)
        classes = (2 * task, 2 * task + 1)
        experiences.append(Experience(task, data, data.subset(torch.arange(10)), classes=classes, task=label))
    return Stream(experiences, (1, 28, 28), 2 * TASKS, "task" if tasks else "class", prepare=Prepare())


class Timed:
    """A method on its way through the stream, ready to be timed a few steps at a time."""

    def __init__(self, name: str, steps: int, tasks: bool | None = None) -> None:
        factory = getattr(methods, name)
        known = inspect.signature(factory).parameters
        method = factory(**{key: value for key, value in CHOSEN.items() if key in known})
        self.tasks = "task" in method.needs if tasks is None else tasks
        self.stream = stream(steps, self.tasks)
        head = "task" if self.tasks else "fixed"
        layers = {"input_shape": (1, 28, 28), "classes": 2 * TASKS, "seed": 0}
        if any(isinstance(operation, OutputRegularisation) for operation in method):
            cut, sizes = int(name == "partial_hypernetwork"), {"chunk": 4500, "hidden": [100, 100], "norm": "none"}
            backbone = {"name": "mlp", "hidden": [400, 400]}
            self.model = hypernetwork(backbone=backbone, cut=cut, generator="chunks", **sizes, **layers)
        else:
            self.model = mlp(hidden=[400, 400], head=head, **layers)
        learner = self.learner = Learner(self.model, prepare=self.stream.prepare)
        self.engine = Engine(method, learner, TRAINER.offers)
        self.optimizer = torch.optim.Adam(learner.optimized() or [torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
        learner.on_growth.append(lambda new: self.optimizer.add_param_group({"params": new}))
        learner.optimizer = lambda: self.optimizer
        self.update = Update(self.engine, self)
        self.done = 0
        self.batches: list[Batch] = []

    def go_to(self, index: int) -> None:
        """Learn every task before `index`, and begin that one."""
        if self.batches:
            self.engine.end(self.opened)
            self.done += 1
        while True:
            self.opened, _ = self.engine.begin(self.stream[self.done])
            data = self.opened.train
            size = min(len(data), BATCH * (BETWEEN if self.done < index else 10**6))
            self.batches = list(data.batches(torch.arange(size), BATCH))
            self.model.train()
            self.run()
            if self.done == index:
                return
            self.engine.end(self.opened)
            self.done += 1

    def run(self) -> float:
        """CPU seconds of one pass over the batches."""
        engine, learner = self.engine, self.learner
        last = max(1, len(self.batches) - 1)
        start = time.process_time()
        for number, batch in enumerate(self.batches):
            engine.step(batch, Now(engine.index, number / last, number / last), self.update)
        seconds = time.process_time() - start
        learner.logged.clear()
        return seconds

    def move(self) -> None:
        """Move the weights."""
        self.optimizer.step()

    def held(self) -> int:
        """Bytes that the method keeps beside the model: operations' state, and the memory."""
        memory = 0 if self.learner.memory is None else self.learner.memory.nbytes
        return memory + sum(_bytes(operation.save()) for operation in self.engine.method)


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(_bytes(item) for item in items)


def measure(name: str, bases: dict[bool, list[Timed]], rounds: int, steps: int) -> dict[str, Any]:
    """Ratio to fine-tuning, microseconds a step and bytes held, after one task and after ten."""
    timed = Timed(name, steps)
    row: dict[str, Any] = {"method": name}
    for place, after in enumerate(AFTER):
        timed.go_to(after)
        base, pairs = bases[timed.tasks][place], []
        if timed.batches:
            pairs = [(base.run() / len(base.batches), timed.run() / len(timed.batches)) for _ in range(rounds)]
        plain, ours = (min(column) for column in zip(*pairs)) if pairs else (0.0, 0.0)
        row[f"after_{after}"] = {
            "ratio": round(ours / plain, 3) if pairs else None,
            "us_per_step": round(ours * 1e6) if pairs else None,
            "held_bytes": timed.held(),
        }
    return row


def page(kept: dict[str, Any]) -> str:
    """The page of costs."""
    lines = [
        "# What a step costs",
        "",
        "CPU time of one training step with each method, relative to plain fine-tuning with the same head (= 1.00), in",
        "the second and in the eleventh task; and what the method keeps beside the model by then (operations' state",
        "and memory, in MB). An MLP of 2x400 units, MNIST-shaped inputs, batches of 128, replay of 128, memory 1000,",
        "Adam, one thread; boundaries are not in the figures. A step is about a third forward and two thirds backward.",
        "Bounds hold after one task and after ten; where none stands, the formula's cost comes without a promise.",
        f"Measured with torch {kept['torch']}, by `python benchmarks/step_cost.py --json FILE` on",
        "`benchmarks/results/step_cost.json`; `python benchmarks/step_cost.py --page docs/costs.md` writes this page.",
        "",
        "| method | after 1 task | after 10 | bound | MB after 1 | MB after 10 | what its formula adds to a step |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in kept["rows"]:
        ends = [row[f"after_{after}"] for after in AFTER]
        ratios = ["-" if end["ratio"] is None else f"{end['ratio']:.2f}" for end in ends]
        sizes = [f"{end['held_bytes'] / 1e6:.1f}" for end in ends]
        words, bound = FORMULA.get(row["method"], ("see its page", None))
        limit = "" if bound is None else f"{bound:.1f}"
        cells = [f"[`{row['method']}`](methods/{row['method']}.md)", *ratios, limit, *sizes, words]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print one line a method, or write the page of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--method", action="append", help="only this one (may be repeated)")
    parser.add_argument("--json", help="write the figures to this file; with --method, these rows alone are replaced")
    parser.add_argument("--page", help="write the page of the kept figures to this file, and measure nothing")
    arguments = parser.parse_args()
    if arguments.page:
        Path(arguments.page).write_text(page(json.loads(KEPT.read_text())))
        return
    torch.set_num_threads(1)
    bases: dict[bool, list[Timed]] = {False: [], True: []}
    for tasks, held in bases.items():
        for after in AFTER:
            held.append(Timed("finetune", arguments.steps, tasks))
            held[-1].go_to(after)
    rows = {}
    for name in arguments.method or methods.__all__:
        rows[name] = row = measure(name, bases, arguments.rounds, arguments.steps)
        ends = [row[f"after_{after}"] for after in AFTER]
        ratios = "  ".join("   -" if end["ratio"] is None else f"{end['ratio']:6.2f}" for end in ends)
        print(f"{name:22s} {ratios}   {ends[1]['held_bytes'] / 1e6:8.1f} MB held", flush=True)
    if arguments.json:
        file = Path(arguments.json)
        if arguments.method and file.exists():
            rows = {row["method"]: row for row in json.loads(file.read_text())["rows"]} | rows
        kept = {"torch": torch.__version__, "rows": [rows[name] for name in sorted(rows)]}
        file.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
