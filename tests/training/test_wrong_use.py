"""Wrong use of the drop-in: each is caught, with a sentence that says what to write instead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast import Continual, Every, Learner, Method, OnNewClass, Operation, StreamTrainer, methods
from holdfast.core.errors import ConfigError, NeedError, UsageError
from holdfast.models import mlp
from holdfast.operations import Remember
from holdfast.streams.data import TensorData


class OwnLoss(Operation):
    """A criterion of its own."""

    needs = frozenset({"criterion"})

    def criterion(self, outputs: Tensor, targets: Tensor, inputs: Any, learner: Learner) -> Tensor:
        return F.cross_entropy(outputs, targets, label_smoothing=0.5)


class OwnStep(Operation):
    """Takes the step itself."""

    def take_step(self, step: Any, learner: Learner, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        (3 * step.loss).backward()
        optimizer.step()


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 4, generator=generator), torch.randint(0, 3, (8,), generator=generator)


def step(cl: Continual, model: nn.Module, batch: tuple[Tensor, Tensor], move: bool = True) -> None:
    x, y = batch
    cl.backward(F.cross_entropy(model(x), y), y, inputs=x)
    if move and cl.optimizer is not None:
        cl.optimizer.step()


@pytest.mark.parametrize("name", ["er", "der_plus_plus", "agem", "finetune"])
def test_a_model_that_was_replaced_is_noticed(name: str, batch: Any) -> None:
    model = nn.Linear(4, 3)
    cl = Continual(model, getattr(methods, name)(), sgd(model))
    step(cl, model, batch)
    with pytest.raises(UsageError, match=r"without a forward.*new Continual"):
        step(cl, nn.Linear(4, 3), batch)


def test_a_model_that_was_never_called_is_noticed_at_the_first_step(batch: Any) -> None:
    model = nn.Linear(4, 3)
    with pytest.raises(UsageError, match="no gradient to any parameter"):
        step(Continual(model, methods.agem(), sgd(model)), nn.Linear(4, 3), batch)
    with pytest.raises(UsageError, match="without a forward"):
        step(Continual(model, methods.er(), sgd(model)), nn.Linear(4, 3), batch)
    with pytest.raises(UsageError, match="needs the model's outputs"):
        step(Continual(model, methods.der(), sgd(model)), nn.Linear(4, 3), batch)


def test_a_layer_that_was_replaced_is_noticed(batch: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    cl = Continual(model, methods.er(), sgd(model))
    step(cl, model, batch)
    model[1] = nn.Linear(5, 3)
    with pytest.raises(UsageError, match=r"1\.weight.*after replacing a layer"):
        step(cl, model, batch)


def test_layers_frozen_by_the_user_are_left_alone(batch: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    cl = Continual(model, methods.agem(), sgd(model))
    step(cl, model, batch)
    model[0].requires_grad_(False)
    step(cl, model, batch)
    assert [p.shape for p in cl.learner.parameters()] == [(3, 5), (3,)]


def test_an_optimizer_of_another_model_is_refused() -> None:
    model = nn.Linear(4, 3)
    with pytest.raises(ConfigError, match="holds none of the model's parameters"):
        Continual(model, methods.er(), sgd(nn.Linear(4, 3)))
    cl = Continual(model, methods.er(), sgd(model))
    with pytest.raises(ConfigError, match="holds none"):
        cl.optimizer = sgd(nn.Linear(4, 3))
    with pytest.raises(ConfigError, match=r"Give a torch\.optim\.Optimizer"):
        Continual(model, methods.er(), "SGD")  # type: ignore[arg-type]


def test_a_new_optimizer_is_noticed_and_can_be_assigned(batch: Any) -> None:
    model = nn.Linear(4, 3)
    cl = Continual(model, methods.si(), sgd(model))
    cl.begin()
    step(cl, model, batch)
    new = sgd(model)
    step(cl, model, batch, move=False)
    new.step()
    with pytest.raises(UsageError, match=r"assign cl\.optimizer"):
        step(cl, model, batch)
    cl.optimizer = new
    step(cl, model, batch)
    assert all(value.abs().sum() > 0 for value in cl.method.operations[0].contribution.values())


def test_undeclared_accumulation_is_noticed(batch: Any) -> None:
    model = nn.Linear(4, 3)
    cl = Continual(model, methods.er(), sgd(model))
    step(cl, model, batch, move=False)
    with pytest.raises(UsageError, match="accumulate="):
        step(cl, model, batch)


def test_a_missing_begin_or_end_is_noticed(batch: Any) -> None:
    model = nn.Linear(4, 3)
    cl = Continual(model, methods.ewc(), sgd(model))
    with pytest.raises(UsageError, match=r"Call begin\(\) before"):
        step(cl, model, batch)
    with pytest.raises(UsageError, match=r"without begin\(\)"):
        cl.end()
    cl.begin()
    step(cl, model, batch)
    with pytest.raises(UsageError, match=r"Call end\(\)"):
        cl.begin()
    with pytest.raises(UsageError, match=r"begin\(data\) or end\(data\)"):
        cl.end()
    cl.end(TensorData(*batch))


def test_begin_beside_a_boundary_is_refused() -> None:
    model = nn.Linear(4, 3)
    with pytest.raises(UsageError, match="Leave one of the two out"):
        Continual(model, methods.ewc(), sgd(model), boundary=Every(steps=5)).begin()


def test_a_growing_head_without_begin_is_noticed(batch: Any) -> None:
    model = mlp(input_shape=(4,), classes=3, hidden=[5], head="growing", seed=0)
    cl = Continual(model, methods.er(), sgd(model))
    with pytest.raises(UsageError, match=r"no outputs yet.*begin\(data\)"):
        step(cl, model, batch)
    with pytest.raises(UsageError, match="Pass optimizer="):
        Continual(mlp(input_shape=(4,), classes=3, head="growing", seed=0), methods.er()).begin(classes=(0, 1))


@pytest.mark.parametrize("boundary", [Every(steps=5), OnNewClass()])
def test_a_head_without_outputs_beside_a_boundary_is_refused(batch: Any, boundary: Any) -> None:
    model = mlp(input_shape=(4,), classes=3, hidden=[5], head="growing", seed=0)
    with pytest.raises(ConfigError, match=r"after the forward only.*model\.head\.grow"):
        Continual(model, methods.lwf(), sgd(model), boundary=boundary)
    with pytest.raises(ConfigError, match=r"announces none.*model\.head\.grow"):
        StreamTrainer(model, methods.er())
    model.head.grow(3)
    cl = Continual(model, methods.lwf(), sgd(model), boundary=boundary)
    step(cl, model, batch)
    assert cl.engine.index == 1


def test_a_foreign_loss_is_refused_where_the_method_brings_its_own(batch: Any) -> None:
    model = nn.Linear(4, 3)
    cl = Continual(model, Method(OwnLoss()), sgd(model))
    with pytest.raises(UsageError, match=r"cl\.loss\(outputs, targets\)"):
        step(cl, model, batch)
    x, y = batch
    loss = cl.loss(model(x), y)
    assert torch.equal(loss, F.cross_entropy(model(x), y, label_smoothing=0.5))
    model.zero_grad()
    outputs = model(x)
    cl.backward(cl.loss(outputs, y), y, inputs=x)


def test_targets_of_a_wrong_type_or_range_are_refused(batch: Any) -> None:
    model = nn.Linear(4, 3)
    x, y = batch
    cl = Continual(model, methods.er(), sgd(model))
    loss = F.cross_entropy(model(x), y)
    for wrong, sentence in (
        (y.float(), "Pass the criterion of your loop"),
        (y.int(), r"targets\.long\(\)"),
        (y.tolist(), "Pass a tensor"),
        (y[:3], "those of the same batch"),
        (y + 1000, "outputs for 0 to 2"),
        (y - 100, "Number the classes from 0"),
    ):
        with pytest.raises(UsageError, match=sentence):
            cl.backward(loss, wrong, inputs=x)


@pytest.mark.parametrize(
    ("criterion", "good", "wrong", "sentence"),
    [
        (None, torch.tensor([0, 1]), torch.tensor([0.0, 1.0]), "Pass the criterion of your loop"),
        (None, torch.tensor([0, 1]), torch.tensor([0, 3]), "outputs for 0 to 2"),
        (None, torch.tensor([0, 1]), torch.tensor([True, False]), r"targets\.long\(\)"),
        (nn.CrossEntropyLoss(label_smoothing=0.1), torch.tensor([0, 1]), torch.tensor([0, 3]), "outputs for 0 to 2"),
        (nn.CrossEntropyLoss(ignore_index=3), torch.tensor([0, 3]), torch.tensor([0, 4]), "outputs for 0 to 2"),
        (F.cross_entropy, torch.eye(3)[:2], torch.eye(4)[:2], r"targets of shape \(2, 4\)"),
        (F.nll_loss, torch.tensor([0, 1]), torch.tensor([0, -1]), "outputs for 0 to 2"),
        (F.mse_loss, torch.zeros(2, 3), torch.zeros(2), r"targets of shape \(2,\)"),
        (F.mse_loss, torch.zeros(2, 3), torch.tensor([0, 1]), "wants numbers"),
        (nn.L1Loss(), torch.zeros(2, 3), torch.zeros(2, 1), r"targets of shape \(2, 1\)"),
        (F.binary_cross_entropy_with_logits, torch.ones(2, 3), torch.tensor([0, 1]), "wants numbers"),
        (nn.BCEWithLogitsLoss(), torch.ones(2, 3), torch.full((2, 3), 2.0), "from 0 to 1"),
    ],
)
def test_targets_that_no_loss_of_their_kind_takes_are_refused(
    criterion: Any, good: Tensor, wrong: Tensor, sentence: str
) -> None:
    model, x = nn.Linear(4, 3), torch.randn(2, 4)
    cl = Continual(model, methods.er(), sgd(model), criterion=criterion)
    with pytest.raises(UsageError, match=sentence):
        cl.backward(model(x).square().mean(), wrong, inputs=x)
    cl.backward(model(x).square().mean(), good, inputs=x)
    cl.optimizer.step()


def test_a_loss_that_cannot_be_one_is_refused(batch: Any) -> None:
    model = nn.Linear(4, 3)
    x, y = batch
    cl = Continual(model, methods.er(), sgd(model))
    with pytest.raises(UsageError, match="a scalar with its graph"):
        cl.backward(F.cross_entropy(model(x), y, reduction="none"), y, inputs=x)
    with pytest.raises(UsageError, match="a scalar with its graph"):
        cl.backward(F.cross_entropy(model(x), y).detach(), y, inputs=x)
    with pytest.raises(UsageError, match="got no inputs"):
        cl.backward(F.cross_entropy(model(x), y), y)
    with pytest.raises(UsageError, match="rows"):
        cl.backward(F.cross_entropy(model(x), y), y[:4], inputs=x[:4])
    with pytest.raises(UsageError, match="tensors with a row per sample only"):
        cl.backward(F.cross_entropy(model(x), y), y, inputs={"x": x, "flag": True})  # type: ignore[dict-item]


def test_an_input_that_backward_did_not_get_is_replayed_all_the_same_and_that_is_said(batch: Any) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.head(x * mask)

    model = Two()
    x, y = batch
    cl = Continual(model, methods.er(), sgd(model))
    for _ in range(2):
        loss = F.cross_entropy(model(x, x > 0), y)
        if not len(cl.learner.memory):
            with pytest.warns(UserWarning, match="goes on with what the model was called with"):
                cl.backward(loss, y, x=x)
        else:
            cl.backward(loss, y, x=x)
        cl.optimizer.step()
    assert torch.equal(cl.learner.memory.all()["inputs"]["mask"][:8], x > 0)


def test_a_loop_that_cannot_offer_what_a_method_needs_is_refused_at_once() -> None:
    model = nn.Linear(4, 3)
    with pytest.raises(NeedError, match="Pass optimizer="):
        Continual(model, methods.si())
    with pytest.raises(NeedError, match="Leave boundary out"):
        Continual(model, methods.cumulative(), sgd(model), boundary=Every(steps=5))


def test_a_method_that_makes_the_step_itself_makes_it_once(batch: Any) -> None:
    model, x, y = nn.Linear(4, 3), *batch
    expected = [
        p.detach() - 0.3 * g
        for p, g in zip(model.parameters(), torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters())))
    ]
    cl = Continual(model, Method(OwnStep()), sgd(model))
    step(cl, model, batch)
    for p, value in zip(model.parameters(), expected):
        torch.testing.assert_close(p.detach(), value)
    with pytest.raises(ConfigError, match="neither accumulate nor scaler"):
        Continual(model, Method(OwnStep()), sgd(model), accumulate=2)


def test_a_model_compiled_in_place_is_refused_before_and_after_binding(batch: Any) -> None:
    model = nn.Linear(4, 3)
    model.compile(backend="eager")
    with pytest.raises(ConfigError, match=r"Continual\(torch\.compile\(model\)"):
        Continual(model, methods.er(), sgd(model))
    model = nn.Linear(4, 3)
    cl = Continual(model, methods.finetune(), sgd(model))
    step(cl, model, batch)
    model.compile(backend="eager")
    with pytest.raises(UsageError, match=r"compiled = torch\.compile\(model\)"):
        step(cl, model, batch)


def test_the_data_given_to_end_stays_out_of_the_users_stream(batch: Any, toy: Any) -> None:
    stream = toy.stream()
    model = toy.model(stream)
    cl = Continual(model, methods.ewc(), sgd(model))
    before = stream[0].train
    stream[0].classes = ()
    cl.begin(stream[0])
    rows = before.gather(torch.arange(4))
    step(cl, model, (rows.inputs, rows.targets))
    cl.end(TensorData(rows.inputs, rows.targets))
    assert stream[0].train is before
    assert stream[0].classes == ()
    with pytest.raises(UsageError, match="take a data set, a loader or a list of batches"):
        cl.begin([1, 2])  # type: ignore[arg-type]
    cl.begin()
    with pytest.raises(UsageError, match="take a data set, a loader or a list of batches"):
        cl.end([1, 2])  # type: ignore[arg-type]


def test_models_in_which_a_method_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="Use DistributedDataParallel"):
        Continual(nn.DataParallel(nn.Linear(4, 3)), methods.er())
    deep = mlp(input_shape=(4,), classes=4, hidden=[6], head="task", seed=0)
    with pytest.raises(ConfigError, match=r"before `torch\.compile`, on the plain model"):
        Continual(torch.compile(deep, backend="eager"), methods.hat(), sgd(deep))
    with pytest.raises(ConfigError, match=r"Give a torch\.nn\.Module"):
        Continual("resnet18", methods.er())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="as its method"):
        Continual(nn.Linear(4, 3), Remember(capacity=5))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="accumulate=0"):
        Continual(nn.Linear(4, 3), methods.er(), accumulate=0)
    with pytest.raises(ConfigError, match="without its optimizer"):
        Continual(nn.Linear(4, 3), methods.er(), scaler=torch.amp.GradScaler("cpu"))


def test_the_state_is_not_saved_in_the_middle_of_an_accumulated_step(batch: Any) -> None:
    model = nn.Linear(4, 3)
    cl = Continual(model, methods.er(), sgd(model), accumulate=2)
    step(cl, model, batch, move=False)
    with pytest.raises(UsageError, match="after 1 of 2"):
        cl.state_dict()


def test_a_model_called_past_prepare_is_noticed(batch: Any) -> None:
    model = nn.Linear(4, 3)
    Continual(model, methods.er(), sgd(model), prepare=lambda x, training, generator: 2 * x)
    with pytest.raises(UsageError, match=r"Call cl\(inputs\)"):
        model(batch[0])


def test_a_closed_wrapper_leaves_no_hook_behind(batch: Any) -> None:
    model = nn.Linear(4, 3)
    optimizer = sgd(model)
    Continual(model, methods.er(), optimizer).close()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
