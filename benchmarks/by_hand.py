"""Split MNIST, domain-incremental, as Hsu et al. 2018 run it, by a plain loop without any of Holdfast's training code.

    python benchmarks/by_hand.py finetune --seeds 10
    python benchmarks/by_hand.py mas --seeds 10

For rows of `split_mnist_hsu` whose values vary much from seed to seed: it says what the protocol itself gives with
today's torch. Twenty seeds gave 54.42 +- 0.42 and 71.25 +- 1.44.
Only the files are read with Holdfast. The data is looked for where HOLDFAST_DATA says.
"""

from __future__ import annotations

import argparse
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.streams.datasets import mnist


def read(data: object) -> tuple[Tensor, Tensor]:
    """Normalised pixels `[rows, 1024]` and digits."""
    batch = data.gather(torch.arange(len(data)))  # type: ignore[attr-defined]
    return ((batch.inputs.float() / 255 - 0.1000) / 0.2752).flatten(1), batch.targets


def one(method: str, seed: int, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Final accuracy in percent, averaged over the five pairs of digits."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(1024, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 2))
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    importance = [torch.zeros_like(p) for p in parameters]
    anchor = [p.detach().clone() for p in parameters]
    x, y = train
    for pair in range(5):
        rows = (y // 2 == pair).nonzero().squeeze(1)
        for _ in range(4):
            for batch in rows[torch.randperm(len(rows))].split(128):
                loss = F.cross_entropy(model(x[batch]), y[batch] % 2)
                if method == "mas" and pair > 0:
                    held = zip(importance, parameters, anchor, strict=True)
                    loss = loss + 10_000 * sum((w * (p - a) ** 2).sum() for w, p, a in held)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        anchor = [p.detach().clone() for p in parameters]
        batches = rows[torch.randperm(len(rows))].split(128)
        for batch in batches if method == "mas" else ():
            gradients = torch.autograd.grad(model(x[batch]).square().mean(), parameters)
            for w, gradient in zip(importance, gradients, strict=True):
                w += gradient.abs() / len(batches)
    x, y = test
    with torch.no_grad():
        right = model(x).argmax(1) == y % 2
    return 20 * sum(float(right[y // 2 == pair].float().mean()) for pair in range(5))


def main() -> None:
    """Run the seeds that are asked for and print them with mean and standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=["finetune", "mas"])
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = mnist(pad=2)
    assert data.test is not None
    train, test = read(data.train), read(data.test)
    found = []
    for seed in range(arguments.seeds):
        found.append(one(arguments.method, seed, train, test))
        print(f"seed {seed}: {found[-1]:.2f}", flush=True)
    mean = sum(found) / len(found)
    spread = math.sqrt(sum((value - mean) ** 2 for value in found) / max(1, len(found) - 1))
    print(f"{arguments.method}: {mean:.2f} +- {spread / math.sqrt(len(found)):.2f}")


if __name__ == "__main__":
    main()
