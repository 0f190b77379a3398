"""What the decisions quote: alternatives timed in turn in one process on one thread, medians of ratios.

python docs/decisions/measure.py [ROUNDS]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.core.forward import backward, constant

STEPS, LR = 300, 0.01


def net(hidden: int) -> nn.Sequential:
    """A network of two hidden layers on images of 28 x 28."""
    torch.manual_seed(0)
    layers = [nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10)]
    return nn.Sequential(*layers)


def batch(rows: int) -> tuple[Tensor, Tensor]:
    """Noise of the right shape."""
    return torch.rand(rows, 784), torch.randint(10, (rows,))


def foreach_step(hidden: int, rows: int) -> Callable[[], None]:
    """Gradients set to None before, and one call over the list of parameters after backward: what the trainer does."""
    model, (x, y) = net(hidden), batch(rows)
    parameters = list(model.parameters())
    bare = [p.detach() for p in parameters]

    def step() -> None:
        for p in parameters:
            p.grad = None
        F.cross_entropy(model(x), y).backward()
        torch._foreach_add_(bare, [p.grad for p in parameters], alpha=-LR)

    return step


def flat_step(hidden: int, rows: int) -> Callable[[], None]:
    """Parameters and gradients as views of two flat tensors: one call to zero, one to update."""
    model, (x, y) = net(hidden), batch(rows)
    parameters = list(model.parameters())
    values = torch.cat([p.detach().flatten() for p in parameters])
    grads = torch.zeros_like(values)
    for p, value, grad in zip(
        parameters, values.split([p.numel() for p in parameters]), grads.split([p.numel() for p in parameters])
    ):
        p.data, p.grad = value.view_as(p), grad.view_as(p)

    def step() -> None:
        grads.zero_()
        F.cross_entropy(model(x), y).backward()
        values.add_(grads, alpha=-LR)

    return step


def optimizer_step(hidden: int, rows: int) -> Callable[[], None]:
    """`torch.optim.SGD` as everybody writes it."""
    model, (x, y) = net(hidden), batch(rows)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def two_forwards(hidden: int, rows: int) -> Callable[[], None]:
    """Current and replayed rows in a forward each, losses added."""
    model, (x, y), (old_x, old_y) = net(hidden), batch(rows), batch(rows)

    def step() -> None:
        for p in model.parameters():
            p.grad = None
        (F.cross_entropy(model(x), y) + F.cross_entropy(model(old_x), old_y)).backward()

    return step


def one_forward(hidden: int, rows: int) -> Callable[[], None]:
    """The same rows joined."""
    model, (x, y), (old_x, old_y) = net(hidden), batch(rows), batch(rows)

    def step() -> None:
        for p in model.parameters():
            p.grad = None
        F.cross_entropy(model(torch.cat((x, old_x))), torch.cat((y, old_y))).backward()

    return step


def roots(how: str) -> Callable[[int, int], Callable[[], None]]:
    """Backward from three weighted losses: through the engine, through `torch.autograd`, or summed first."""

    def make(hidden: int, rows: int) -> Callable[[], None]:
        model, (x, y) = net(hidden), batch(rows)

        def step() -> None:
            for p in model.parameters():
                p.grad = None
            outputs = model(x)
            losses = [F.cross_entropy(outputs, y), outputs.square().mean(), outputs.abs().mean()]
            weights = [constant(w, losses[0]) for w in (1.0, 0.5, 0.2)]
            if how == "engine":
                backward(losses, weights)
            elif how == "autograd":
                torch.autograd.backward(losses, weights)
            else:
                (losses[0] + 0.5 * losses[1] + 0.2 * losses[2]).backward()

        return step

    return make


QUESTIONS = {
    "update: one call over the list, against views of one flat tensor": (foreach_step, flat_step),
    "update: one call over the list, against torch.optim.SGD": (foreach_step, optimizer_step),
    "replay: one joined forward, against two": (one_forward, two_forwards),
    "three weighted losses: the engine, against torch.autograd.backward": (roots("engine"), roots("autograd")),
    "three weighted losses: the engine, against their weighted sum": (roots("engine"), roots("sum")),
}


def seconds(step: Callable[[], None]) -> float:
    """Seconds for `STEPS` steps."""
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    return time.perf_counter() - start


def main(rounds: int) -> None:
    """Print the median ratio of each question at three sizes."""
    torch.set_num_threads(1)
    for question, (ours, other) in QUESTIONS.items():
        found = []
        for hidden, rows in ((100, 10), (400, 10), (100, 128)):
            a, b = ours(hidden, rows), other(hidden, rows)
            seconds(a), seconds(b)
            found.append(f"{statistics.median(seconds(a) / seconds(b) for _ in range(rounds)):.2f}")
        print(f"{question}: {', '.join(found)} (100/10, 400/10, 100/128)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
