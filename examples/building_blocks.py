"""The pieces in your own hands: an autoencoder with the EWC penalty and A-GEM's projection in a plain loop.

python examples/building_blocks.py
"""

import torch
from torch import Tensor, nn

from holdfast import ContinualLearner, EpisodicMemory, datasets

digits = datasets.digits()
batch = digits.train.gather(torch.arange(len(digits.train)))
images, labels = batch.inputs.flatten(1) / digits.scale, batch.targets


class Autoencoder(ContinualLearner):
    """64 pixels through 12 numbers and back."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(64, 12), nn.Linear(12, 64)

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction."""
        return self.decode(self.encode(x).relu())


def train(strength: float, project: bool) -> float:
    """Even digits, then odd ones; returns the error on the even ones in the end."""
    torch.manual_seed(0)
    model, memory, mse = Autoencoder(), EpisodicMemory(size=200, tasks=2, overflow="reservoir"), nn.functional.mse_loss
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for task in range(2):
        data = images[labels % 2 == task]
        for _ in range(20):
            for x in data[torch.randperm(len(data))].split(32):
                optimizer.zero_grad()
                (mse(model(x), x) + strength * model.ewc_loss()).backward()
                old = memory.get_data_for_reference_gradient(task, size=64) if project else None
                if old is not None:
                    model.calculate_ref_gradients(old, mse)
                    model.overwrite_grad()
                optimizer.step()
        model.estimate_fisher((data, data), mse)
        memory.add_data_for_task(task, data, data)
    even = images[labels % 2 == 0]
    return mse(model(even), even).item()


print(f"nothing: {train(0.0, project=False):.4f}")
print(f"EWC:     {train(3e3, project=False):.4f}")
print(f"A-GEM:   {train(0.0, project=True):.4f}")
