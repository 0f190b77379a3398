"""What people's loops and models really look like: each kind works, or is refused before a step with what to write."""

from __future__ import annotations

import warnings
from collections import namedtuple
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from holdfast import Continual, Method, OnNewClass, Trainer, methods, streams
from holdfast.core.criteria import next_position_cross_entropy
from holdfast.core.errors import ConfigError, DataError, NeedError, UsageError
from holdfast.operations import Remember, Replay
from holdfast.streams import datasets
from holdfast.streams.data import TensorData


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr)


def net(width: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, width))


def blobs(low: int, rows: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(low)
    y = torch.randint(low, low + 2, (rows,), generator=generator)
    return torch.randn(rows, 6, generator=generator) + 2.0 * F.one_hot(y, 6), y


def train(model: nn.Module, method: Any, outputs: Any = lambda out: out, mode: bool = True, **kwargs: Any) -> Continual:
    """Two experiences in batches of eight; `outputs` takes what the loss is of out of what the model returns."""
    optimizer = sgd(model)
    cl = Continual(model, method, optimizer, **kwargs)
    for low in (0, 2):
        x, y = blobs(low)
        model.train(mode)
        cl.begin(TensorData(x, y))
        for rows in torch.arange(32).split(8):
            loss = F.cross_entropy(outputs(model(x[rows])), y[rows])
            optimizer.zero_grad()
            cl.backward(loss, y[rows], inputs=x[rows])
            optimizer.step()
        cl.end()
    return cl


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# Outputs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["er", "der_plus_plus", "lwf", "agem"])
def test_a_model_in_eval_mode_is_trained_as_the_same_model_without_dropout_in_training_mode(name: str) -> None:
    nets = [net(), net()]
    train(nets[0], getattr(methods, name)(), mode=False)
    train(nets[1], getattr(methods, name)())
    torch.testing.assert_close(weights(nets[0]), weights(nets[1]), rtol=1e-5, atol=1e-6)


def test_an_evaluation_with_gradients_in_between_changes_nothing() -> None:
    nets = [net(), net()]
    x, y = blobs(0)
    for model, looks in zip(nets, (False, True)):
        cl = Continual(model, methods.er(), optimizer := sgd(model))
        for rows in torch.arange(32).split(8):
            outputs = model(x[rows])
            if looks:
                model.eval()
                model(x)
                model.train()
            optimizer.zero_grad()
            cl.backward(F.cross_entropy(outputs, y[rows]), y[rows], inputs=x[rows])
            optimizer.step()
    assert torch.equal(weights(nets[0]), weights(nets[1]))


Found = namedtuple("Found", "features scores")


class Returns(nn.Module):
    """Returns its outputs within something else."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.make, self.body, self.top = make, nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        z = F.relu(self.body(x))
        return self.make(z, self.top(z))


@pytest.mark.parametrize("name", ["er", "der_plus_plus", "agem", "lwf", "ewc", "icarl"])
@pytest.mark.parametrize(
    ("make", "outputs"),
    [
        (lambda z, out: (z, out), lambda found: found[1]),
        (Found, lambda found: found.scores),
        (lambda z, out: {"hidden": [z], "top": {"scores": out}}, lambda found: found["top"]["scores"]),
    ],
)
def test_of_what_a_model_returns_the_outputs_are_what_the_loss_is_of(name: str, make: Any, outputs: Any) -> None:
    wrapped, plain = Returns(make), Returns(lambda z, out: out)
    for model, take in ((wrapped, outputs), (plain, lambda out: out)):
        method, optimizer = getattr(methods, name)(), sgd(model)
        cl = Continual(model, method, optimizer)
        for low in (0, 2):
            x, y = blobs(low)
            data = cl.begin(TensorData(x, y))
            for batch in data.batches(torch.arange(len(data)), 8):
                found = take(model(batch.inputs))
                loss = cl.loss(found, batch.targets) if name == "icarl" else F.cross_entropy(found, batch.targets)
                optimizer.zero_grad()
                cl.backward(loss, batch.targets, inputs=batch.inputs)
                optimizer.step()
            cl.end()
    torch.testing.assert_close(weights(wrapped), weights(plain))


def test_where_the_loss_is_of_none_of_the_tensors_that_a_model_returns_it_is_asked_which_are_its_outputs() -> None:
    model = Returns(lambda z, out: (z, out))
    cl = Continual(model, methods.lwf(), sgd(model))
    x, y = blobs(0)
    cl.begin(TensorData(x, y))
    with pytest.raises(UsageError, match=r"returned\[0\] of shape \(32, 16\), returned\[1\].*output="):
        cl.backward(model(x)[1].square().mean(), y, inputs=x)


class OwnLoss(nn.Module):
    """Computes its loss itself, and returns it beside its logits, as GPT-like models and transformers do."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.top, self.make = nn.Linear(6, 4), make

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Any:
        logits = self.top(x)
        return self.make(logits, None if targets is None else F.cross_entropy(logits, targets))


@pytest.mark.parametrize("make", [lambda logits, loss: (logits, loss), lambda logits, loss: {"l": loss, "o": logits}])
def test_a_loss_that_the_model_computes_is_that_of_the_callers_rows(make: Any) -> None:
    found = []
    for inside in (True, False):
        model = OwnLoss(make)
        cl = Continual(model, methods.er(size=16), optimizer := sgd(model))
        for low in (0, 0, 2):
            x, y = blobs(low)
            returned = model(x, targets=y) if inside else model(x)
            logits, loss = returned if isinstance(returned, tuple) else (returned["o"], returned["l"])
            assert logits.shape == (32, 4)
            optimizer.zero_grad()
            named = {"x": x, "targets": y} if inside else {"x": x}
            cl.backward(loss if inside else F.cross_entropy(logits, y), y, inputs=named)
            optimizer.step()
        found.append(weights(model))
    torch.testing.assert_close(found[0], found[1])


# Inputs ------------------------------------------------------------------------------------------------------


def test_what_is_remembered_is_what_the_model_saw_and_that_is_said_once() -> None:
    model = nn.Linear(6, 3)
    cl = Continual(model, methods.der_plus_plus(), optimizer := sgd(model))
    raw, y = torch.randint(0, 256, (16, 6), dtype=torch.uint8), torch.randint(0, 3, (16,))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for rows in torch.arange(16).split(4):
            optimizer.zero_grad()
            cl.backward(F.cross_entropy(model(raw[rows].float() / 255), y[rows]), y[rows], inputs=raw[rows])
            optimizer.step()
    assert len([one for one in told if "prepare" in str(one.message)]) == 1
    assert torch.equal(cl.learner.memory.all()["inputs"], raw.float() / 255)


def test_a_copy_of_what_the_model_saw_is_as_good_as_that() -> None:
    model = nn.Linear(6, 3)
    cl = Continual(model, methods.er(), optimizer := sgd(model))
    x, y = torch.randn(8, 6), torch.randint(0, 3, (8,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            optimizer.zero_grad()
            cl.backward(F.cross_entropy(model(x.clone()), y), y, inputs=x)
            optimizer.step()


class Flagged(nn.Module):
    """Takes an argument that is no tensor, with a default that means something else."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = nn.ModuleDict({"a": nn.Linear(6, 2), "b": nn.Linear(6, 2)})

    def forward(self, x: Tensor, which: str = "a", scale: float = 1.0) -> Tensor:
        return scale * self.heads[which](x)


def test_arguments_that_are_no_tensors_reach_every_other_forward() -> None:
    model = Flagged()
    cl = Continual(model, methods.der_plus_plus(), optimizer := sgd(model))
    x, y = torch.randn(8, 6), torch.randint(0, 2, (8,))
    for _ in range(4):
        optimizer.zero_grad()
        cl.backward(F.cross_entropy(model(x, "b", scale=2.0), y), y, inputs=x)
        optimizer.step()
    assert model.heads["a"].weight.grad is None
    torch.testing.assert_close(cl.predict(x), model(x, "b", scale=2.0))


@pytest.mark.parametrize("name", ["er", "der_plus_plus", "agem"])
def test_an_argument_that_says_which_task_it_is_cannot_change_unnoticed(name: str) -> None:
    model = Flagged()
    cl = Continual(model, getattr(methods, name)(), optimizer := sgd(model))
    x, y = torch.randn(8, 6), torch.randint(0, 2, (8,))
    cl.backward(F.cross_entropy(model(x, "a"), y), y, inputs=x)
    optimizer.step()
    with pytest.raises(UsageError, match=r"which='b' now.*a tensor with a row per sample"):
        cl.backward(F.cross_entropy(model(x, "b"), y), y, inputs=x)


class Coder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encode, self.decode = nn.Linear(6, 3), nn.Linear(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x)


@pytest.mark.parametrize("name", ["er", "mas", "lwf", "agem", "ewc"])
def test_a_model_trained_past_its_forward_is_refused_before_the_first_step(name: str) -> None:
    model = Coder()
    start = weights(model)
    cl = Continual(model, getattr(methods, name)(), sgd(model), criterion=F.mse_loss if name != "lwf" else None)
    x, y = blobs(0)
    target = y if name == "lwf" else x
    cl.begin(TensorData(x, target))
    with pytest.raises(UsageError, match=r"without a forward"):
        cl.backward(F.mse_loss(model.decode(model.encode(x)), x), target, inputs=x)
    assert torch.equal(weights(model), start)


def test_a_method_that_makes_no_forwards_works_past_the_models_own() -> None:
    model = Coder()
    cl = Continual(model, methods.si(), optimizer := sgd(model))
    x, _ = blobs(0)
    cl.begin()
    for _ in range(3):
        optimizer.zero_grad()
        cl.backward(F.mse_loss(model.decode(model.encode(x)), x), x, inputs=x)
        optimizer.step()
    cl.end()
    assert all(value.abs().sum() > 0 for value in cl.method.operations[0].importance.values())


class Text(nn.Module):
    """Tokens of any length, with a mask: padding changes nothing."""

    def __init__(self, padding: int | None = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.top = nn.Embedding(20, 8, padding_idx=padding), nn.Linear(8, 4)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        mask = (ids != 0).float() if attention_mask is None else attention_mask.float()
        return self.top((self.embed(ids) * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["er", "der_plus_plus", "agem", "gem", "gss"])
def test_text_padded_per_batch_is_remembered_with_its_padding(name: str, masked: bool, accumulate: int) -> None:
    model = Text()
    cl = Continual(model, getattr(methods, name)(), optimizer := sgd(model), accumulate=accumulate)
    if name == "gem":
        cl.begin()
    for place, length in enumerate((5, 7, 4, 9)):
        ids, y = torch.randint(1, 20, (8, length)), torch.randint(0, 4, (8,))
        named = {"ids": ids, "attention_mask": torch.ones(8, length, dtype=torch.int64)} if masked else {"ids": ids}
        if place % accumulate == 0:
            optimizer.zero_grad()
        cl.backward(F.cross_entropy(model(**named), y), y, inputs=named if masked else ids)
        if place % accumulate == accumulate - 1:
            optimizer.step()
    kept = cl.learner.memory.all()["inputs"]
    ids = kept["ids"] if masked else kept
    assert ids.shape[1] == 9
    assert (ids[:, 7:] == 0).any()
    if masked:
        assert torch.equal(kept["attention_mask"].bool(), ids != 0)


def test_padding_that_nobody_knows_is_asked_for() -> None:
    batches = [(torch.randint(1, 20, (8, length)), torch.randint(0, 4, (8,))) for length in (5, 7)]
    for pad, fails in ((None, True), (0, False)):
        model = Text(padding=None)
        cl = Continual(model, methods.er(), optimizer := sgd(model), pad=pad)
        for place, (ids, y) in enumerate(batches):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(ids), y)
            if fails and place:
                with pytest.raises(DataError, match=r"Continual\(\.\.\., pad=0\)"):
                    cl.backward(loss, y, inputs=ids)
            else:
                cl.backward(loss, y, inputs=ids)
            optimizer.step()


def test_a_memory_beside_the_model_gives_its_rows_to_the_model() -> None:
    from holdfast.memory import Memory, Ring, Uniform

    memory = Memory(4, insertion=Ring(), device="cpu", gives=torch.device("meta"))
    memory.add({"inputs": torch.randn(4, 2), "targets": torch.arange(4)})
    drawn = memory.draw(2, Uniform(torch.Generator().manual_seed(0)))
    assert drawn is not None
    assert drawn["inputs"].device.type == drawn["targets"].device.type == "meta"
    assert memory.device == torch.device("cpu")
    assert memory.column("targets").device.type == "cpu"


@pytest.mark.parametrize("name", ["er", "der_plus_plus", "gss", "gem", "er_exemplars", "gdumb"])
def test_every_memory_is_kept_where_it_is_asked_for(name: str) -> None:
    cl = Continual(model := net(), getattr(methods, name)(), sgd(model), memory_device="meta")
    assert cl.learner.services.memory_device == torch.device("meta")
    assert cl.learner.memory.device == torch.device("meta")


class Steps(nn.Module):
    """Steps first, samples second, as `nn.GRU` has it; or the other way round."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.rnn, self.top = nn.Embedding(9, 8), nn.GRU(8, 8, batch_first=batch_first), nn.Linear(8, 9)

    def forward(self, ids: Tensor) -> Tensor:
        return self.top(self.rnn(self.embed(ids))[0])


@pytest.mark.parametrize("name", ["er", "der_plus_plus", "agem", "ewc", "si"])
def test_steps_that_come_before_samples_are_noticed_though_nothing_else_shows_them(name: str) -> None:
    for batch_first in (True, False):
        model = Steps(batch_first)
        cl = Continual(model, getattr(methods, name)(), optimizer := sgd(model))
        ids = torch.randint(0, 9, (5, 6), generator=torch.Generator().manual_seed(0))
        cl.begin(TensorData(ids, ids))
        for _ in range(2):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
            if batch_first or name == "si":
                cl.backward(loss, ids, inputs=ids)
            else:
                with pytest.raises(UsageError, match="brings rows to the first dimension"):
                    cl.backward(loss, ids, inputs=ids)
                break
            optimizer.step()


def loader(low: int, **settings: Any) -> DataLoader:
    x, y = blobs(low)
    return DataLoader(TensorDataset(x, y), batch_size=8, **settings)


@pytest.mark.parametrize("name", ["er", "ewc", "lwf", "icarl"])
def test_a_loader_is_taken_wherever_data_is_asked_for(name: str) -> None:
    found = []
    for ours in (True, False):
        model = net()
        cl = Continual(model, getattr(methods, name)(), optimizer := sgd(model))
        for low in (0, 2):
            given = loader(low)
            data = cl.begin(TensorData(*blobs(low)) if ours else given)
            batches = data.batches(torch.arange(len(data)), 8) if ours else data
            if name != "icarl" and not ours:
                assert data is given
            for batch in batches:
                x, y = (batch.inputs, batch.targets) if ours else batch
                optimizer.zero_grad()
                outputs = model(x)
                loss = cl.loss(outputs, y) if name == "icarl" else F.cross_entropy(outputs, y)
                cl.backward(loss, y, inputs=x)
                optimizer.step()
            cl.end()
        found.append(weights(model))
    assert torch.equal(found[0], found[1])


def test_data_sets_and_lists_of_batches_are_data_and_what_is_none_is_refused() -> None:
    for given in (loader(0).dataset, list(loader(0)), [{"x": x, "labels": y} for x, y in loader(0)]):
        cl = Continual(net(), methods.icarl())
        cl.begin(given)
        assert cl.experience is not None
        assert cl.experience.classes == (0, 1)
    for wrong in (5, "data", [1, 2]):
        with pytest.raises(UsageError, match="a loader or a list of batches"):
            Continual(net(), methods.ewc()).begin(wrong)


# Labels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["er", "er_ace", "der_plus_plus", "lwf", "agem", "ewc", "si"])
@pytest.mark.parametrize("last", [False, True])
def test_a_class_at_each_position_works(name: str, last: bool) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 4) if last else nn.Conv2d(3, 4, 1)
    criterion = (lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten())) if last else nn.CrossEntropyLoss()
    cl = Continual(model, getattr(methods, name)(), optimizer := sgd(model), criterion=criterion)
    for low in (0, 2):
        x = torch.randn(16, 5, 6) if last else torch.rand(16, 3, 5, 5)
        y = torch.randint(low, low + 2, (16, 5) if last else (16, 5, 5))
        y[:, 0] = -100
        cl.begin(TensorData(x, y))
        for rows in torch.arange(16).split(8):
            optimizer.zero_grad()
            cl.backward(criterion(model(x[rows]), y[rows]), y[rows], inputs=x[rows])
            optimizer.step()
        cl.end()
        assert cl.learner.members[-1] == (low, low + 1)
    assert weights(model).isfinite().all()


@pytest.mark.parametrize("name", ["icarl", "bic", "er_exemplars", "gdumb"])
def test_a_method_of_one_class_a_sample_is_refused_before_the_first_step_where_there_are_several(name: str) -> None:
    model = nn.Conv2d(3, 4, 1)
    cl = Continual(model, getattr(methods, name)(), sgd(model), criterion=nn.CrossEntropyLoss())
    with pytest.raises(NeedError, match="one at each position"):
        cl.begin(TensorData(torch.rand(8, 3, 5, 5), torch.randint(0, 2, (8, 5, 5))))


def test_labels_that_count_for_nothing_are_no_classes_where_nobody_announces_them() -> None:
    model = net()
    criterion = nn.CrossEntropyLoss(ignore_index=255)
    cl = Continual(model, methods.lwf(), optimizer := sgd(model), criterion=criterion)
    for low in (0, 2):
        x, y = blobs(low)
        y[::5] = 255
        cl.begin()
        optimizer.zero_grad()
        cl.backward(criterion(model(x), y), y, inputs=x)
        optimizer.step()
        cl.end()
    assert cl.learner.members == [(0, 1), (2, 3)]


def test_labels_that_count_for_nothing_open_no_experience_and_compete_with_no_class() -> None:
    model = net()
    cl = Continual(model, methods.er_ace(), optimizer := sgd(model), boundary=OnNewClass())
    for low in (0, 0, 2):
        x, y = blobs(low)
        y[::4] = -100
        optimizer.zero_grad()
        cl.backward(F.cross_entropy(model(x), y), y, inputs=x)
        optimizer.step()
    assert cl.learner.experience == 1
    assert weights(model).isfinite().all()


def test_a_method_that_needs_a_class_for_every_sample_says_so_of_ignored_labels() -> None:
    model = net()
    x, y = blobs(0)
    y[3] = -100
    with pytest.raises(UsageError, match="are -100, which count for nothing"):
        Continual(model, methods.icarl(), sgd(model)).begin(TensorData(x, y))


@pytest.mark.parametrize("name", ["replay", "er", "der_plus_plus", "cls_er", "mer", "agem"])
def test_a_draw_of_samples_whose_labels_all_count_for_nothing_adds_nothing(name: str) -> None:
    model = net()
    alone = Method(Replay(size=4), Remember(capacity=8))
    cl = Continual(model, alone if name == "replay" else getattr(methods, name)(), optimizer := sgd(model))
    x, y = blobs(0)
    y[:24] = -100
    for rows in torch.arange(32).split(4):
        optimizer.zero_grad()
        outputs = model(x[rows])
        loss = F.cross_entropy(outputs, y[rows], reduction="sum") / 4
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cl.backward(loss, y[rows], inputs=x[rows])
        optimizer.step()
    assert weights(model).isfinite().all()


def test_a_memory_of_classes_keeps_no_sample_whose_label_counts_for_nothing() -> None:
    model = net()
    method = Method(Replay(size=4), Remember(capacity=4, policy="balanced_reservoir"))
    cl = Continual(model, method, optimizer := sgd(model))
    for place in range(12):
        y = torch.arange(4)
        if place > 3:
            y[:3] = -100
        optimizer.zero_grad()
        x = torch.randn(4, 6)
        cl.backward(F.cross_entropy(model(x), y), y, inputs=x)
        optimizer.step()
    assert cl.learner.memory.all()["targets"].sort().values.tolist() == [0, 1, 2, 3]


# The loss ----------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_what_old_samples_get_is_said_once() -> None:
    model = net()
    x, y = blobs(0)
    cl = Continual(model, methods.agem(), optimizer := sgd(model))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(4):
            optimizer.zero_grad()
            cl.backward(F.multi_margin_loss(model(x), y), y, inputs=x)
            optimizer.step()
    assert len([one for one in told if "criterion=" in str(one.message)]) == 1


@pytest.mark.parametrize("name", ["er", "si", "ewc"])
def test_the_same_loss_in_other_words_is_said_nothing_of(name: str) -> None:
    model = nn.Sequential(net(), nn.LogSoftmax(1))
    x, y = blobs(0)
    cl = Continual(model, getattr(methods, name)(), optimizer := sgd(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cl.begin(TensorData(x, y))
        for _ in range(4):
            optimizer.zero_grad()
            cl.backward(F.nll_loss(model(x), y), y, inputs=x)
            optimizer.step()


def test_a_loss_divided_by_the_batches_of_a_step_is_refused() -> None:
    model = net()
    x, y = blobs(0)
    cl = Continual(model, methods.er(), sgd(model), accumulate=4)
    with pytest.raises(UsageError, match=r"accumulate=4\. Give the undivided"):
        cl.backward(F.cross_entropy(model(x), y) / 4, y, inputs=x)


def test_a_language_models_loss_is_known_without_being_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9))
    cl = Continual(model, methods.er(), optimizer := sgd(model))
    for _ in range(2):
        ids = torch.randint(0, 9, (8, 5))
        optimizer.zero_grad()
        cl.backward(F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()), ids, inputs=ids)
        optimizer.step()
    assert cl.learner.criterion is next_position_cross_entropy


