"""What a step, an evaluation and a Fisher pass cost, as ratios to hand-written PyTorch within one interleaved run.

    python benchmarks/overhead.py [--rounds 9] [--samples 12000] [--json FILE]

One process, one thread, CPU seconds of the process (`--wall` for the clock on the wall: the same on a quiet machine,
and noise on a busy one). Every round runs each candidate once, in turn; the figure is the median over rounds of the
ratio within the round, so that a machine whose speed drifts does not matter.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast import Continual, Experience, Learner, Stream, Trainer
from holdfast.methods import er
from holdfast.models import cnn, mlp
from holdfast.operations._parts.fisher import fisher_diagonal
from holdfast.streams.data import TensorData
from holdfast.streams.dataset import Prepare
from holdfast.training.evaluation import evaluate_all

CAPACITY, LR = 500, 0.01


def images(count: int) -> tuple[Tensor, Tensor]:
    """MNIST-shaped noise: the cost of a step does not depend on what is in the images."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)
    return inputs, torch.randint(0, 10, (count,), generator=generator)


def net(hidden: int) -> nn.Module:
    """The two-layer network of the measurements."""
    return mlp(input_shape=(1, 28, 28), classes=10, hidden=[hidden, hidden], seed=0)


def by_hand(model: nn.Module, inputs: Tensor, targets: Tensor, batch: int, losses: int = 1) -> None:
    """Experience replay written by hand: float tensors in memory, a vectorised reservoir, one joined forward.

    With two `losses` it does the same arithmetic as the wrapper, where the loop computes the current data's loss by
    itself: one mean over the current rows and one over the old ones, weighted by their numbers.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    kept_inputs = torch.empty(CAPACITY, *inputs.shape[1:])
    kept_targets = torch.empty(CAPACITY, dtype=torch.int64)
    seen = 0
    order = torch.randperm(len(targets))
    model.train()
    for start in range(0, len(targets), batch):
        rows = order[start : start + batch]
        x, y = inputs[rows], targets[rows]
        if seen:
            drawn = torch.randperm(min(seen, CAPACITY))[:batch]
            outputs, old = model(torch.cat((x, kept_inputs[drawn]))), kept_targets[drawn]
            if losses == 1:
                loss = F.cross_entropy(outputs, torch.cat((y, old)))
            else:
                share = len(y) / len(outputs)
                current, replayed = outputs.split((len(y), len(old)))
                loss = share * F.cross_entropy(current, y) + (1 - share) * F.cross_entropy(replayed, old)
        else:
            loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        numbers = torch.arange(seen, seen + len(y))
        slots = (torch.rand(len(y), dtype=torch.float64) * (numbers + 1)).long()
        slots = torch.where(numbers < CAPACITY, numbers, slots)
        accepted = slots < CAPACITY
        kept_inputs[slots[accepted]] = x[accepted]
        kept_targets[slots[accepted]] = y[accepted]
        seen += len(y)


def by_trainer(model: nn.Module, stream: Stream, batch: int, terminal: object) -> None:
    """The trainer, with loss, accuracy and the progress bar on."""
    optimizer = {"name": "SGD", "lr": LR}
    method = er(capacity=CAPACITY, size=batch)
    Trainer(method, optimizer=optimizer, batch_size=batch, evaluate="none", progress=terminal).fit(model, stream)  # type: ignore[arg-type]


def by_wrapper(model: nn.Module, inputs: Tensor, targets: Tensor, batch: int) -> None:
    """The hand-written loop with its replay taken out and one line changed."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    cl = Continual(model, er(capacity=CAPACITY, size=batch), optimizer)
    order = torch.randperm(len(targets))
    model.train()
    for start in range(0, len(targets), batch):
        rows = order[start : start + batch]
        x, y = inputs[rows], targets[rows]
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        cl.backward(loss, y, inputs=x)
        optimizer.step()
    cl.close()


