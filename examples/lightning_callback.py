"""An ordinary LightningModule over five experiences in one fit: nothing in it knows of continual learning.

python examples/lightning_callback.py
"""

import logging
import warnings

import lightning
import torch
from torch import nn

from holdfast import datasets, methods, models, streams
from holdfast.lightning import ContinualCallback, StreamDataModule

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")
stream = streams.split(datasets.digits(), experiences=5)


class Classifier(lightning.LightningModule):
    """A network, its loss and its optimiser."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        """Cross-entropy of one batch."""
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int, dataloader_idx: int = 0) -> None:
        """Accuracy on one experience's test data."""
        right = (self.net(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log(f"experience_{dataloader_idx}", right, add_dataloader_idx=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.05)


for method in (methods.finetune(), methods.er(capacity=200), methods.der_plus_plus(capacity=200)):
    net = models.mlp(input_shape=stream.input_shape, classes=stream.classes, hidden=[100, 100], seed=0)
    data = StreamDataModule(stream, batch_size=32, epochs=10)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(
        max_epochs=10 * len(stream), accelerator="cpu", callbacks=[ContinualCallback(method)], **quiet
    )
    module = Classifier(net)
    trainer.fit(module, datamodule=data)
    found = trainer.test(module, datamodule=data, verbose=False)
    means = [value for result in found for value in result.values()]
    print(f"{method.name}: {sum(means) / len(means):.1%} over the five experiences")
