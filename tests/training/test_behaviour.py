"""Models of other kinds learn continually through the drop-in, and forget less than by fine-tuning."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast import Continual, Method, methods
from holdfast.streams.data import TensorData


class Text(nn.Module):
    """A transformer that classifies sequences of tokens, of any length up to that of the mask."""

    def __init__(self, words: int = 24, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.layer = nn.TransformerEncoderLayer(width, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.layer(self.words(input_ids), src_key_padding_mask=attention_mask == 0)
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return self.head((hidden * mask).sum(1) / mask.sum(1))


class Images(nn.Module):
    """A convolutional autoencoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 6))
        self.widen = nn.Sequential(nn.Linear(6, 96), nn.ReLU(), nn.Unflatten(1, (6, 4, 4)))
        self.decode = nn.Sequential(self.widen, nn.ConvTranspose2d(6, 1, 4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def sentences(task: int, rows: int = 200) -> tuple[dict[str, Tensor], Tensor]:
    """Which of two words of the task stands among words of the task's vocabulary, in sequences of uneven length."""
    generator = torch.Generator().manual_seed(task)
    y = torch.randint(0, 2, (rows,), generator=generator)
    ids = torch.randint(4, 14, (rows, 8), generator=generator) + 10 * task
    length = torch.randint(3, 9, (rows,), generator=generator)
    ids[torch.arange(rows), (torch.rand(rows, generator=generator) * length).long()] = 2 * task + y
    mask = (torch.arange(8) < length[:, None]).long()
    return {"input_ids": ids.clamp(max=23), "attention_mask": mask}, y + 2 * task


def pictures(task: int, rows: int = 200) -> tuple[Tensor, Tensor]:
    """Stripes: lying in the first task, standing in the second."""
    generator = torch.Generator().manual_seed(task)
    phase = torch.rand(rows, 1, generator=generator) * 6
    wave = torch.sin(torch.arange(8) * (0.6 + torch.rand(rows, 1, generator=generator)) + phase)
    image = wave[:, None, :, None].expand(-1, -1, -1, 8) if task == 0 else wave[:, None, None, :].expand(-1, -1, 8, -1)
    return image.contiguous(), image.contiguous()


def points(task: int, rows: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(task)
    y = torch.randint(0, 2, (rows,), generator=generator) + 2 * task
    return torch.randn(rows, 4, generator=generator) * 0.3 + 2 * F.one_hot(y, 4), y


def make_model(kind: str, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "text":
            return Text()
        return Images() if kind == "images" else nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4))


def old_loss(kind: str, method: Method, seed: int) -> tuple[float, float]:
    """The first task's loss after the second was learnt (among its own classes), and the second's."""
    maker: Any = {"text": sentences, "images": pictures, "bf16": points}[kind]
    criterion = F.mse_loss if kind == "images" else F.cross_entropy
    model = make_model(kind, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    cl = Continual(model, method, optimizer, criterion=criterion if kind == "images" else None, seed=seed)
    order = torch.Generator().manual_seed(seed)
    for task in range(2):
        x, y = maker(task)
        cl.begin(TensorData(x, y))
        for _ in range(15):
            for rows in torch.randperm(len(y), generator=order).split(20):
                part = {key: value[rows] for key, value in x.items()} if isinstance(x, dict) else x[rows]
                with torch.autocast("cpu", dtype=torch.bfloat16) if kind == "bf16" else contextlib.nullcontext():
                    loss = criterion(model(**part) if isinstance(part, dict) else model(part), y[rows])
                optimizer.zero_grad()
                cl.backward(loss, y[rows], inputs=part)
                optimizer.step()
        cl.end()
    losses = []
    for task in range(2):
        x, y = maker(task)
        outputs = cl.predict(x).float()
        if kind != "images":
            outputs, y = outputs[:, 2 * task : 2 * task + 2], y - 2 * task
        losses.append(float(criterion(outputs, y)))
    return losses[0], losses[1]


MAKE: dict[str, Any] = {
    "er": lambda kind: methods.er(capacity=100, size=20),
    "ewc": lambda kind: methods.ewc(strength={"text": 1e5, "images": 2e3, "bf16": 2e2}[kind], fisher="empirical"),
    "agem": lambda kind: methods.agem(capacity=100, size=40),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["text", "images", "bf16"])
@pytest.mark.slow
def test_it_forgets_less_than_fine_tuning(kind: str) -> None:
    plain = [old_loss(kind, methods.finetune(), seed)[0] for seed in range(2)]
    for name, make in MAKE.items():
        kept = [old_loss(kind, make(kind), seed)[0] for seed in range(2)]
        assert all(a < 0.8 * b for a, b in zip(kept, plain)), f"{name}: {kept} against {plain}"