def evaluation_by_hand(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    """Loss and accuracy over the data in batches of 512."""
    model.eval()
    correct, loss = 0, 0.0
    with torch.inference_mode():
        for x, y in zip(inputs.split(512), targets.split(512)):
            outputs = model(x)
            loss += F.cross_entropy(outputs, y).item() * len(y)
            correct += (outputs.argmax(1) == y).sum().item()


def fisher_by_hand(model: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """The empirical Fisher diagonal, one sample at a time."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    model.eval()
    for x, y in zip(inputs.split(1), targets.split(1)):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for name, p in model.named_parameters():
            total[name] += p.grad.square() / len(targets)  # type: ignore[union-attr]
    return total


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


def report(title: str, seconds: dict[str, list[float]], units: int, unit: str) -> dict[str, object]:
    """Print and return the medians, the first candidate being 1.00; the wrapper's to the same arithmetic too."""
    base = next(iter(seconds))
    row: dict[str, object] = {"case": title}
    text = []
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(values, seconds[base]))
        each = statistics.median(values) / units * 1e6
        row[name] = {"ratio": round(ratio, 4), f"us_per_{unit}": round(each, 1)}
        text.append(f"{name} {each:8.1f} us/{unit} ({ratio:.3f})")
    if "two losses" in seconds:
        ratio = statistics.median(a / b for a, b in zip(seconds["wrapper"], seconds["two losses"]))
        row["wrapper to two losses"] = {"ratio": round(ratio, 4)}
        text.append(f"wrapper to two losses ({ratio:.3f})")
    print(f"{title:28s} " + "   ".join(text), flush=True)
    return row


def main() -> None:
    """Measure everything and print one line a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--samples", type=int, default=12_000, help="per run; one experience of Split MNIST has 12,000")
    parser.add_argument("--wall", action="store_true", help="measure wall time instead of CPU time")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    global clock
    clock = time.perf_counter if arguments.wall else time.process_time
    rows = []
    with open(os.devnull, "w") as terminal:
        for hidden in (100, 400):
            for batch in (10, 32, 128):
                steps = arguments.samples // batch
                raw, targets = images(steps * batch)
                floats = raw.float().div_(255)
                stream = Stream(
                    [Experience(0, TensorData(raw, targets), classes=tuple(range(10)))],
                    (1, 28, 28),
                    10,
                    prepare=Prepare(),
                )
                candidates: dict[str, Callable[[], object]] = {
                    "by hand": lambda h=hidden, x=floats, y=targets, b=batch: by_hand(net(h), x, y, b),  # type: ignore[misc]
                    "two losses": lambda h=hidden, x=floats, y=targets, b=batch: by_hand(net(h), x, y, b, 2),  # type: ignore[misc]
                    "trainer": lambda h=hidden, s=stream, b=batch: by_trainer(net(h), s, b, terminal),  # type: ignore[misc]
                    "wrapper": lambda h=hidden, x=floats, y=targets, b=batch: by_wrapper(net(h), x, y, b),  # type: ignore[misc]
                }
                seconds = interleave(candidates, arguments.rounds)
                rows.append(report(f"ER, MLP 2x{hidden}, batch {batch}", seconds, steps, "step"))
    raw, targets = images(10_000)
    floats = raw.float().div_(255)
    for hidden in (100, 400):
        model = net(hidden)
        experience = Experience(0, TensorData(raw, targets), TensorData(raw, targets), classes=tuple(range(10)))
        stream = Stream([experience], (1, 28, 28), 10, prepare=Prepare())
        trainer = Trainer(er(capacity=10))
        trainer.bind(model, stream)
        seconds = interleave(
            {
                "by hand": lambda m=model: evaluation_by_hand(m, floats, targets),  # type: ignore[misc]
                "trainer": lambda t=trainer: evaluate_all(t.session, 0),  # type: ignore[misc]
            },
            arguments.rounds,
        )
        rows.append(report(f"evaluation, MLP 2x{hidden}", seconds, 10_000, "sample"))
    cases = {"MLP 2x100": net(100), "MLP 2x400": net(400), "CNN": cnn(input_shape=(1, 28, 28), classes=10, seed=0)}
    for name, model in cases.items():
        count = 256 if name == "CNN" else 1024
        learner = Learner(model)
        data = TensorData(floats[:count], targets[:count])
        one = fisher_by_hand(model, floats[:count], targets[:count])
        ours = fisher_diagonal(learner, data, "empirical")
        for key in one:
            torch.testing.assert_close(ours[key], one[key], rtol=1e-3, atol=1e-7)
        seconds = interleave(
            {
                "one at a time": lambda m=model, n=count: fisher_by_hand(m, floats[:n], targets[:n]),  # type: ignore[misc]
                "closed form": lambda le=learner, d=data: fisher_diagonal(le, d, "empirical"),  # type: ignore[misc]
                "vmap": lambda le=learner, d=data: fisher_diagonal(le, d, "empirical", closed_form=False),  # type: ignore[misc]
            },
            max(3, arguments.rounds // 3),
        )
        rows.append(report(f"Fisher, {name}", seconds, count, "sample"))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=2)
            file.write("\n")


if __name__ == "__main__":
    main()
