"""Generators: shapes and values against loops, growth without a touch on what exists, and initial variances."""

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.core.errors import ConfigError, UsageError
from holdfast.models.chunks import ChunksGenerator
from holdfast.models.generators import HeadsGenerator, RowsHead, Target, targets_of

TARGETS = {
    "conv.weight": Target((6, 3, 2, 2), 12, 24),
    "norm.weight": Target((6,), 6, 6, offset=1.0),
    "conv.bias": Target((6,), 12, 24),
    "output.weight": Target((4, 6), 6, 4, output=True, rectified=False),
}
KINDS = {
    "heads": lambda tasks=2, **more: HeadsGenerator(TARGETS, tasks=tasks, seed=3, **more),
    "generated vectors": lambda tasks=2, **more: HeadsGenerator(
        TARGETS, tasks=tasks, seed=3, vectors="generated", **more
    ),
    "whole": lambda tasks=2, **more: HeadsGenerator(
        TARGETS, tasks=tasks, seed=3, vectors="generated", head_embedding=0, **more
    ),
    "chunks": lambda tasks=2, **more: ChunksGenerator(TARGETS, tasks=tasks, chunk=17, seed=3, **more),
    "chunks of each task": lambda tasks=2, **more: ChunksGenerator(
        TARGETS, tasks=tasks, chunk=17, seed=3, per_task=True, **more
    ),
}


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def test_a_tensor_is_made_row_by_row_from_the_hidden_layer_and_the_row_s_embedding():
    head = RowsHead(Target((5, 3, 2, 2), 12, 20), hidden=4, embedding=7)
    hidden = torch.randn(2, 4)
    made = numbers(head(hidden))
    weight, bias, rows = numbers(head.map.weight), numbers(head.map.bias), numbers(head.rows)
    for task in range(2):
        for row in range(5):
            joined = np.concatenate([numbers(hidden)[task], rows[row]])
            assert np.allclose(made[task, row].ravel(), weight @ joined + bias, atol=1e-6)


def test_without_row_embeddings_every_tensor_is_one_linear_map_of_the_hidden_layer():
    generator = KINDS["whole"](hidden=(5,))
    assert all(isinstance(head, nn.Linear) for head in generator.heads.values())
    counted = sum(p.numel() for p in generator.parameters())
    assert counted == 2 * 32 + (32 * 5 + 5) + generator.generated * (5 + 1)
    hidden = np.maximum(numbers(generator.trunk[0](generator.embeddings[1])), 0)
    head = generator.head("conv.weight")
    wanted = numbers(head.weight) @ hidden + numbers(head.bias)
    assert np.allclose(numbers(generator([1])["conv.weight"][0]).ravel(), wanted, atol=1e-6)


@pytest.mark.parametrize("per_task", [False, True])
def test_chunks_are_a_perceptron_of_task_and_chunk_embedding_one_after_the_other(per_task):
    generator = ChunksGenerator(TARGETS, tasks=3, chunk=17, hidden=(5, 6), per_task=per_task, activation="tanh")
    assert generator.generated == 72 + 6 + 6 + 24
    assert generator.chunks == 7
    layers = [(numbers(layer.weight), numbers(layer.bias)) for layer in generator.layers]
    made = generator([2])
    flat = []
    for chunk in range(generator.chunks):
        own = generator.chunk_embeddings[2 if per_task else 0][chunk]
        values = np.concatenate([numbers(generator.embeddings[2]), numbers(own)])
        for place, (weight, bias) in enumerate(layers):
            values = weight @ values + bias
            values = np.tanh(values) if place < len(layers) - 1 else values
        flat.append(values)
    flat = np.concatenate(flat)[: generator.generated]
    place = 0
    for name, target in TARGETS.items():
        wanted = flat[place : place + target.size].reshape(target.shape) + target.offset
        assert np.allclose(numbers(made[name][0]), wanted, atol=1e-6)
        place += target.size


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_are_generated_together_as_each_alone_and_a_gradient_reaches_every_parameter_of_theirs(kind):
    generator = KINDS[kind](tasks=3)
    together = generator([2, 0])
    for place, task in enumerate((2, 0)):
        for name, value in generator([task]).items():
            assert value.shape == (1, *TARGETS[name].shape)
            assert torch.allclose(value[0], together[name][place], atol=1e-6)
    sum(value.square().sum() for value in together.values()).backward()
    idle = {id(parameter) for parameter in generator.of_task(1)}
    for name, parameter in generator.named_parameters():
        assert (parameter.grad is None) == (id(parameter) in idle), name


