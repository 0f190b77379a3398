"""What a step on an endless stream costs, as a ratio to a hand-written loop that predicts, learns and counts the same.

    python benchmarks/streaming.py [--rounds 9] [--steps 3000] [--json FILE]

One process, one thread, CPU seconds of the process (`--wall` for the clock on the wall). Every round runs each
candidate once, in turn; the figure is the median over rounds of the ratio within the round, so that a machine whose
speed drifts does not matter. The hand-written loop counts right predictions at every step, as `StreamTrainer.accuracy`
does; ours records loss and accuracy every 50 steps as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast import StreamTrainer
from holdfast.core.source import Arrays
from holdfast.methods import er, finetune
from holdfast.models import mlp

LR, CAPACITY = 0.01, 500


def images(count: int) -> tuple[Tensor, Tensor]:
    """MNIST-shaped noise: the cost of a step does not depend on what is in the images."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, 28, 28, generator=generator), torch.randint(0, 10, (count,), generator=generator)


def net(hidden: int) -> nn.Module:
    """The two-layer network of the measurements."""
    return mlp(input_shape=(1, 28, 28), classes=10, hidden=[hidden, hidden], seed=0)


def arriving(inputs: Tensor, targets: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs as they arrive."""
    yield from zip(inputs.split(batch), targets.split(batch))


def by_hand(model: nn.Module, inputs: Tensor, targets: Tensor, batch: int) -> float:
    """Fine-tuning: predict, count, learn."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    model.train()
    right, seen = torch.zeros((), dtype=torch.int64), 0
    for x, y in arriving(inputs, targets, batch):
        outputs = model(x)
        right += (outputs.detach().argmax(1) == y).sum()
        seen += len(y)
        optimizer.zero_grad()
        F.cross_entropy(outputs, y).backward()
        optimizer.step()
    return float(right) / seen


def by_hand_with_replay(model: nn.Module, inputs: Tensor, targets: Tensor, batch: int) -> float:
    """The same with experience replay: a vectorised reservoir, one joined forward."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    model.train()
    kept_inputs, kept_targets = torch.empty(CAPACITY, *inputs.shape[1:]), torch.empty(CAPACITY, dtype=torch.int64)
    right, seen = torch.zeros((), dtype=torch.int64), 0
    for x, y in arriving(inputs, targets, batch):
        if seen:
            drawn = torch.randperm(min(seen, CAPACITY))[:batch]
            outputs, all_targets = model(torch.cat((x, kept_inputs[drawn]))), torch.cat((y, kept_targets[drawn]))
        else:
            outputs, all_targets = model(x), y
        right += (outputs.detach()[: len(y)].argmax(1) == y).sum()
        optimizer.zero_grad()
        F.cross_entropy(outputs, all_targets).backward()
        optimizer.step()
        numbers = torch.arange(seen, seen + len(y))
        slots = (torch.rand(len(y), dtype=torch.float64) * (numbers + 1)).long()
        slots = torch.where(numbers < CAPACITY, numbers, slots)
        accepted = slots < CAPACITY
        kept_inputs[slots[accepted]] = x[accepted]
        kept_targets[slots[accepted]] = y[accepted]
        seen += len(y)
    return float(right) / seen


def by_trainer(model: nn.Module, inputs: Tensor, targets: Tensor, batch: int, replay: bool, source: bool) -> float:
    """Our endless loop, on an iterator or on a source in memory."""
    method = er(capacity=CAPACITY, size=batch) if replay else finetune()
    trainer = StreamTrainer(model, method, optimizer={"name": "SGD", "lr": LR})
    trainer.train(Arrays(inputs, targets, batch_size=batch) if source else arriving(inputs, targets, batch))
    assert trainer.accuracy is not None
    return trainer.accuracy


clock = time.process_time


def interleave(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each candidate in each round, after a round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, run in candidates.items():
            start = clock()
            run()
            if number:
                seconds[name].append(clock() - start)
    return seconds


def report(title: str, seconds: dict[str, list[float]], steps: int) -> dict[str, object]:
    """Print and return the medians, the first candidate being 1.00."""
    base = next(iter(seconds))
    row: dict[str, object] = {"case": title}
    text = []
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(values, seconds[base]))
        each = statistics.median(values) / steps * 1e6
        row[name] = {"ratio": round(ratio, 4), "us_per_step": round(each, 1)}
        text.append(f"{name} {each:7.1f} us/step ({ratio:.3f})")
    print(f"{title:34s} " + "   ".join(text), flush=True)
    return row


def main() -> None:
    """Measure everything and print one line a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3000, help="per run")
    parser.add_argument("--wall", action="store_true", help="measure wall time instead of CPU time")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    global clock
    clock = time.perf_counter if arguments.wall else time.process_time
    rows = []
    for replay, name, hand in ((False, "fine-tuning", by_hand), (True, "ER", by_hand_with_replay)):
        for hidden in (100,):
            for batch in (1, 10, 32):
                x, y = images(arguments.steps * batch)
                candidates: dict[str, Callable[[], object]] = {
                    "by hand": lambda h=hand, n=hidden, x=x, y=y, b=batch: h(net(n), x, y, b),  # type: ignore[misc]
                    "iterator": lambda r=replay, n=hidden, x=x, y=y, b=batch: by_trainer(net(n), x, y, b, r, False),  # type: ignore[misc]
                    "arrays": lambda r=replay, n=hidden, x=x, y=y, b=batch: by_trainer(net(n), x, y, b, r, True),  # type: ignore[misc]
                }
                seconds = interleave(candidates, arguments.rounds)
                rows.append(report(f"{name}, MLP 2x{hidden}, batch {batch}", seconds, arguments.steps))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=2)
            file.write("\n")


if __name__ == "__main__":
    main()
