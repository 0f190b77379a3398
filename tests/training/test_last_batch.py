"""A last batch of one row under batch norm, drop_last with small experiences, and what an epoch is judged by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast import StreamTrainer, Trainer, datasets, methods, streams
from holdfast.core.errors import ConfigError


def blobs(*counts: int, experiences: int | None = None) -> Any:
    targets = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    inputs = torch.randn(len(targets), 3, generator=torch.Generator().manual_seed(0)) + targets[:, None]
    data = datasets.arrays(inputs, targets, test_inputs=inputs, test_targets=targets)
    return streams.split(data, experiences=experiences or len(counts) // 2)


class Sizes(nn.Module):
    """A network that notes how many rows it is trained on at once."""

    def __init__(self, normalised: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5) if normalised else nn.Identity(), nn.ReLU())
        self.head = nn.Linear(5, 4)
        self.seen: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.seen.append(len(inputs))
        output: Tensor = self.head(self.body(inputs))
        return output


@pytest.mark.parametrize(("normalised", "sizes"), [(True, [8, 9]), (False, [8, 8, 1])])
def test_a_last_batch_of_one_row_joins_the_one_before_under_batch_norm(normalised: bool, sizes: list[int]) -> None:
    model = Sizes(normalised)
    trainer = Trainer(methods.finetune(), batch_size=8, epochs=2, evaluate="none")
    trainer.fit(model, blobs(8, 9, 8, 8))
    assert model.seen == [*sizes, *sizes, 8, 8, 8, 8]


def test_an_experience_of_one_row_is_left_out_under_batch_norm_with_a_warning() -> None:
    model = Sizes(True)
    with pytest.warns(UserWarning, match="1 sample, too few for batch norm"):
        Trainer(methods.finetune(), batch_size=8, evaluate="none").fit(model, blobs(1, 8, 8, experiences=3))
    assert model.seen == [8, 8]


def test_dropping_the_last_batch_keeps_an_only_one() -> None:
    model = Sizes(False)
    Trainer(methods.finetune(), batch_size=8, drop_last=True, evaluate="none").fit(model, blobs(2, 3, 8, 9))
    assert model.seen == [5, 8, 8]


def test_a_source_leaves_a_smaller_batch_of_one_row_out_under_batch_norm() -> None:
    def given() -> Any:
        for rows in (4, 1, 4):
            yield torch.randn(rows, 3), torch.zeros(rows, dtype=torch.int64)

    model = Sizes(True)
    with pytest.warns(UserWarning, match="it is left out"):
        assert StreamTrainer(model, methods.finetune()).train(given()) == 2
    assert model.seen == [4, 4]


def test_patience_can_watch_the_loss_and_ask_for_an_improvement() -> None:
    def epochs(**settings: Any) -> int:
        model = Sizes(False)
        sgd = {"name": "SGD", "lr": 0.01}
        trainer = Trainer(methods.finetune(), optimizer=sgd, batch_size=40, epochs=30, evaluate="none", **settings)
        trainer.fit(model, blobs(20, 20))
        return len(model.seen)

    assert epochs(patience=3, monitor="loss", monitor_on="test") == 30
    assert epochs(patience=3, monitor="loss", monitor_on="test", min_delta=10.0) == 4
    with pytest.raises(ConfigError, match="look at validation data"):
        epochs(patience=3)


def test_a_plateau_of_the_loss_lowers_the_rate() -> None:
    def scheduler(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.1, patience=0, threshold=10.0, threshold_mode="abs"
        )

    trainer = Trainer(
        methods.finetune(),
        optimizer={"name": "SGD", "lr": 1.0},
        scheduler=scheduler,
        epochs=3,
        monitor_on="test",
        evaluate="none",
    )
    trainer.fit(Sizes(False), blobs(20, 20))
    assert trainer.optimization.lr == pytest.approx(0.01)