@pytest.mark.parametrize("kind", KINDS)
def test_growing_adds_parameters_and_leaves_what_exists_as_it_is(kind):
    generator = KINDS[kind](tasks=1)
    before = {name: value.clone() for name, value in generator([0]).items()}
    objects = dict(generator.named_parameters())
    new = generator.grow(3)
    now = dict(generator.named_parameters())
    assert {id(parameter) for parameter in new} == {id(now[name]) for name in now.keys() - objects.keys()}
    assert all(now[name] is parameter for name, parameter in objects.items())
    assert generator.tasks == 3
    assert generator.grow(2) == []
    for name, value in generator([0]).items():
        assert torch.equal(value, before[name])
    assert not torch.equal(generator([1])["conv.weight"], generator([2])["conv.weight"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_state_with_more_tasks_is_loaded_and_growth_goes_on_the_same(kind):
    torch.manual_seed(1)
    source = KINDS[kind](tasks=1)
    source.grow(3)
    torch.manual_seed(2)
    loaded = KINDS[kind](tasks=1)
    loaded.load_state_dict(source.state_dict())
    torch.manual_seed(3)  # growth follows the generator's own seed, not the global one
    source.grow(4)
    loaded.grow(4)
    for name, value in source([0, 2, 3]).items():
        assert torch.equal(value, loaded([0, 2, 3])[name])


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_becomes_what_it_was_when_a_state_with_fewer_tasks_was_saved(kind):
    generator = KINDS[kind](tasks=2)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    generator.grow(4)
    generator.shrink_to({f"model.{name}": value for name, value in before.items()}, "model.")
    assert generator.tasks == 2
    assert generator.state_dict().keys() == before.keys()
    generator.load_state_dict(before)


def test_a_new_task_can_start_from_the_embedding_of_another_but_keeps_vectors_of_its_own():
    generator = KINDS["heads"](tasks=2)
    with torch.no_grad():
        generator.vectors[0].add_(1.0)
    generator.copy_embedding(0, 1)
    made = generator([0, 1])
    assert torch.allclose(made["conv.weight"][0], made["conv.weight"][1], atol=1e-6)
    assert torch.equal(made["conv.bias"][1], torch.zeros(6))
    assert torch.equal(made["norm.weight"][1], torch.ones(6))


def test_a_task_that_there_is_not_is_refused_with_the_number_to_grow_to():
    with pytest.raises(UsageError, match=r"2 tasks.*task 4.*grow\(5\)"):
        KINDS["heads"](tasks=2)([0, 4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": (0,)}, "below 1"),
        ({"embedding": 0}, "below 1"),
        ({"tasks": -1}, "tasks is -1"),
        ({"embedding_std": 0.0}, "embedding_std"),
        ({"init": "hyperfan"}, "did you mean 'hyperfan_in'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    for make in (HeadsGenerator, ChunksGenerator):
        with pytest.raises(ConfigError, match=message):
            make(TARGETS, **arguments)


def test_fans_and_offsets_follow_from_the_layers():
    upper = nn.Sequential()
    upper.add_module("conv", nn.Conv2d(8, 6, 3, groups=2))
    upper.add_module("norm", nn.BatchNorm2d(6))
    upper.add_module("output", nn.Linear(6, 4))
    targets = targets_of(upper, "output")
    assert targets["conv.weight"] == Target((6, 4, 3, 3), 36, 54)
    assert targets["conv.bias"] == Target((6,), 36, 54)
    assert targets["norm.weight"].offset == 1.0
    assert targets["norm.bias"].offset == 0.0
    assert targets["output.weight"] == Target((4, 6), 6, 4, output=True, rectified=False)


def deep(generator: HeadsGenerator | ChunksGenerator, layers: int, width: int) -> float:
    """Second moment of the last hidden layer of a generated ReLU network on unit inputs, over that of its inputs."""
    weights = generator([0])
    values = torch.randn(256, width)
    for layer in range(layers):
        values = torch.relu(values @ weights[f"{layer}"][0].T)
    return float(values.detach().square().mean())


@pytest.mark.parametrize("make", [HeadsGenerator, ChunksGenerator])
def test_hyperfan_keeps_the_size_of_activations_through_a_deep_network_and_the_default_does_not(make):
    torch.manual_seed(0)
    layers, width = 4, 400
    # made whole, as the paper has it: rows that share a map are too alike for a product of several
    targets = {f"{layer}": Target((width, width), width, width, output=True) for layer in range(layers)}
    sizes = {"hidden": (16,), "embedding": 64, "tasks": 1}
    sizes |= {"chunk": 10_000} if make is ChunksGenerator else {}
    kept = np.mean([np.log10(deep(make(targets, init="hyperfan_in", **sizes), layers, width)) for _ in range(5)])
    lost = np.mean([np.log10(deep(make(targets, init="default", **sizes), layers, width)) for _ in range(5)])
    assert abs(kept) < 1.0 < abs(lost)


@pytest.mark.parametrize("make", [HeadsGenerator, ChunksGenerator])
@pytest.mark.parametrize("fan", ["in", "out"])
def test_hyperfan_gives_each_tensor_its_own_variance(make, fan):
    torch.manual_seed(0)
    targets = {"wide": Target((40, 400), 400, 40), "tall": Target((400, 40), 40, 400)}
    more = {"chunk": 4000} if make is ChunksGenerator else {"head_embedding": 64}
    drawn = {name: [] for name in targets}
    for _ in range(20):
        generator = make(targets, init=f"hyperfan_{fan}", hidden=(64,), embedding=64, tasks=1, **more)
        for name, value in generator([0]).items():
            drawn[name].append(float(value.detach().square().mean()))
    for name, target in targets.items():
        assert np.mean(drawn[name]) == pytest.approx(target.variance(fan), rel=0.3)
