"""From configurations to objects."""

import pytest
import torch

from holdfast.config import build
from holdfast.core.errors import ConfigError

STREAM = {"name": "split", "experiences": 2, "dataset": {"name": "synthetic", "classes": 4, "samples": 5}}


@pytest.fixture(scope="module")
def stream():
    return build.build_stream(STREAM)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_a_stream_is_built_over_its_data_set(stream):
    assert len(stream) == 2
    assert stream.classes == 4


def test_a_stream_of_domains_is_built_over_several_data_sets():
    part = {"name": "synthetic", "classes": 2, "samples": 3}
    stream = build.build_stream({"name": "domains", "datasets": [part, {**part, "seed": 1}]})
    assert len(stream) == 2


def test_a_model_takes_the_seed_of_the_job_unless_it_has_its_own(stream):
    by_job = [weights(build.build_model("mlp", stream, seed)) for seed in (0, 0, 1)]
    assert torch.equal(by_job[0], by_job[1])
    assert not torch.equal(by_job[0], by_job[2])
    own = [weights(build.build_model({"name": "mlp", "seed": 5}, stream, seed)) for seed in (0, 1)]
    assert torch.equal(own[0], own[1])


def test_building_a_model_leaves_the_global_random_state_alone(stream):
    before = torch.get_rng_state()
    build.build_model("mlp", stream, 3)
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_fits_its_stream(stream):
    model = build.build_model({"name": "mlp", "hidden": [7]}, stream, 0)
    assert model(torch.zeros(3, *stream.input_shape)).shape == (3, 4)


def test_a_method_is_built_by_name_and_from_operations():
    method = build.build_method({"name": "er", "capacity": 7})
    assert method.name == "er"
    assert method.config()["capacity"] == 7
    composed = build.build_method(
        {"operations": {"replay": {"size": 3}, "replay_2": {"size": 4}, "remember": {"capacity": 9}}}
    )
    assert [operation.name for operation in composed] == ["replay", "replay_2", "remember"]
    assert [operation.size for operation in composed.operations[:2]] == [3, 4]


def test_what_a_method_says_of_itself_builds_an_equal_one():
    for spec in (
        {"name": "er", "capacity": 7},
        {"operations": [{"name": "replay", "size": 3}, {"name": "remember", "capacity": 9}]},
    ):
        method = build.build_method(spec)
        assert build.build_method(method.config()).config() == method.config()


def test_an_optimizer_is_built_with_the_types_torch_wants():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = build.build_optimizer({"name": "Adam", "lr": 1, "betas": [0.5, 0.9]})([parameter])
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.9)
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_each_call_of_a_factory_makes_a_new_optimizer():
    factory = build.build_optimizer("SGD")
    parameter = torch.nn.Parameter(torch.zeros(2))
    assert factory([parameter]) is not factory([parameter])


def test_a_scheduler_is_built_with_its_rhythm():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0)
    factory = build.build_scheduler({"name": "MultiStepLR", "milestones": [1], "gamma": 0.5, "every": "step"})
    assert factory.every == "step"
    scheduler = factory(optimizer)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert build.build_scheduler(None) is None


@pytest.mark.parametrize(("short", "function"), [("mse", "mse_loss"), ("bce", "binary_cross_entropy_with_logits")])
def test_a_criterion_has_a_short_and_a_long_name(short, function):
    outputs, targets = torch.tensor([[0.5, -1.0]]), torch.tensor([[1.0, 0.0]])
    expected = getattr(torch.nn.functional, function)(outputs, targets)
    assert torch.equal(build.build_criterion(short)(outputs, targets), expected)
    assert torch.equal(build.build_criterion(function)(outputs, targets), expected)


@pytest.mark.parametrize(
    ("builder", "spec", "path"),
    [
        (build.build_method, {"name": "er", "sise": 1}, "method.sise:"),
        (build.build_optimizer, {"name": "SGD", "lr": "1"}, "optimizer.lr:"),
        (build.build_scheduler, {"name": "StepLR"}, "scheduler.step_size:"),
        (build.build_stream, {"name": "split", "dataset": "digts"}, "stream.dataset:"),
        (build.build_dataset, {"name": "synthetic", "classes": "4"}, "dataset.classes:"),
    ],
)
def test_builders_refuse_what_the_whole_job_refuses(builder, spec, path):
    with pytest.raises(ConfigError, match=path):
        builder(spec)


def test_a_device_that_is_not_there_is_refused():
    assert build.build_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"device: this machine has no 'cuda'.*Write device=cpu"):
            build.build_device("cuda")
