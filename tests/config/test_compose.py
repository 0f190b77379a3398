"""Config groups, experiment files and defaults lists, and where each value of a composed job came from."""

import json

import pytest

from holdfast.compat.dialects import DIALECTS
from holdfast.config.build import resolve
from holdfast.config.compose import compose
from holdfast.config.overrides import Library
from holdfast.config.read import read
from holdfast.config.show import lines, tree
from holdfast.core.errors import ConfigError


@pytest.fixture
def mine(tmp_path):
    """A function that writes files into the user's own folder of groups."""

    def write(**files):
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return [tmp_path]

    return write


def job(*changes, folders=(), path=None):
    return resolve(compose(path, changes, folders, DIALECTS).config)


@pytest.mark.parametrize("name", Library().choices("experiment"))
def test_every_shipped_experiment_is_valid(name):
    assert job(f"experiment={name}")["references"] == []


def test_the_experiment_of_arena_is_the_one_on_its_page():
    found = job("experiment=arena")
    assert (found["stream"]["name"], found["stream"]["dataset"]["name"]) == ("permuted", "mnist")
    assert (found["stream"]["experiences"], found["stream"]["paradigm"]) == (10, "task")
    assert found["model"]["hidden"] == [256, 100, 64]
    assert found["model"]["head"] == "task"
    assert found["method"]["name"] == "finetune"
    assert (found["optimizer"]["name"], found["optimizer"]["lr"]) == ("Adam", 0.001)


def test_an_experiment_on_top_of_another_changes_only_what_it_says():
    assert job("experiment=arena_hat")["method"]["name"] == "hat"
    assert job("experiment=arena_hat")["stream"] == job("experiment=arena")["stream"]


def test_what_is_typed_wins_over_what_a_file_says():
    assert job("experiment=arena.yaml", "model=mnist_mlp")["model"]["hidden"] == [100, 100]
    assert job("model=mnist_mlp", "experiment=arena")["model"]["hidden"] == [100, 100]
    assert job("experiment=arena", "model=mlp", "model.hidden=[7]")["model"]["hidden"] == [7]
    assert job("trainer.epochs=3", "experiment=arena")["trainer"]["epochs"] == 3


def test_a_choice_of_a_group_needs_no_file_where_it_is_a_name():
    assert job("model=linear")["model"]["name"] == "linear"
    assert job("optimizer=Adam")["optimizer"]["name"] == "Adam"


def test_presets_set_the_device_and_keep_the_epochs():
    found = job("experiment=digits", "trainer=gpu", "trainer.epochs=4")
    assert (found["device"], found["trainer"]["precision"], found["trainer"]["epochs"]) == ("cuda", "bf16-mixed", 4)
    assert job("trainer=auto")["device"] == "auto"


@pytest.mark.parametrize("mode", ["default", "fdr", "limit", "overfit", "profiler"])
def test_a_debug_mode_goes_on_top_of_everything_but_single_changes(mode):
    found = job(f"debug={mode}", "experiment=arena", "trainer=gpu", "trainer.epochs=9")
    assert found["device"] == "cpu"
    assert found["trainer"]["epochs"] == 9
    assert found["trainer"]["batch_size"] == 128
    assert (found["profiler"] == "simple") == (mode == "profiler")
    assert (found["trainer"]["limit_train_batches"] is None) == (mode in ("default", "profiler"))


def test_the_users_own_groups_are_found_and_go_first(mine):
    folders = mine(
        experiment__own="defaults:\n  - /optimizer: slow\n  - _self_\nmethod: {name: er, capacity: 7}\n",
        optimizer__slow="name: SGD\nlr: 0.003\n",
        experiment__arena="method: agem\n",
    )
    found = job("experiment=own", folders=folders)
    assert (found["method"]["capacity"], found["optimizer"]["lr"]) == (7, 0.003)
    assert job("experiment=arena", folders=folders)["method"]["name"] == "agem"
    assert "own" in Library(folders).choices("experiment")


