"""Heads: identity after growth, optimisers, saved states, masks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.core.errors import ConfigError, UsageError
from holdfast.models import MASKED, CosineHead, CosineTaskHead, FixedHead, GrowingHead, Head, TaskHead

GROWING = [GrowingHead, TaskHead, CosineHead]


def filled(kind, widths=(2, 5), features=6, seed=0):
    head = kind(features, seed=seed)
    for task, width in enumerate(widths):
        before = head.width
        head.grow(width)
        if isinstance(head, TaskHead):
            head.assign(task, range(before, width))
            head.task = task
    return head


@pytest.mark.parametrize("kind", GROWING)
def test_growth_keeps_the_names_the_objects_and_the_values_of_all_parameters(kind):
    head = filled(kind, (2,))
    before = dict(head.named_parameters())
    values = {name: value.detach().clone() for name, value in before.items()}
    new = head.grow(5)
    after = dict(head.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert all(torch.equal(after[name], value) for name, value in values.items())
    assert {id(value) for name, value in after.items() if name not in before} == {id(value) for value in new}
    assert "weights.1" in after
    assert after["weights.1"].shape == (3, 6)
    assert head.width == 5


@pytest.mark.parametrize("kind", GROWING)
def test_growing_to_a_width_that_is_there_returns_nothing_and_changes_nothing(kind):
    head = filled(kind)
    names = list(dict(head.named_parameters()))
    assert head.grow(5) == []
    assert head.grow(3) == []
    assert head.grow(0) == []
    assert list(dict(head.named_parameters())) == names


@pytest.mark.parametrize("kind", GROWING)
def test_outputs_of_old_classes_are_the_same_before_and_after_growth(kind):
    head = filled(kind, (3,))
    features = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    before = head(features)
    head.grow(7)
    after = head(features)
    assert after.shape == (4, 7)
    torch.testing.assert_close(after[:, :3], before)


@pytest.mark.parametrize("kind", GROWING)
def test_new_outputs_learn_once_they_join_the_optimiser_and_momentum_of_old_ones_stays(kind):
    head = filled(kind, (2,))
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    features = torch.randn(8, 6, generator=torch.Generator().manual_seed(2))
    F.cross_entropy(head(features), torch.arange(8) % 2).backward()
    optimizer.step()
    momentum = optimizer.state[head.weights[0]]["momentum_buffer"].clone()
    new = head.grow(4)
    optimizer.add_param_group({"params": new})
    assert torch.equal(optimizer.state[head.weights[0]]["momentum_buffer"], momentum)
    if isinstance(head, TaskHead):
        head.assign(1, [2, 3])
        head.task = 1
    values = [value.detach().clone() for value in new]
    optimizer.zero_grad()
    F.cross_entropy(head(features), 2 + torch.arange(8) % 2).backward()
    optimizer.step()
    assert all(not torch.equal(value, old) for value, old in zip(new, values))


@pytest.mark.parametrize("kind", GROWING)
def test_the_state_of_a_grown_head_loads_into_a_fresh_one(kind):
    head, fresh = filled(kind), kind(6)
    assert not fresh.load_state_dict(head.state_dict()).missing_keys
    if isinstance(head, TaskHead):
        fresh.task = head.task
    features = torch.randn(4, 6)
    assert list(fresh.state_dict()) == list(head.state_dict())
    assert torch.equal(fresh(features), head(features))
    assert all(parameter.requires_grad for parameter in fresh.parameters())


@pytest.mark.parametrize("kind", GROWING)
def test_the_state_of_a_grown_head_loads_inside_a_larger_model(kind):
    model = nn.Sequential(nn.Linear(4, 6), filled(kind))
    fresh = nn.Sequential(nn.Linear(4, 6), kind(6))
    fresh.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), model.state_dict().values()))
    assert len(fresh.state_dict()) == len(model.state_dict())


@pytest.mark.parametrize("kind", GROWING)
def test_a_partly_grown_head_keeps_its_parameters_when_a_later_state_is_loaded(kind):
    head, part = filled(kind), filled(kind, (2,), seed=5)
    first = part.weights[0]
    part.load_state_dict(head.state_dict())
    assert part.weights[0] is first
    assert torch.equal(first, head.weights[0])
    assert part.width == 5


def test_a_state_with_fewer_outputs_than_the_head_is_refused():
    with pytest.raises(RuntimeError, match=r"weights\.1"):
        filled(GrowingHead).load_state_dict(filled(GrowingHead, (2,)).state_dict())


@pytest.mark.parametrize("kind", GROWING)
def test_a_saved_state_passes_weights_only_loading(kind, tmp_path):
    head = filled(kind)
    torch.save(head.state_dict(), tmp_path / "head.pt")
    fresh = kind(6)
    fresh.load_state_dict(torch.load(tmp_path / "head.pt", weights_only=True))
    assert torch.equal(fresh.weights[1], head.weights[1])


@pytest.mark.parametrize("kind", GROWING)
def test_a_deep_copy_is_equal_and_separate(kind):
    head = filled(kind)
    features = torch.randn(4, 6)
    twin = copy.deepcopy(head)
    before = twin(features)
    assert torch.equal(before, head(features))
    head.grow(9)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(1)
    assert twin.width == 5
    assert torch.equal(twin(features), before)


@pytest.mark.parametrize("kind", GROWING)
def test_evaluation_creates_no_outputs(kind):
    head = filled(kind, (2,)).eval()
    if isinstance(head, TaskHead):
        head.task = 3
    assert head(torch.randn(4, 6)).shape == (4, 2)
    assert head.width == 2
    assert len(list(head.parameters())) == (1 if kind is CosineHead else 2)


@pytest.mark.parametrize("kind", GROWING)
def test_an_empty_head_gives_no_columns(kind):
    head = kind(6).eval()
    head.task = 0
    assert head(torch.randn(4, 6)).shape == (4, 0)


@pytest.mark.parametrize("kind", GROWING)
def test_new_outputs_appear_where_the_head_is_and_in_its_type(kind):
    head = kind(6).to(torch.float64)
    assert {new.dtype for new in head.grow(2)} == {torch.float64}
    head = kind(6).to("meta")
    assert {new.device.type for new in head.grow(2)} == {"meta"}


def test_a_growing_head_starts_as_a_linear_layer_would():
    state = torch.get_rng_state()
    reference = nn.Linear(6, 4)
    torch.set_rng_state(state)
    head = GrowingHead(6, classes=4)
    assert torch.equal(head.weights[0], reference.weight)
    assert torch.equal(head.biases[0], reference.bias)


@pytest.mark.parametrize("kind", GROWING)
def test_a_seeded_head_grows_equally_whatever_was_drawn_in_between_and_leaves_the_global_state(kind):
    first, second = kind(6, seed=3), kind(6, seed=3)
    first.grow(2)
    state = torch.get_rng_state()
    first.grow(4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(10)
    second.grow(2)
    second.grow(4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert not torch.equal(first.weights[0], first.weights[1])
    assert not torch.equal(kind(6, classes=2, seed=4).weights[0], first.weights[0])


def test_an_explicit_generator_goes_before_the_seed():
    one, two = GrowingHead(6, seed=0), GrowingHead(6, seed=1)
    one.grow(3, torch.Generator().manual_seed(9))
    two.grow(3, torch.Generator().manual_seed(9))
    assert torch.equal(one.weights[0], two.weights[0])


def test_a_growing_head_is_the_affine_map_of_its_parts():
    head = filled(GrowingHead, (1, 3, 7))
    features = torch.randn(5, 6)
    outputs = head(features)
    assert [(part.start, part.stop) for part in head.parts()] == [(0, 1), (1, 3), (3, 7)]
    for part in head.parts():
        for row in range(5):
            for c in range(part.start, part.stop):
                expected = (part.weight[c - part.start] * features[row]).sum() + part.bias[c - part.start]
                torch.testing.assert_close(outputs[row, c], expected)


def test_a_fixed_head_is_one_linear_layer_that_refuses_to_grow():
    head = FixedHead(6, 4)
    assert isinstance(head, nn.Linear)
    assert isinstance(head, Head)
    assert FixedHead.__call__ is nn.Linear.__call__
    assert FixedHead.forward is nn.Linear.forward
    assert (head.width, head.features, head.needs_task, head.grow(4), head.grow(2)) == (4, 6, False, [], [])
    (part,) = head.parts()
    assert part.weight is head.weight
    assert part.bias is head.bias
    assert (part.start, part.stop) == (0, 4)
    with pytest.raises(UsageError, match=r"4 outputs cannot grow to 5.*growing"):
        head.grow(5)
    with pytest.raises(ConfigError, match="0 classes"):
        FixedHead(6, 0)


def test_the_abstract_head_cannot_be_built():
    with pytest.raises(TypeError, match="abstract"):
        Head()


# Tasks --------------------------------------------------------------------------------------------------


def two_tasks():
    head = TaskHead(6, seed=0)
    head.grow(2)
    head.assign(0, [0, 1])
    head.grow(5)
    head.assign(1, [2, 3, 4])
    return head


def test_a_mixed_batch_gives_what_each_task_gives_alone():
    head = two_tasks()
    features = torch.randn(8, 6)
    tasks = torch.tensor([0, 1, 1, 0, 0, 1, 0, 1])
    head.task = tasks
    mixed = head(features)
    for row, task in enumerate(tasks.tolist()):
        head.task = task
        torch.testing.assert_close(mixed[row : row + 1], head(features[row : row + 1]))
        for c in range(5):
            assert (mixed[row, c] == MASKED) == (c not in ([0, 1] if task == 0 else [2, 3, 4]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_masked_classes_get_probability_zero_and_no_gradient_in_every_type(dtype):
    head = two_tasks().to(dtype)
    head.task = 0
    outputs = head(torch.randn(3, 6).to(dtype))
    assert outputs.dtype == dtype
    for temperature in (1, 2, 20):
        assert (F.softmax(outputs / temperature, 1)[:, 2:] == 0).all()
    F.cross_entropy(outputs, torch.tensor([0, 1, 0])).backward()
    assert (head.weights[1].grad == 0).all()
    assert (head.biases[1].grad == 0).all()
    assert (head.weights[0].grad != 0).any()


def test_the_loss_is_that_of_the_task_alone():
    head = two_tasks()
    head.task = 1
    features, targets = torch.randn(7, 6), torch.tensor([2, 3, 4, 2, 3, 4, 4])
    alone = F.linear(features, head.weights[1], head.biases[1])
    torch.testing.assert_close(F.cross_entropy(head(features), targets), F.cross_entropy(alone, targets - 2))


def test_squared_errors_between_outputs_ignore_masked_classes_even_if_stored_in_half_precision():
    head = two_tasks()
    head.task = torch.tensor([0, 1, 0])
    outputs = head(torch.randn(3, 6))
    for dtype in (torch.float16, torch.bfloat16):
        stored = outputs.detach().to(dtype).float()
        masked = outputs == MASKED
        assert (((outputs - stored) ** 2)[masked] == 0).all()
    loss = F.mse_loss(outputs, torch.zeros_like(outputs))
    loss.backward()
    assert torch.isfinite(loss)
    inside = torch.zeros(5)
    for row, classes in enumerate(([0, 1], [2, 3, 4], [0, 1])):
        for c in classes:
            inside[c] += 2 * outputs[row, c].detach() / outputs.numel()
    torch.testing.assert_close(torch.cat([head.biases[0].grad, head.biases[1].grad]), inside)


def test_distillation_between_masked_outputs_is_finite():
    head = two_tasks()
    head.task = 0
    outputs = head(torch.randn(3, 6))
    teacher = F.log_softmax(outputs.detach() + 0.1 * torch.rand(3, 5), 1)
    loss = F.kl_div(F.log_softmax(outputs, 1), teacher, log_target=True, reduction="batchmean")
    loss.backward()
    assert torch.isfinite(loss)
    assert (head.weights[1].grad == 0).all()


def test_no_task_is_an_error_that_says_what_to_do():
    with pytest.raises(UsageError, match=r"no task is set.*head\.task"):
        two_tasks()(torch.randn(2, 6))


def test_an_unassigned_task_is_an_error_in_training_and_predicts_nothing_in_evaluation():
    head = two_tasks()
    head.task = 2
    with pytest.raises(UsageError, match=r"task 2 is not one of them.*assign\(2"):
        head(torch.randn(2, 6))
    assert (head.eval()(torch.randn(2, 6)) == MASKED).all()
    head.task = -1
    with pytest.raises(UsageError, match="task -1"):
        head(torch.randn(2, 6))


def test_classes_without_an_output_cannot_be_assigned():
    with pytest.raises(UsageError, match=r"\[5, 6\].*5 outputs.*grow"):
        two_tasks().assign(2, [6, 5])


def test_assigning_again_adds_to_the_classes_of_a_task():
    head = two_tasks()
    head.assign(0, [4])
    assert head.members.int().tolist() == [[1, 1, 0, 0, 1], [0, 0, 1, 1, 1]]


def test_outputs_that_no_task_owns_yet_are_masked():
    head = two_tasks()
    head.grow(7)
    head.task = 1
    assert ((head(torch.randn(2, 6)) == MASKED).int() == torch.tensor([1, 1, 0, 0, 0, 1, 1])).all()


def test_only_the_task_head_needs_a_task():
    assert [kind.needs_task for kind in (FixedHead, GrowingHead, CosineHead, TaskHead)] == [False, False, False, True]


# Cosine -------------------------------------------------------------------------------------------------


def test_cosine_outputs_are_scaled_cosines_and_do_not_see_lengths():
    head = filled(CosineHead)
    features = torch.randn(4, 6)
    outputs = head(features)
    for row in range(4):
        for part in head.parts():
            assert part.bias is None
            for index, vector in enumerate(part.weight):
                cosine = (vector * features[row]).sum() / (vector.norm() * features[row].norm())
                torch.testing.assert_close(outputs[row, part.start + index], 16 * cosine)
    torch.testing.assert_close(head(features * 7), outputs)
    with torch.no_grad():
        head.weights[1].mul_(5)
    torch.testing.assert_close(head(features), outputs)


def test_a_cosine_head_a_task_says_its_own_classes_cosines_and_nothing_of_others():
    head = CosineTaskHead(6, classes=2, scale=5.0, seed=0)
    head.grow(5)
    head.assign(0, [0, 1])
    head.assign(1, [2, 3, 4])
    head.task = torch.tensor([0, 1, 1])
    features = torch.randn(3, 6)
    outputs = head(features)
    vectors = torch.cat(tuple(head.weights))
    for row, own in enumerate(([0, 1], [2, 3, 4], [2, 3, 4])):
        for label in range(5):
            cosine = (vectors[label] * features[row]).sum() / (vectors[label].norm() * features[row].norm())
            expected = 5 * cosine if label in own else torch.tensor(MASKED)
            torch.testing.assert_close(outputs[row, label], expected)


@pytest.mark.parametrize("kind", [CosineHead, CosineTaskHead])
def test_cosines_kept_apart_are_the_same_to_the_bit_when_others_are_added(kind):
    head = kind(6, classes=2, seed=0).eval()
    head.apart = True
    if kind is CosineTaskHead:
        head.task = "all"
    features = torch.randn(50, 6)
    before = head(features)
    head.grow(9)
    assert torch.equal(head(features)[:, :2], before)


def test_a_learnable_scale_is_a_parameter_with_a_gradient():
    head = CosineHead(6, classes=3, scale=4, learnable=True)
    head(torch.randn(4, 6)).sum().backward()
    assert head.factor.item() == 4
    assert head.factor.grad != 0
    assert "factor" not in dict(CosineHead(6, classes=3).named_parameters())


@pytest.mark.parametrize("kind", GROWING)
def test_impossible_sizes_are_errors(kind):
    with pytest.raises(ConfigError, match="0 features"):
        kind(0)
    with pytest.raises(ConfigError, match="-1 classes"):
        kind(4, classes=-1)
