"""A plain PyTorch loop that stops forgetting: one line of it is another, and the method needs no task labels.

python examples/drop_in.py
"""

import torch
from torch import nn

from holdfast import Continual, Method, datasets, methods

digits = datasets.digits()


def loader(*classes: int) -> torch.utils.data.DataLoader:
    """Batches of some classes, as floats: any loader of yours."""
    wanted = torch.isin(digits.train.targets, torch.tensor(classes)).nonzero().squeeze(1)
    batch = digits.train.gather(wanted)
    data = torch.utils.data.TensorDataset(batch.inputs.flatten(1) / digits.scale, batch.targets)
    return torch.utils.data.DataLoader(data, batch_size=32, shuffle=True, generator=torch.Generator().manual_seed(0))


def train(method: Method) -> float:
    """Learn five pairs of classes one after the other; returns the accuracy on all test data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cl = Continual(model, method, optimizer)
    for first in range(0, 10, 2):
        for _ in range(10):
            for x, y in loader(first, first + 1):
                loss = nn.functional.cross_entropy(model(x), y)
                optimizer.zero_grad()
                cl.backward(loss, y, inputs=x)  # was: loss.backward()
                optimizer.step()
    test = digits.test.gather(torch.arange(len(digits.test)))
    return (cl.predict(test.inputs.flatten(1) / digits.scale).argmax(1) == test.targets).float().mean().item()


for method in (methods.finetune(), methods.der_plus_plus(capacity=200)):
    name = method.name
    print(f"{name}: {train(method):.1%} of all test digits are right")
