"""The drop-in in loops of other people: their precision, their inputs, their way of stepping."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast import Continual, Every, Method, OnNewClass, methods
from holdfast.core.boundary import Boundary
from holdfast.operations import GradientProjection, LogitReplay, Remember, Replay
from holdfast.streams.data import TensorData
from holdfast.testing.toys import model_for


def batches(
    count: int, rows: int = 8, features: int = 4, classes: int = 3, seed: int = 0
) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, rows, features, generator=generator)
    y = torch.randint(0, classes, (count, rows), generator=generator)
    return list(zip(x, y))


def net(features: int = 4, classes: int = 3, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(features, 7), nn.Tanh(), nn.Linear(7, classes))


def sgd(model: nn.Module, **other: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, **other)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


def run(cl: Continual, data: list[tuple[Tensor, Tensor]], optimizer: torch.optim.Optimizer, model: Any = None) -> None:
    for x, y in data:
        loss = F.cross_entropy((cl.model if model is None else model)(x), y)
        optimizer.zero_grad()
        cl.backward(loss, y, inputs=x)
        optimizer.step()


# Precision -------------------------------------------------------------------------------------------------


def test_replayed_samples_go_through_the_same_autocast_as_the_current_ones() -> None:
    model = net()
    seen: list[torch.dtype] = []
    model.register_forward_hook(lambda _m, _a, out: seen.append(out.dtype))
    optimizer = sgd(model)
    method = Method(Replay(size=4), LogitReplay(size=4), GradientProjection(size=4), Remember(capacity=20))
    cl = Continual(model, method, optimizer)
    for x, y in batches(4):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        cl.backward(loss, y, inputs=x)
        optimizer.step()
    assert len(seen) == 1 + 3 * 4
    assert set(seen) == {torch.bfloat16}
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    seen.clear()
    x, y = batches(1)[0]
    cl.backward(F.cross_entropy(model(x), y), y, inputs=x)
    assert set(seen) == {torch.float32}, "autocast ended, and the other forwards must follow"


@pytest.mark.parametrize("name", ["er", "der_plus_plus", "agem", "si"])
def test_a_gradient_scaler_of_powers_of_two_changes_no_weight(name: str) -> None:
    models = [net(), net()]
    for model, scaled in zip(models, (False, True)):
        optimizer = sgd(model, momentum=0.5)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
        cl = Continual(model, getattr(methods, name)(), optimizer, scaler=scaler)
        for task in range(2):
            cl.begin()
            for x, y in batches(6, seed=task):
                loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad()
                cl.backward(loss, y, inputs=x)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                scaler.step(optimizer)
                scaler.update()
            cl.end()
    for a, b in zip(models[0].parameters(), models[1].parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_a_step_that_overflows_leaves_no_trace_in_the_method() -> None:
    model = net()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    cl = Continual(model, methods.der_plus_plus(capacity=50), optimizer, scaler=scaler)
    x, y = batches(1)[0]
    before = copy.deepcopy(model)
    for factor in (1e38, 1.0):
        loss = F.cross_entropy(model(x), y) * factor
        optimizer.zero_grad()
        cl.backward(loss, y, inputs=x)
        scaler.step(optimizer)
        scaler.update()
        assert same(model, before) == (factor > 1)
        assert len(cl.learner.memory) == (0 if factor > 1 else 8)


# Accumulation, clipping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["finetune", "ewc", "si", "lwf"])
def test_accumulated_batches_give_the_step_of_the_joined_batch(name: str) -> None:
    models = [net(), net()]
    for model, accumulate in zip(models, (1, 3)):
        optimizer = sgd(model, momentum=0.5)
        cl = Continual(model, getattr(methods, name)(), optimizer, accumulate=accumulate)
        for task in range(2):
            data = batches(12, rows=4, seed=task)
            cl.begin(TensorData(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])))
            for start in range(0, 12, 3):
                group = data[start : start + 3]
                if accumulate == 1:
                    group = [(torch.cat([x for x, _ in group]), torch.cat([y for _, y in group]))]
                optimizer.zero_grad()
                for x, y in group:
                    cl.backward(F.cross_entropy(model(x), y), y, inputs=x)
                optimizer.step()
            cl.end()
        assert cl.engine.index == 8
    for a, b in zip(models[0].parameters(), models[1].parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_accumulation_edits_the_gradient_once_and_remembers_every_row_with_its_own_outputs() -> None:
    edits: list[int] = []

    class Count(GradientProjection):
        def gradient(self, step: Any, learner: Any) -> None:
            edits.append(len(step.targets))

    model = net()
    optimizer = sgd(model)
    cl = Continual(model, Method(Count(), LogitReplay(size=4), Remember(capacity=100)), optimizer, accumulate=2)
    data = batches(5)
    expected = []
    for number, (x, y) in enumerate(data):
        outputs = model(x)
        expected.append(outputs.detach().clone())
        cl.backward(F.cross_entropy(outputs, y), y, inputs=x)
        assert len(cl.learner.memory) == 16 * ((number + 1) // 2)
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()
    optimizer.step()  # the last, smaller group
    assert edits == [16, 16, 8]
    held = cl.learner.memory.all()
    assert torch.equal(held["inputs"], torch.cat([x for x, _ in data]))
    torch.testing.assert_close(held["logits"], torch.cat(expected))


def test_path_integrals_see_the_clipped_gradient_that_moved_the_weights() -> None:
    model = net()
    optimizer = sgd(model)
    cl = Continual(model, methods.si(), optimizer)
    cl.begin()
    expected = [torch.zeros_like(p) for p in model.parameters()]
    for x, y in batches(5):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        cl.backward(loss, y, inputs=x)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
        for total, p, old in zip(expected, model.parameters(), before):
            total -= p.grad * (p.detach() - old)
    found = cl.method.operations[0].contribution.values()
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b)


# Inputs and outputs ----------------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, scale: float = 1.0) -> Any:
        values = self.embed(input_ids) * attention_mask.unsqueeze(-1)
        logits = self.head(scale * values.sum(1) / attention_mask.sum(1, keepdim=True))
        return {"logits": logits, "pooled": values.sum(1)}


@pytest.mark.parametrize("call", ["named", "positional", "mixed"])
@pytest.mark.parametrize("name", ["er", "der_plus_plus", "agem", "ewc"])
def test_named_inputs_reach_the_model_however_it_is_called(name: str, call: str) -> None:
    torch.manual_seed(0)
    model = TwoInputs()
    optimizer = sgd(model)
    cl = Continual(model, getattr(methods, name)(), optimizer)
    ids, y = torch.randint(0, 11, (40, 5)), torch.randint(0, 3, (40,))
    mask = (torch.arange(5) <= torch.randint(0, 5, (40, 1))).float()
    for _ in range(2):
        cl.begin(TensorData({"input_ids": ids, "attention_mask": mask}, y))
        for rows in torch.arange(40).split(8):
            a, m = ids[rows], mask[rows]
            if call == "named":
                found = model(input_ids=a, attention_mask=m)
            else:
                found = model(a, m, 1.0) if call == "positional" else model(a, attention_mask=m)
            assert found["logits"].shape == (8, 3)
            assert found["pooled"].shape == (8, 6)
            optimizer.zero_grad()
            cl.backward(F.cross_entropy(found["logits"], y[rows]), y[rows], input_ids=a, attention_mask=m)
            optimizer.step()
        cl.end()
    if name != "ewc":
        held = cl.learner.memory.all()["inputs"]
        assert set(held) == {"input_ids", "attention_mask"}
        pairs = {(tuple(i.tolist()), tuple(m.tolist())) for i, m in zip(ids, mask)}
        assert all(
            (tuple(i.tolist()), tuple(m.tolist())) in pairs for i, m in zip(held["input_ids"], held["attention_mask"])
        )


def test_of_two_forwards_backward_takes_the_outputs_of_the_inputs_it_is_given() -> None:
    model = net()
    cl = Continual(model, methods.der(capacity=50), sgd(model))
    (x, y), (other, _) = batches(2)
    outputs, _ = model(x), model(other)
    cl.backward(F.cross_entropy(outputs, y), y, inputs=x)
    assert torch.equal(cl.learner.memory.all()["logits"], outputs.detach())


def test_an_autoencoder_returning_two_tensors_is_replayed_with_its_reconstruction() -> None:
    class Auto(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(4, 2), nn.Linear(2, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            code = self.encoder(x)
            return code, self.decoder(code)

    model = Auto()
    optimizer = sgd(model)
    cl = Continual(
        model, methods.er(capacity=50, size=8), optimizer, criterion=F.mse_loss, output=lambda found: found[1]
    )
    for x, _ in batches(5):
        code, decoded = model(x)
        assert code.shape == (8, 2)
        assert decoded.shape == (8, 4)
        optimizer.zero_grad()
        cl.backward(F.mse_loss(decoded, x), x, inputs=x)
        optimizer.step()
    assert len(cl.learner.memory) == 40


# Boundaries ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ewc", "si", "lwf", "ewc_online"])
def test_a_boundary_every_n_steps_is_begin_and_end_called_with_the_window(name: str) -> None:
    models = [net(), net()]
    data = batches(12)
    window = Every(steps=4, window=32)
    optimizer = sgd(models[0])
    run(Continual(models[0], getattr(methods, name)(), optimizer, boundary=window), data, optimizer)
    optimizer = sgd(models[1])
    cl = Continual(models[1], getattr(methods, name)(), optimizer)
    for start in range(0, 12, 4):
        part = data[start : start + 4]
        cl.begin(classes=(0, 1, 2))
        run(cl, part, optimizer)
        if start < 8:
            cl.end(TensorData(torch.cat([x for x, _ in part]), torch.cat([y for _, y in part])))
    for a, b in zip(models[0].parameters(), models[1].parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_new_class_opens_an_experience_and_the_old_one_knows_its_classes() -> None:
    model = net(classes=6)
    optimizer = sgd(model)
    cl = Continual(model, methods.lwf(), optimizer, boundary=OnNewClass())
    for shift in (0, 2, 4):
        run(cl, [(x, y % 2 + shift) for x, y in batches(4)], optimizer)
    assert cl.learner.experience == 2
    assert cl.learner.members[:2] == [(0, 1), (2, 3)]
    assert cl.method.operations[0].old == [0, 1, 2, 3]


# Compiled models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["er", "ewc", *(pytest.param(name, marks=pytest.mark.slow) for name in ("der_plus_plus", "agem", "lwf"))]
)
def test_a_compiled_model_learns_the_weights_of_the_plain_one(name: str) -> None:
    models = [net(), net()]
    for model, compiled in zip(models, (False, True)):
        outer = torch.compile(model, backend="eager") if compiled else model
        optimizer = sgd(outer)
        cl = Continual(outer, getattr(methods, name)(), optimizer)
        for task in range(2):
            data = batches(4, seed=task)
            cl.begin(TensorData(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])))
            run(cl, data, optimizer, outer)
            cl.end()
    assert same(*models)


@pytest.mark.parametrize(
    ("name", "through"),
    [
        *(pytest.param(name, "the model", marks=pytest.mark.slow) for name in ("hat", "xdg", "packnet")),
        ("er", "the model"),
        pytest.param("er", "the wrapper", marks=pytest.mark.slow),
    ],
)
def test_a_model_compiled_after_binding_learns_the_weights_of_the_plain_one(name: str, through: str, toy: Any) -> None:
    stream = toy.stream("task")
    models = [toy.model(stream, "task"), toy.model(stream, "task")]
    for model, compiled in zip(models, (False, True)):
        optimizer = sgd(model)
        given = torch.compile(model, backend="eager") if compiled and through == "the wrapper" else model
        cl = Continual(given, getattr(methods, name)(), optimizer)
        call = cl if through == "the wrapper" else torch.compile(model, backend="eager") if compiled else model
        for experience in stream:
            data = cl.begin(experience, epochs=1, batch_size=4)
            for batch in data.batches(torch.arange(len(data)), 4):
                loss = F.cross_entropy(call(batch.inputs), batch.targets)
                optimizer.zero_grad()
                cl.backward(loss, batch.targets, inputs=batch.inputs)
                optimizer.step()
            cl.end()
    assert same(*models)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's default backend wants a C++ compiler")
@pytest.mark.parametrize("name", ["er", "der_plus_plus", "ewc", "agem", "lwf"])
def test_torchs_default_backend_agrees_up_to_rounding(name: str) -> None:
    models = [net(), net()]
    for model, compiled in zip(models, (False, True)):
        outer = torch.compile(model) if compiled else model
        optimizer = sgd(model)
        cl = Continual(outer, getattr(methods, name)(), optimizer)
        for task in range(2):
            data = batches(4, seed=task)
            cl.begin(TensorData(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])))
            run(cl, data, optimizer, outer)
            cl.end()
    for a, b in zip(models[0].parameters(), models[1].parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


# State -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", [None, Every(steps=3, window=16)])
@pytest.mark.parametrize("name", ["er", "der_plus_plus", "agem", "ewc", "si", "lwf"])
def test_saved_in_mid_stream_it_goes_on_with_equal_weights(name: str, boundary: Boundary | None, toy: Any) -> None:
    data = batches(12)
    whole = TensorData(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))

    def fresh() -> tuple[nn.Module, torch.optim.SGD, Continual]:
        model = net()
        optimizer = sgd(model, momentum=0.9)
        limit = None if boundary is None else Every(steps=3, window=16)
        return model, optimizer, Continual(model, getattr(methods, name)(), optimizer, boundary=limit)

    model, optimizer, cl = fresh()
    if boundary is None:
        cl.begin(whole)
        run(cl, data, optimizer)
        cl.end()
        cl.begin(whole)
    run(cl, data[:5], optimizer)
    state = toy.through_disk({"cl": cl.state_dict(), "optimizer": optimizer.state_dict()})
    other, moved, resumed = fresh()
    resumed.load_state_dict(state["cl"])
    moved.load_state_dict(state["optimizer"])
    for going, mover in ((cl, optimizer), (resumed, moved)):
        run(going, data[5:], mover)
        if boundary is None:
            going.end(whole)
            going.begin(whole)
            run(going, data[:3], mover)
    assert same(model, other)


def test_a_method_that_chose_its_data_is_resumed_by_handing_the_experience_over_again(toy: Any) -> None:
    stream = toy.stream()
    nets = [toy.model(stream), toy.model(stream)]
    optimizers = [sgd(n) for n in nets]
    one = Continual(nets[0], methods.cumulative(), optimizers[0], prepare=stream.prepare)
    one.begin(stream[0])
    one.end()
    data = one.begin(stream[1])
    x = data.gather(torch.arange(5))
    one.backward(F.cross_entropy(one(x.inputs), x.targets), x.targets, inputs=x.inputs)
    optimizers[0].step()
    two = Continual(nets[1], methods.cumulative(), optimizers[1], prepare=stream.prepare)
    two.load_state_dict(toy.through_disk(one.state_dict()))
    again = two.resume(stream[1])
    assert torch.equal(again.targets, data.targets)
    assert same(*nets)


# Export ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["er", "ewc"])
def test_the_exported_model_is_a_plain_copy_without_hooks(name: str) -> None:
    model = net()
    optimizer = sgd(model)
    cl = Continual(model, getattr(methods, name)(), optimizer)
    cl.begin()
    run(cl, batches(3), optimizer)
    plain = cl.export()
    assert type(plain) is nn.Sequential
    assert not plain.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in plain.modules())
    assert same(plain, model)
    frozen = copy.deepcopy(plain.state_dict())
    run(cl, batches(3, seed=1), optimizer)
    assert all(torch.equal(value, frozen[key]) for key, value in plain.state_dict().items())
    assert not same(plain, model)
    x = torch.randn(5, 4)
    assert torch.equal(cl.export()(x), cl.predict(x))


KINDS = {
    "er",
    "ewc",
    "lwf",
    "agem",
    "hat",
    "xdg",
    "packnet",
    "icarl",
    "slda",
    "gdumb",
    "infer_task",
    "hypernetwork_regularised",
}
"""Methods of each kind that predicts in its own way, and some that do not."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in KINDS else pytest.mark.slow) for name in methods.__all__]
)
def test_the_exported_model_predicts_as_the_wrapper_does(name: str, toy: Any) -> None:
    method = getattr(methods, name)()
    stream = toy.stream_for(method)
    model = model_for(method)(stream, "task" if "task" in method.needs else "fixed")
    cl = toy.wrap(method, model, stream, lambda p: torch.optim.SGD(p, lr=0.05))
    plain = cl.export()
    for experience in stream:
        batch = experience.test.gather(torch.arange(len(experience.test)))
        expected = cl.predict(batch.inputs, experience.task)
        with torch.no_grad():
            found = plain(batch.inputs, task=experience.task)
        assert torch.equal(found, expected)


