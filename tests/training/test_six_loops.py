"""Six loops as others write them: each method keeps old knowledge better than fine-tuning, or is refused at once."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast import Continual, methods
from holdfast.core.errors import HoldfastError
from holdfast.streams.data import TensorData

METHODS: dict[str, Callable[[], Any]] = {
    "er": lambda: methods.er(capacity=200, size=16),
    "der_plus_plus": lambda: methods.der_plus_plus(capacity=200, size=16),
    "ewc": lambda: methods.ewc(strength=30.0),
    "si": lambda: methods.si(strength=3.0),
    "agem": lambda: methods.agem(capacity=200, size=32),
    "lwf": lambda: methods.lwf(),
}
"""The six, with strengths for these small jobs."""


def images(task: int, rows: int = 96) -> tuple[Tensor, Tensor]:
    """Two classes a task, at other corners."""
    generator = torch.Generator().manual_seed(task)
    y = torch.randint(2 * task, 2 * task + 2, (rows,), generator=generator)
    x = torch.rand(rows, 1, 4, 4, generator=generator) * 0.3
    x.view(rows, 16)[torch.arange(rows), 5 * y] += 1.0
    return x, y


def classifier(log_softmax: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)]
    return nn.Sequential(*layers, *([nn.LogSoftmax(1)] if log_softmax else []))


def image_classifier(method: Any) -> float:
    """Log-probabilities, a schedule and clipping."""
    model = classifier(log_softmax=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=40, gamma=0.7)
    cl = Continual(model, method, optimizer)
    for task in (0, 1):
        data, target = images(task)
        cl.begin(TensorData(data, target))
        for _ in range(4):
            model.train()
            for rows in torch.arange(96).split(16):
                optimizer.zero_grad()
                output = model(data[rows])
                loss = F.nll_loss(output, target[rows])
                cl.backward(loss, target[rows], inputs=data[rows])
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
        cl.end()
    model.eval()
    data, target = images(0)
    return float(F.nll_loss(model(data).detach(), target))


def timm_like(method: Any) -> float:
    """A scaler, mixup, label smoothing and an average of the weights."""
    model = classifier()
    averaged = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    scaler = torch.amp.GradScaler("cpu")
    criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
    cl = Continual(model, method, optimizer, scaler=scaler, criterion=criterion)
    generator = torch.Generator().manual_seed(1)
    for task in (0, 1):
        x, y = images(task)
        cl.begin(TensorData(x, y))
        for _ in range(6):
            for rows in torch.arange(96).split(16):
                share = 0.8 + 0.2 * torch.rand((), generator=generator)
                mixed = share * x[rows] + (1 - share) * x[rows].flip(0)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    output = model(mixed)
                    loss = share * criterion(output, y[rows]) + (1 - share) * criterion(output, y[rows].flip(0))
                optimizer.zero_grad()
                cl.backward(loss, y[rows], inputs=mixed)
                scaler.step(optimizer)
                scaler.update()
                with torch.no_grad():
                    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 0.2)
        cl.end()
    x, y = images(0)
    return float(F.cross_entropy(averaged(x).detach(), y))


def words(task: int, rows: int = 64) -> Tensor:
    """Sequences that count up in steps of one, or of two: `[rows, 7]` of nine words."""
    start = torch.randint(0, 9, (rows, 1), generator=torch.Generator().manual_seed(task))
    return (start + (1 + 3 * task) * torch.arange(7)) % 9


class Gpt(nn.Module):
    """Returns (logits, loss), the loss of the targets that it is given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix, self.top = nn.Embedding(9, 24), nn.Linear(48, 32), nn.Linear(32, 9)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        here = self.embed(idx)
        before = F.pad(here, (0, 0, 1, 0))[:, :-1]
        logits = self.top(F.relu(self.mix(torch.cat((here, before), -1))))
        loss = None if targets is None else F.cross_entropy(logits.view(-1, 9), targets.reshape(-1))
        return logits, loss


def gpt_like(method: Any) -> float:
    """The model returns (logits, loss), and the next batch is fetched before backward."""
    model = Gpt()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    cl = Continual(model, method, optimizer)
    for task in (0, 1):
        text = words(task)
        pairs = [(text[rows, :-1], text[rows, 1:]) for rows in torch.arange(64).split(16)] * 10
        cl.begin(TensorData(text[:, :-1], text[:, 1:]))
        x, y = pairs[0]
        for place in range(len(pairs)):
            _, loss = model(x, y)
            following = pairs[(place + 1) % len(pairs)]
            cl.backward(loss, y, inputs={"idx": x, "targets": y})
            x, y = following
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        cl.end()
    text = words(0)
    return float(model(text[:, 1:-1], text[:, 2:])[1].detach())


class Recurrent(nn.Module):
    """Sequence first, the hidden state goes in and out, and log-probabilities are flat: `[steps * rows, words]`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.rnn, self.top = nn.Embedding(9, 16), nn.GRU(16, 24), nn.Linear(24, 9)

    def forward(self, data: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        out, hidden = self.rnn(self.embed(data), hidden)
        return F.log_softmax(self.top(out), -1).view(-1, 9), hidden


class RowsFirst(nn.Module):
    """The same with a row per sample in and out: what the documentation says to write around such a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, data: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        steps, rows = data.shape[1], data.shape[0]
        flat, hidden = self.model(data.t(), None if hidden is None else hidden.transpose(0, 1).contiguous())
        return flat.view(steps, rows, -1).permute(1, 2, 0), hidden.transpose(0, 1)


