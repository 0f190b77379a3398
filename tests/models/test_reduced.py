"""Perceptrons that learn few values: what is fixed, what learns, and the formula of each layer."""

import pytest
import torch

from holdfast import Method, Trainer
from holdfast.core.errors import ConfigError
from holdfast.models import low_rank_mlp, parameter_count, subspace_mlp
from holdfast.models.dense import LowRankLinear, MixedLinear
from holdfast.operations import FisherPenalty


@pytest.mark.parametrize("rank", [1, 3])
def test_a_change_of_low_rank_is_added_to_fixed_weights(rank):
    layer = LowRankLinear(5, 4, rank)
    with torch.no_grad():
        layer.up.normal_()
        layer.bias.normal_()
    x = torch.randn(2, 5)
    for row in range(2):
        for unit in range(4):
            total = layer.bias[unit]
            for i in range(5):
                change = sum(layer.up[unit, k] * layer.down[k, i] for k in range(rank))
                total = total + (layer.start[unit, i] + change) * x[row, i]
            assert float(layer(x)[row, unit].detach()) == pytest.approx(float(total.detach()), abs=1e-5)


def test_a_layer_of_low_rank_starts_at_its_fixed_weights():
    layer = LowRankLinear(5, 4, 2)
    x = torch.randn(3, 5)
    assert torch.allclose(layer(x), x @ layer.start.T)


@pytest.mark.parametrize("rank_one", [False, True])
def test_a_mixture_is_the_sum_of_its_weights_by_the_root_of_their_number(rank_one):
    layer = MixedLinear(3, 2, count=4, rank_one=rank_one)
    for unit in range(2):
        for i in range(3):
            total = 0.0
            for k in range(4):
                base = layer.left[k, unit] * layer.right[k, i] if rank_one else layer.bases[k, unit, i]
                total += float(layer.coefficients[k].detach() * base) / 2
            assert float(layer.weight[unit, i].detach()) == pytest.approx(total, abs=1e-6)


@pytest.mark.parametrize("make", [low_rank_mlp, subspace_mlp])
def test_fixed_weights_never_move_and_the_others_learn(make, toy):
    stream = toy.stream()
    model = make(input_shape=stream.input_shape, classes=stream.classes, hidden=[6], seed=0)
    before = toy.weights(model)
    fixed = {name for name, _ in model.named_buffers()}
    assert fixed
    Trainer(Method(FisherPenalty()), optimizer={"name": "SGD", "lr": 0.1}, batch_size=4, evaluate="none").fit(
        model, stream
    )
    for name, value in model.state_dict().items():
        assert torch.equal(before[name], value) == (name in fixed), name


@pytest.mark.parametrize("make", [low_rank_mlp, subspace_mlp])
def test_equal_seeds_give_equal_weights_and_the_global_generator_is_left_alone(make):
    state = torch.get_rng_state()
    one, other = (make(input_shape=(1, 4, 4), classes=3, hidden=[5, 4], seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(state, torch.get_rng_state())


def test_few_values_learn():
    plain = {"input_shape": (784,), "classes": 10, "hidden": [100, 100], "head": "growing"}
    assert parameter_count(low_rank_mlp(**plain)) == 784 + 100 + 100 + 100 + 200
    assert parameter_count(subspace_mlp(**plain, dimension=80)) == 160 + 200


@pytest.mark.parametrize(
    ("make", "given"),
    [(low_rank_mlp, {"rank": 0}), (subspace_mlp, {"dimension": 0}), (low_rank_mlp, {"hidden": [0, 3]})],
)
def test_a_size_below_one_is_refused(make, given):
    with pytest.raises(ConfigError, match="of 1 or more"):
        make(input_shape=(4,), classes=2, **given)