def test_a_criterion_that_cannot_be_taken_of_the_outputs_is_refused_in_the_first_step() -> None:
    model = nn.Linear(6, 4)
    cl = Continual(model, methods.er(), sgd(model))
    x, y = torch.randn(8, 5, 6), torch.randint(0, 4, (8,))
    with pytest.raises(UsageError, match=r"replayed samples get it\. Pass the loss of your loop"):
        cl.backward(F.cross_entropy(model(x).mean(1), y), y, inputs=x)


# The optimiser -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["er", "si", "agem", "rwalk"])
@pytest.mark.parametrize("to_none", [True, False])
def test_a_step_that_the_loop_leaves_out_is_no_step(name: str, to_none: bool) -> None:
    model = net()
    cl = Continual(model, getattr(methods, name)(), optimizer := sgd(model))
    x, y = blobs(0)
    cl.begin(TensorData(x, y))
    for place, rows in enumerate(torch.arange(32).split(8)):
        optimizer.zero_grad(set_to_none=to_none)
        cl.backward(F.cross_entropy(model(x[rows]), y[rows]), y[rows], inputs=x[rows])
        if place != 1:
            optimizer.step()
    cl.end()


def test_of_two_passes_for_one_step_backward_gets_the_last() -> None:
    model = net()
    cl = Continual(model, methods.er(), optimizer := sgd(model))
    for low in (0, 2, 2):
        x, y = blobs(low)
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            away = [p.grad * 0.05 for p in model.parameters()]
            torch._foreach_add_(list(model.parameters()), away)
        optimizer.zero_grad()
        cl.backward(F.cross_entropy(model(x), y), y, inputs=x)
        with torch.no_grad():
            torch._foreach_sub_(list(model.parameters()), away)
        optimizer.step()
    assert len(cl.learner.memory) == 96