def test_what_entered_the_loss_can_be_read() -> None:
    model = net()
    cl = Continual(model, Method(Replay(size=4, weight=0.5), Remember(capacity=20)), sgd(model))
    run(cl, batches(2), cl.optimizer)
    found = cl.losses()
    assert set(found) == {"loss", "replay"}
    assert found["loss"] > 0
    assert cl.losses() == {}


@pytest.mark.parametrize("name", ["finetune", "er", "der_plus_plus", "agem", "er_ace", "mer"])
def test_a_step_in_one_call_gives_the_weights_of_the_loop_in_full(name: str) -> None:
    from holdfast import methods

    found = []
    for in_one in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))
        optimizer = torch.optim.Adam(model.parameters())
        cl = Continual(model, getattr(methods, name)(), optimizer)
        data = torch.Generator().manual_seed(1)
        for _ in range(12):
            x, y = torch.randn(5, 4, generator=data), torch.randint(0, 3, (5,), generator=data)
            if in_one:
                cl.step(x, y)
                continue
            loss = cl.loss(cl(x), y, x)
            optimizer.zero_grad()
            cl.backward(loss, y, inputs=x)
            optimizer.step()
        found.append((cl.losses(), model.state_dict()))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(value, found[1][1][key]) for key, value in found[0][1].items())
