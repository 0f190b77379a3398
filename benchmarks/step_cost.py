"""What one training step costs with each method, relative to plain fine-tuning, in one interleaved run.

    python benchmarks/step_cost.py [--rounds 5] [--steps 60] [--after 1] [--method er ...] [--json FILE]

A stream of MNIST-shaped noise, five tasks of two classes, an MLP of 2x400 units, batches of 128 (replay of 128 too),
Adam. Steps are
timed in the experience after `--after` finished ones, when penalties, memories and teachers are at work; what happens
at the boundaries is not in the figure. One thread, CPU seconds of the process, medians over rounds of the ratio
within a round.
"""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import time
from typing import Any

import torch

from holdfast import Experience, Stream, Trainer, methods
from holdfast.models import mlp
from holdfast.streams.data import TensorData
from holdfast.streams.prepare import Prepare

BATCH = 128
SKIP = ("joint", "cumulative")
"""Their steps are fine-tuning's; they choose data."""


def stream(steps: int, tasks: bool, count: int = 5) -> Stream:
    """Tasks of two classes, `steps` batches each."""
    generator = torch.Generator().manual_seed(0)
    rows = steps * BATCH
    experiences = []
    for task in range(count):
        inputs = torch.randint(0, 256, (rows, 1, 28, 28), dtype=torch.uint8, generator=generator)
        targets = torch.randint(2 * task, 2 * task + 2, (rows,), generator=generator)
        label = task if tasks else None
        data = TensorData(inputs, targets, task=label)
        classes = (2 * task, 2 * task + 1)
        experiences.append(Experience(task, data, data.subset(torch.arange(10)), classes=classes, task=label))
    kind = "task" if tasks else "class"
    return Stream(experiences, (1, 28, 28), 2 * count, kind, prepare=Prepare())


class Prepared:
    """A method in the middle of a stream, ready to be timed a few steps at a time."""

    def __init__(self, name: str, steps: int, after: int) -> None:
        factory = getattr(methods, name)
        known = inspect.signature(factory).parameters
        chosen = {"size": BATCH, "capacity": 1000, "samples": 256, "strength": 1.0}
        method = factory(**{key: value for key, value in chosen.items() if key in known})
        tasks = "task" in method.needs
        self.stream = stream(steps, tasks)
        model = mlp(input_shape=(1, 28, 28), classes=10, hidden=[400, 400], head="task" if tasks else "fixed", seed=0)
        self.trainer = Trainer(method, optimizer={"name": "Adam", "lr": 1e-4}, batch_size=BATCH, evaluate="none")
        self.trainer.bind(model, self.stream)
        self.trainer._started = time.perf_counter()
        self.trainer._position = {"experience": 0, "phase": "before", "clock": 0.0}
        from holdfast.training.progress import NoProgress

        self.trainer._bar = NoProgress()
        for index in range(after):
            experience = self.trainer._open(index)
            self.trainer._train(experience, None)
            self.trainer.engine.end(experience)
        experience = self.trainer._open(after)
        self.trainer._train(experience, None)  # a first pass warms up and fills what fills within an experience
        model.train()
        self.batches = list(experience.train.batches(torch.arange(len(experience.train)), BATCH))

    def run(self) -> float:
        """CPU seconds of one pass over the experience's batches."""
        start = time.process_time()
        for number, batch in enumerate(self.batches):
            self.trainer._step(batch, number / len(self.batches))
        self.trainer.learner.logged.clear()
        return time.process_time() - start


def main() -> None:
    """Measure and print one line a method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--after", type=int, default=1, help="experiences finished before the timed one (up to 4)")
    parser.add_argument("--method", action="append", help="only this one (may be repeated)")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for name in arguments.method or methods.__all__ if name not in SKIP and name != "finetune"]
    base = Prepared("finetune", arguments.steps, arguments.after)
    rows: list[dict[str, Any]] = []
    for name in names:
        try:
            prepared = Prepared(name, arguments.steps, arguments.after)
        except Exception as error:  # a method for another kind of stream or model: say so, go on with the next
            print(f"{name:20s} not timed: {str(error).splitlines()[0]}", flush=True)
            continue
        pairs = [(base.run(), prepared.run()) for _ in range(arguments.rounds)]
        ratio = statistics.median(ours / plain for plain, ours in pairs)
        each = statistics.median(ours for _, ours in pairs) / len(prepared.batches) * 1e6
        rows.append({"method": name, "ratio": round(ratio, 3), "us_per_step": round(each, 1), "after": arguments.after})
        print(f"{name:20s} {ratio:6.2f} of fine-tuning, {each:8.1f} us a step", flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(
                {"command": "python benchmarks/step_cost.py", "torch": torch.__version__, "rows": rows}, file, indent=1
            )
            file.write("\n")


if __name__ == "__main__":
    main()