@pytest.mark.parametrize("name", ["er", "der_plus_plus", "ewc", "agem", "lwf", "mas"])
def test_all_gradients_within_one_move_of_lbfgs_are_of_the_same_samples_and_remembered_once(name: str) -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    cl = Continual(model, getattr(methods, name)(), optimizer)
    evaluations = []
    for low in (0, 2):
        x, y = blobs(low)
        cl.begin(TensorData(x, y))
        for rows in torch.arange(32).split(8):
            inputs, targets, losses = x[rows], y[rows], []

            def closure(inputs: Tensor = inputs, targets: Tensor = targets, losses: list[float] = losses) -> Tensor:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(inputs), targets)
                before = cl.engine.index
                cl.backward(loss, targets, inputs=inputs)
                assert cl.engine.index == before
                losses.append(float(loss.detach()))
                return loss

            optimizer.step(closure)
            evaluations.append(losses)
        cl.end()
    assert cl.engine.index == 8
    assert all(len(losses) > 1 for losses in evaluations)
    if cl.learner.memory is not None:
        assert cl.learner.memory.seen == 64


@pytest.mark.parametrize("name", ["si", "rwalk"])
def test_a_method_that_follows_each_move_is_refused_with_lbfgs_in_words_that_name_it(name: str) -> None:
    model = net()
    with pytest.raises(ConfigError, match=r"LBFGS moves them several times a step, within its closure"):
        Continual(model, getattr(methods, name)(), torch.optim.LBFGS(model.parameters()))