def recurrent(method: Any, wrapped: bool = True) -> float:
    """A hidden state is carried over from part to part."""
    model: nn.Module = RowsFirst(Recurrent()) if wrapped else Recurrent()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    cl = Continual(model, method, optimizer, criterion=F.nll_loss)
    for task in (0, 1):
        text = words(task)
        data, target = text[:, :-1], text[:, 1:]
        hidden = torch.zeros(64, 1, 24) if wrapped else torch.zeros(1, 64, 24)
        cl.begin(TensorData({"data": data, "hidden": torch.zeros(64, 1, 24)}, target))
        for place in range(40):
            x, y = data[:, 3 * (place % 2) :][:, :3], target[:, 3 * (place % 2) :][:, :3]
            if not wrapped:
                x, y = x.t(), y.t().reshape(-1)
            hidden = hidden.detach() * (place % 2)
            output, after = model(x, hidden)
            loss = F.nll_loss(output, y)
            optimizer.zero_grad()
            cl.backward(loss, y, inputs={"data": x, "hidden": hidden})
            hidden = after
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        cl.end()
    text, net = words(0), model.model if wrapped else model
    return float(F.nll_loss(net(text[:, :-1].t())[0].detach(), text[:, 1:].t().reshape(-1)))


class Auto(nn.Module):
    """Its forward is what it is trained by, made of `encode` and `decode`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 16))

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def autoencoder(method: Any, by_forward: bool = True) -> float:
    """Trained by `encode` and `decode`, or by the forward made of them."""
    model = Auto()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    cl = Continual(model, method, optimizer, criterion=F.mse_loss)
    for task in (0, 1):
        x = images(task)[0].flatten(1)
        cl.begin(TensorData(x, x))
        for _ in range(15):
            for rows in torch.arange(96).split(16):
                found = model(x[rows]) if by_forward else model.decode(model.encode(x[rows]))
                optimizer.zero_grad()
                cl.backward(F.mse_loss(found, x[rows]), x[rows], inputs=x[rows])
                optimizer.step()
        cl.end()
    x = images(0)[0].flatten(1)
    return float(F.mse_loss(model(x).detach(), x))


LOOPS: dict[str, Callable[[Any], float]] = {
    "image_classifier": image_classifier,
    "timm_like": timm_like,
    "gpt_like": gpt_like,
    "recurrent": recurrent,
    "autoencoder": autoencoder,
}
REFUSED = {("autoencoder", "lwf")}
"""LwF works with classes, and an autoencoder has none."""

FORGETS: dict[str, float] = {}


def forgotten(loop: str) -> float:
    """The loss on the old task after fine-tuning."""
    if loop not in FORGETS:
        FORGETS[loop] = LOOPS[loop](methods.finetune())
    return FORGETS[loop]


FEW = [pytest.param(name, marks=() if name in ("er", "ewc", "lwf") else pytest.mark.slow) for name in METHODS]
"""Rows of the batch, a penalty and a teacher; the others only in the slow tests."""


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("loop", LOOPS)
def test_each_method_keeps_old_knowledge_in_each_loop_better_than_fine_tuning(loop: str, name: str) -> None:
    if (loop, name) in REFUSED:
        with pytest.raises(HoldfastError, match="class labels"):
            LOOPS[loop](METHODS[name]())
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
        assert LOOPS[loop](METHODS[name]()) < forgotten(loop)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"si"}))
def test_a_recurrent_model_whose_samples_stand_in_the_second_dimension_is_refused_at_once(name: str) -> None:
    with pytest.raises(HoldfastError, match="rows to the first dimension"):
        recurrent(METHODS[name](), wrapped=False)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"si", "lwf"}))
def test_an_autoencoder_trained_past_its_forward_is_refused_at_once(name: str) -> None:
    with pytest.raises(HoldfastError, match=r"decode\(encode\(x\)\)"):
        autoencoder(METHODS[name](), by_forward=False)


def test_an_autoencoder_trained_past_its_forward_works_with_si() -> None:
    assert autoencoder(METHODS["si"](), by_forward=False) < forgotten("autoencoder")


def transformers_model(method: Any) -> float:
    """A model of transformers that is given labels and returns its loss, on text padded to each batch's longest."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.BertConfig(vocab_size=20, num_labels=4, max_position_embeddings=16, **sizes, **dropout)
    model = transformers.BertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    cl = Continual(model, method, optimizer)

    def texts(task: int) -> list[tuple[Tensor, int]]:
        generator = torch.Generator().manual_seed(task)
        rows = []
        for _ in range(48):
            label = 2 * task + int(torch.randint(0, 2, (), generator=generator))
            length = int(torch.randint(3, 8, (), generator=generator))
            ids = torch.randint(9, 20, (length,), generator=generator)
            ids[0] = 1 + label
            rows.append((ids, label))
        return rows

    def collate(rows: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
        ids = nn.utils.rnn.pad_sequence([ids for ids, _ in rows], batch_first=True)
        labels = torch.tensor([label for _, label in rows])
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}

    for task in (0, 1):
        rows = texts(task)
        cl.begin()
        for _ in range(14):
            for start in range(0, 48, 16):
                model.train()
                batch = collate(rows[start : start + 16])
                loss = model(**batch).loss
                optimizer.zero_grad()
                cl.backward(loss, batch["labels"], inputs=batch)
                optimizer.step()
        whole = collate(rows)
        cl.end(TensorData(whole, whole["labels"]))
    model.eval()
    return float(model(**collate(texts(0))).loss.detach())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "er" else pytest.mark.slow) for name in METHODS]
)
def test_each_method_keeps_old_knowledge_in_a_model_of_transformers_that_computes_its_loss(name: str) -> None:
    if "transformers" not in FORGETS:
        FORGETS["transformers"] = transformers_model(methods.finetune())
    assert transformers_model(METHODS[name]()) < FORGETS["transformers"]
