"""Overrides: Hydra's grammar, list elements, and what a new name does to the old one's parameters."""

import itertools
import json

import pytest

from holdfast.config.build import resolve
from holdfast.config.compose import load
from holdfast.core.errors import ConfigError

LIST = {
    "method": {
        "operations": [
            {"name": "replay", "size": 8},
            {"name": "replay", "size": 9},
            {"name": "remember", "capacity": 50},
        ]
    }
}
MAPPING = {"method": {"operations": {"replay": {"size": 8}, "replay_2": {"size": 9}, "remember": {"capacity": 50}}}}


@pytest.fixture
def job(tmp_path):
    """A function from a configuration and overrides to the resolved job."""

    def make(config, *overrides):
        file = tmp_path / "job.json"
        file.write_text(json.dumps(config))
        return resolve(load(file, list(overrides)))

    return make


def sizes(resolved):
    return [operation["size"] for operation in resolved["method"]["operations"] if operation["name"] == "replay"]


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("trainer.epochs=2", ("trainer", "epochs"), 2),
        ("++trainer.epochs=2", ("trainer", "epochs"), 2),
        ("optimizer.lr=1e-3", ("optimizer", "lr"), 0.001),
        ("optimizer.lr=1", ("optimizer", "lr"), 1.0),
        ("model.hidden=[5,6]", ("model", "hidden"), [5, 6]),
        ("model.hidden.1=7", ("model", "hidden"), [100, 7]),
        ("scheduler=null", ("scheduler",), None),
        ("trainer.reset_optimizer=true", ("trainer", "reset_optimizer"), True),
        ("device=cuda:1", ("device",), "cuda:1"),
        ("seeds=3", ("seeds",), [0, 1, 2]),
        ("seeds=[4,5]", ("seeds",), [4, 5]),
        ("references=[joint]", ("references",), ["joint"]),
        ("stream.dataset.normalise=true", ("stream", "dataset", "normalise"), True),
        ("~method.capacity", ("method", "capacity"), 200),
        ("~references", ("references",), []),
        ("criterion='cross_entropy'", ("criterion",), "cross_entropy"),
    ],
)
def test_a_value_of_the_default_job_can_be_changed(override, path, value):
    resolved = resolve(load(None, [override]))
    for part in path:
        resolved = resolved[part]
    assert resolved == value
    assert type(resolved) is type(value)


@pytest.mark.parametrize("config", [LIST, MAPPING], ids=["list", "mapping"])
def test_operations_are_changed_by_name_in_both_forms(job, config):
    resolved = job(config, "method.operations.replay.size=3", "method.operations.replay_2.size=4")
    assert sizes(resolved) == [3, 4]


def test_operations_are_changed_by_number(job):
    assert sizes(job(LIST, "method.operations.1.size=4")) == [8, 4]


def test_two_instances_of_an_operation_keep_separate_values(job):
    assert sizes(job(MAPPING)) == [8, 9]


@pytest.mark.parametrize("config", [LIST, MAPPING], ids=["list", "mapping"])
def test_an_operation_can_be_deleted(job, config):
    assert sizes(job(config, "~method.operations.replay_2")) == [8]


def test_elements_are_deleted_by_the_numbers_they_had(job):
    assert [o["name"] for o in job(LIST, "~method.operations.0", "~method.operations.1")["method"]["operations"]] == [
        "remember"
    ]


def test_an_operation_can_be_added_to_a_mapping(job):
    resolved = job(MAPPING, "++method.operations.replay_3.size=5")
    assert sizes(resolved) == [8, 9, 5]


@pytest.mark.parametrize("config", [LIST, MAPPING], ids=["list", "mapping"])
def test_a_renamed_operation_drops_the_old_parameters(job, config):
    second = job(config, "method.operations.replay_2.name=logit_replay")["method"]["operations"][1]
    assert second["name"] == "logit_replay"
    memory = {"name": "remember", "capacity": 1}
    alone = resolve({"method": {"operations": ["logit_replay", memory]}})["method"]["operations"][0]
    assert second["size"] == alone["size"]


@pytest.mark.parametrize("form", ["method.name=ewc", "method=ewc", "method={name: ewc}"])
def test_a_new_name_drops_the_parameters_of_the_old(form):
    assert resolve(load(None, [form]))["method"] == resolve({"method": "ewc"})["method"]


def test_a_new_name_keeps_what_the_same_command_gives_in_any_order():
    overrides = ["optimizer.name=Adam", "optimizer.lr=0.5", "method=der", "method.capacity=7", "model.name=cnn"]
    expected = resolve(
        {
            "optimizer": {"name": "Adam", "lr": 0.5},
            "method": {"name": "der", "capacity": 7},
            "model": "cnn",
            "references": ["finetune", "joint"],
        }
    )
    for order in itertools.permutations(overrides):
        assert resolve(load(None, list(order))) == expected


@pytest.mark.parametrize(
    "overrides", [["stream=permuted", "stream.dataset=synthetic"], ["stream.dataset=synthetic", "stream=permuted"]]
)
def test_a_block_within_a_block_may_change_in_the_same_command(overrides):
    stream = resolve(load(None, overrides))["stream"]
    assert (stream["name"], stream["dataset"]["name"]) == ("permuted", "synthetic")