@pytest.mark.parametrize("name", ["si", "rwalk", "er"])
def test_two_optimizers_over_one_model_are_one_over_all(name: str) -> None:
    found = []
    for several in (False, True):
        model = net()
        parts = [model[0], model[2]] if several else [model]
        optimizers = [sgd(part) for part in parts]
        cl = Continual(model, getattr(methods, name)(), optimizers)
        for low in (0, 2):
            x, y = blobs(low)
            cl.begin(TensorData(x, y))
            for rows in torch.arange(32).split(8):
                for one in optimizers:
                    one.zero_grad()
                cl.backward(F.cross_entropy(model(x[rows]), y[rows]), y[rows], inputs=x[rows])
                for one in optimizers:
                    one.step()
            cl.end()
        found.append(weights(model))
    assert torch.equal(found[0], found[1])


def test_one_of_two_optimizers_is_refused_where_the_method_acts_after_the_move() -> None:
    model = net()
    with pytest.raises(ConfigError, match=r"lacks some that train \(2\.weight, 2\.bias\)"):
        Continual(model, methods.rwalk(), sgd(model[0]))
    model[2].requires_grad_(False)
    Continual(model, methods.si(), sgd(model[0]))
    Continual(net(), methods.er())


# Models ------------------------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.mid, self.top = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        if self.training and self.reentrant:
            return self.top(checkpoint(lambda z: F.relu(self.mid(z)), z, use_reentrant=True))
        return self.top(F.relu(self.mid(z)))