def test_self_in_a_defaults_list_says_when_the_file_itself_comes(mine):
    text = "defaults: [{}]\noptimizer: {{lr: 0.5}}\n"
    first, last = "_self_, /optimizer: sgd", "/optimizer: sgd, _self_"
    folders = mine(experiment__first=text.format(first), experiment__last=text.format(last))
    assert job("experiment=first", folders=folders)["optimizer"]["lr"] == 0.1
    assert job("experiment=last", folders=folders)["optimizer"]["lr"] == 0.5


def test_optional_defaults_may_be_missing(mine):
    folders = mine(experiment__own="defaults:\n  - optional /model: nowhere\nmethod: agem\n")
    assert job("experiment=own", folders=folders)["method"]["name"] == "agem"


def test_a_file_may_have_a_defaults_list_too(tmp_path):
    file = tmp_path / "job.json"
    file.write_text(json.dumps({"defaults": [{"/stream": "split_digits"}], "method": "der"}))
    assert job(path=file)["stream"]["dataset"]["name"] == "digits"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["experiment=arenna"], "did you mean 'arena'?"),
        (["trainer=gpuu"], "did you mean 'gpu'?"),
        (["debug=fast"], "there is no debug called 'fast'"),
        (["model=mlpp"], "did you mean 'mlp'?"),
        (["optimizer=adamm"], "did you mean"),
        (["data.data_path=x"], "is a key of CLMixer's files"),
    ],
)
def test_a_wrong_choice_names_the_nearest(changes, says):
    with pytest.raises(ConfigError, match=says.replace("?", r"\?")):
        job(*changes)


def test_a_defaults_list_that_goes_in_a_circle_is_refused(mine):
    folders = mine(experiment__a="defaults: [b]\n", experiment__b="defaults: [a]\n")
    with pytest.raises(ConfigError, match="goes in a circle"):
        job("experiment=a", folders=folders)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no folder"):
        job(folders=[tmp_path / "none"])


def test_every_value_says_where_it_came_from(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text("method: {name: er, capacity: 50}\ntrainer: {batch_size: 8}\n")
    composition = compose(
        file, ["stream=split_digits", "trainer.max_epochs=2", "method.size=9", "optimizer=Adam"], dialects=DIALECTS
    )
    found = lines(composition, resolve(composition.config))
    said = {key: source for key, (_, source) in found.items()}
    assert said["method.capacity"] == str(file)
    assert said["trainer.batch_size"] == str(file)
    assert said["stream.dataset.name"] == "stream=split_digits"
    assert said["trainer.epochs"] == "command line"
    assert said["method.size"] == "command line"
    assert said["optimizer.name"] == "command line"
    assert said["optimizer.lr"] == "default of Adam"
    assert said["model.name"] == "default job"
    assert said["method.policy"] == "default of er"
    assert found["trainer.epochs"][0] == 2


def test_operations_changed_by_name_say_so_at_their_position(tmp_path):
    file = tmp_path / "job.json"
    file.write_text(json.dumps({"method": {"operations": {"replay": {"size": 3}, "remember": {"capacity": 9}}}}))
    composition = compose(file, ["method.operations.remember.capacity=5"])
    found = lines(composition, resolve(composition.config))
    assert found["method.operations.1.capacity"] == (5, "command line")


def test_the_tree_shows_every_value():
    import io

    from rich.console import Console

    composition = compose(None, ["experiment=digits"])
    written = io.StringIO()
    Console(width=200, file=written).print(tree(composition, resolve(composition.config)))
    text = written.getvalue()
    assert "capacity: 200  experiment=digits" in text
    assert "lr: 0.1  default job" in text


def test_the_files_of_the_package_name_no_unknown_group():
    library = Library()
    for group in library.groups():
        for name in library.choices(group):
            assert read(library.find(group, name).path)
