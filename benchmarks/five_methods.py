"""Five methods in one plain PyTorch loop on Split MNIST, online: one pass over five pairs of digits.

    HOLDFAST_DATA=<folder with mnist/> python benchmarks/five_methods.py [seeds] [method ...]

The protocol of Buzzega et al. 2020: MLP 2x100, batch 10, plain SGD, pixels in [0, 1], one head of 10.
"""

import statistics
import sys

import torch
from torch import nn

from holdfast import Continual, datasets, methods

torch.set_num_threads(1)
METHODS = {
    "finetune": (0.03, lambda: methods.finetune()),
    "er": (0.01, lambda: methods.er(capacity=200, size=10)),
    "der": (0.03, lambda: methods.der(capacity=200, size=10, alpha=0.2)),
    "der_plus_plus": (0.03, lambda: methods.der_plus_plus(capacity=200, size=128, alpha=0.2, beta=1.0)),
    "agem": (0.1, lambda: methods.agem(capacity=200, size=128)),
    "si": (0.03, lambda: methods.si(strength=1.0, damping=0.1)),
}
mnist = datasets.mnist()
train, test = (part.gather(torch.arange(len(part))) for part in (mnist.train, mnist.test))
X, Y, TX, TY = train.inputs.flatten(1) / 255, train.targets, test.inputs.flatten(1) / 255, test.targets


def run(name: str, seed: int) -> tuple[float, float]:
    """Class-incremental and task-incremental accuracy in per cent, averaged over the five pairs."""
    lr, make = METHODS[name]
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    for layer in model[::2]:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    cl = Continual(model, make(), optimizer, seed=seed)
    for first in range(0, 10, 2):
        rows = (first // 2 == Y // 2).nonzero().flatten()
        cl.begin()
        for part in rows[torch.randperm(len(rows))].split(10):
            loss = nn.functional.cross_entropy(model(X[part]), Y[part])
            optimizer.zero_grad()
            cl.backward(loss, Y[part], inputs=X[part])  # was: loss.backward()
            optimizer.step()
        cl.end()
    outputs, groups = cl.predict(TX), [task == TY // 2 for task in range(5)]
    right = [float((outputs[group].argmax(1) == TY[group]).float().mean()) for group in groups]
    pairs = [outputs[g][:, 2 * t : 2 * t + 2].argmax(1) + 2 * t == TY[g] for t, g in enumerate(groups)]
    return 100 * statistics.mean(right), 100 * statistics.mean(float(pair.float().mean()) for pair in pairs)


seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 1
for name in sys.argv[2:] or METHODS:
    found = list(zip(*(run(name, seed) for seed in range(seeds))))
    spread = [statistics.stdev(column) if seeds > 1 else 0.0 for column in found]
    means = [statistics.mean(column) for column in found]
    print(f"{name:14} class-IL {means[0]:5.2f} ({spread[0]:.2f})   task-IL {means[1]:5.2f} ({spread[1]:.2f})")