def test_the_same_name_keeps_the_parameters(job):
    assert job({"method": {"name": "er", "capacity": 7}}, "method.name=er")["method"]["capacity"] == 7
    assert job({"method": {"name": "er", "capacity": 7}}, "method=er")["method"]["capacity"] == 7


def test_another_stream_keeps_the_data_set_and_drops_the_rest(job):
    config = {"stream": {"name": "split", "experiences": 2, "dataset": {"name": "synthetic", "classes": 4}}}
    stream = job(config, "stream.name=permuted")["stream"]
    assert stream["dataset"]["classes"] == 4
    assert stream["experiences"] == resolve({"stream": "permuted"})["stream"]["experiences"]


def test_another_data_set_drops_the_parameters_of_the_old(job):
    config = {"stream": {"name": "split", "experiences": 2, "dataset": {"name": "synthetic", "classes": 4}}}
    stream = job(config, "stream.dataset=digits")["stream"]
    assert stream["dataset"] == resolve({})["stream"]["dataset"]
    assert stream["experiences"] == 2


def test_operations_take_the_place_of_a_named_method_and_the_other_way_round(job):
    assert (
        job({}, "method.operations=[replay,{name: remember, capacity: 5}]")["method"]["operations"][1]["capacity"] == 5
    )
    assert job(LIST, "method=finetune")["method"] == {"name": "finetune"}


def test_a_scheduler_can_be_made_from_nothing():
    scheduler = resolve(load(None, ["scheduler.step_size=3", "scheduler.name=StepLR", "scheduler.every=step"]))[
        "scheduler"
    ]
    assert scheduler == {"name": "StepLR", "step_size": 3, "gamma": 0.1, "every": "step"}


def test_the_length_of_training_is_given_in_one_unit(job):
    assert job({"trainer": {"epochs": 4}}, "trainer.iterations=9")["trainer"]["epochs"] is None
    assert job({"trainer": {"iterations": 9}}, "trainer.epochs=4")["trainer"]["iterations"] is None
    assert job({}, "trainer.epochs=1", "~trainer.epochs")["trainer"]["epochs"] == job({})["trainer"]["epochs"]
    with pytest.raises(ConfigError, match="both epochs"):
        job({}, "trainer.iterations=9", "trainer.epochs=4")


def test_one_seed_puts_an_end_to_several(job):
    assert job({"seeds": 3}, "seed=7")["seeds"] is None
    assert job({"seeds": 3}, "seed=7", "seeds=[7,8]")["seeds"] == [7, 8]


@pytest.mark.parametrize(
    ("override", "path", "says"),
    [
        ("traner.epochs=2", "traner:", "did you mean 'trainer'?"),
        ("trainer.epoch=2", "trainer.epoch:", "did you mean 'epochs'?"),
        ("trainer.epochs.x=2", "trainer.epochs.x:", "trainer.epochs is 20 and has no parts"),
        ("method.operations.replai.size=2", "method.operations.replai:", "did you mean 'replay'?"),
        ("method.operations.7.size=2", "method.operations.7:", "has 3 elements"),
        ("method.operations.replay.sise=2", "method.operations.0.sise:", "did you mean 'size'?"),
        ("~trainer.epoch", "trainer.epoch:", "did you mean 'epochs'?"),
        ("~method.operations.replai", "method.operations.replai:", "did you mean 'replay'?"),
        ("~seed=3", "seed:", "is 0, not 3"),
        ("optimizer.lr=nan", "optimizer.lr:", "expected a finite number"),
        ("optimizer.lr='0.1'", "optimizer.lr:", "write 0.1 without quotes"),
        ("optimizer.lr=0.1,0.2", "optimizer.lr:", "stands for several values"),
        ("seed=range(1,3)", "seed:", "stands for several values"),
        ("optimizer.name=sgd", "optimizer.name:", "did you mean 'SGD'?"),
        ("method.name=3", "method.name:", "expected the name of a method"),
        ("name=x", "name:", "unknown key 'name'"),
        ("model@x=mlp", "", "Write key=value"),
        ("a=[1", "", "cannot read the override 'a=[1'"),
        ("=3", "", "cannot read the override"),
    ],
)
def test_a_wrong_override_is_refused_with_its_path(job, override, path, says):
    with pytest.raises(ConfigError) as caught:
        job(LIST, override)
    assert says in str(caught.value)
    assert path in str(caught.value)


def test_an_unknown_operation_of_a_mapping_is_not_added_by_mistake(job):
    with pytest.raises(ConfigError, match=r"method\.operations\.replai: there is no 'replai'.*did you mean 'replay'\?"):
        job(MAPPING, "method.operations.replai.size=3")


def test_the_file_is_not_changed_and_overrides_do_not_leak(tmp_path):
    file = tmp_path / "job.json"
    file.write_text(json.dumps(LIST))
    before = file.read_bytes()
    load(file, ["method.operations.replay.size=77"])
    assert file.read_bytes() == before
    assert sizes(resolve(load(file))) == [8, 9]