@pytest.mark.parametrize("name", ["agem", "gem", "mir", "er"])
def test_reentrant_checkpoints_change_no_weight(name: str) -> None:
    found = []
    for reentrant in (True, False):
        model = Checkpointed(reentrant)
        train(model, getattr(methods, name)())
        found.append(weights(model))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("name", ["si", "rwalk", "agem", "gem", "ewc"])
def test_sparse_gradients_change_no_weight(name: str) -> None:
    found = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.EmbeddingBag(20, 8, sparse=sparse, mode="sum"), nn.Linear(8, 4))
        cl = Continual(model, getattr(methods, name)(), optimizer := sgd(model))
        generator = torch.Generator().manual_seed(1)
        for _ in range(2):
            x = torch.randint(0, 20, (32, 5), generator=generator)
            y = torch.randint(0, 4, (32,), generator=generator)
            cl.begin(TensorData(x, y))
            for rows in torch.arange(32).split(8):
                optimizer.zero_grad()
                cl.backward(F.cross_entropy(model(x[rows]), y[rows]), y[rows], inputs=x[rows])
                optimizer.step()
            cl.end()
        found.append(weights(model))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("name", ["finetune", "er", "der_plus_plus", "mas"])
def test_a_last_batch_of_one_is_normalised_by_the_statistics_of_those_before(name: str) -> None:
    y = torch.arange(4).repeat_interleave(17)[:66]
    x = torch.randn(66, 6, generator=torch.Generator().manual_seed(0)) + y[:, None]
    stream = streams.split(datasets.arrays(x.numpy(), y.numpy(), test_inputs=x.numpy(), test_targets=y.numpy()), 2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    sizes = {len(experience.train) % 11 for experience in stream}
    Trainer(getattr(methods, name)(), optimizer={"name": "SGD", "lr": 0.05}, batch_size=33).fit(model, stream)
    assert sizes
    assert weights(model).isfinite().all()
    assert model[1].training


def test_a_batch_of_one_without_running_statistics_names_what_to_write() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 4))
    cl = Continual(model, methods.finetune(), sgd(model))
    with pytest.raises(UsageError, match="drop_last=True"):
        cl(torch.randn(1, 6))


# Loops that would be wrong without a word --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["er", "ewc", "lwf", "si", "agem"])
@pytest.mark.parametrize("forward", ["model", "cl"])
def test_a_loop_that_keeps_its_own_backward_is_refused(name: str, forward: str) -> None:
    model, (x, y) = net(), blobs(0)
    cl = Continual(model, getattr(methods, name)(), optimizer := sgd(model))
    cl.begin(TensorData(x, y))

    def loop() -> None:
        for rows in torch.arange(32).split(8):
            optimizer.zero_grad()
            F.cross_entropy((model if forward == "model" else cl)(x[rows]), y[rows]).backward()
            optimizer.step()

    with pytest.raises(UsageError, match=rf"`{name}` was never asked for a gradient.*cl\.backward\(loss, targets"):
        loop()


class Centred(nn.Module):
    """Takes the mean off its inputs where they are."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.sub_(0.5))


@pytest.mark.parametrize("name", ["er", "lwf", "ewc"])
@pytest.mark.parametrize("way", ["model", "cl", "trainer"])
def test_a_model_that_writes_into_its_inputs_is_refused(name: str, way: str) -> None:
    model, (x, y) = Centred(), blobs(0)

    def loop() -> None:
        if way == "trainer":
            data = datasets.arrays(x.numpy(), y.numpy())
            Trainer(getattr(methods, name)(), optimizer={"name": "SGD", "lr": 0.1}).fit(model, streams.split(data, 1))
        else:
            cl = Continual(model, getattr(methods, name)(), sgd(model))
            (model if way == "model" else cl)(x[:8])

    with pytest.raises(UsageError, match="changes its inputs in place"):
        loop()


@pytest.mark.parametrize("name", ["er", "ewc", "si", "agem"])
def test_an_optimiser_for_sparse_gradients_alone_works_or_says_whose_are_dense(name: str) -> None:
    torch.manual_seed(0)
    table, head = nn.EmbeddingBag(20, 8, sparse=True), nn.Linear(8, 4)
    model = nn.Sequential(table, head)
    both = [torch.optim.SparseAdam(list(table.parameters())), torch.optim.Adam(head.parameters())]
    cl = Continual(model, getattr(methods, name)(), both)

    def two_experiences() -> None:
        for low in (0, 2):
            x, y = torch.randint(0, 20, (16, 5)), torch.randint(low, low + 2, (16,))
            cl.begin(TensorData(x, y))
            for rows in torch.arange(16).split(8):
                for one in both:
                    one.zero_grad()
                cl.backward(F.cross_entropy(model(x[rows]), y[rows]), y[rows], inputs=x[rows])
                for one in both:
                    one.step()
            cl.end()

    if name == "er":
        two_experiences()
    else:
        with pytest.raises(UsageError, match=f"SparseAdam .*`{name}` adds to the gradient"):
            two_experiences()


def test_data_of_another_type_than_the_models_weights_and_complex_targets_say_what_to_write() -> None:
    model, (x, y) = net(), blobs(0)
    cl = Continual(model, methods.ewc(), optimizer := sgd(model))
    cl.begin(TensorData(x.double(), y))
    cl.backward(F.cross_entropy(cl(x), y), y, inputs=x)
    optimizer.step()
    with pytest.raises(UsageError, match=r"weights are torch\.float32, and it got inputs of torch\.float64"):
        cl.end()
    cl = Continual(model := net(), methods.er(), sgd(model))
    with pytest.raises(UsageError, match=r"targets are torch\.complex64.*criterion="):
        cl.backward(cl(x).square().mean(), torch.complex(x, x), inputs=x)
