"""What `validate` accepts `run` accepts: parts are put together over stand-ins for their data."""

import random
import warnings

import pytest
import torch
from typer.testing import CliRunner

from holdfast import cli
from holdfast.config import kinds
from holdfast.config.check import validated
from holdfast.config.job import Job
from holdfast.config.trial import disagreements, stand_in
from holdfast.core.errors import ConfigError, Diverged, HoldfastError
from holdfast.runs.assemble import make_trainer

OPERATIONS, METHODS = sorted(kinds.names("operations")), sorted(kinds.names("methods"))
STREAMS = ["split", "blurry", "cil", "data_incremental", "indus", "online", "permuted", "noisy", "repetition_slots"]
MODELS = [
    {"name": "mlp", "hidden": [8]},
    {"name": "linear"},
    {"name": "cnn", "channels": [4]},
    {"name": "hypernetwork"},
    {"name": "low_rank_mlp", "hidden": [8]},
    {"name": "subspace_mlp", "hidden": [8]},
]
HEADS = [None, "fixed", "growing", "task", "cosine", "cosine_task"]
FEW = {"limit_train_batches": 1, "limit_test_batches": 1, "limit_experiences": 2, "epochs": 1}


def drawn(seed):
    """A random composition, most of whose parts do not fit one another."""
    rng = random.Random(seed)
    method = {"name": rng.choice(METHODS)}
    if rng.random() < 0.4:
        method = {"operations": [{"name": name} for name in rng.sample(OPERATIONS, rng.randint(1, 3))]}
    model = dict(rng.choice(MODELS) if rng.random() < 0.6 else MODELS[0])
    head = rng.choice(HEADS)
    stream = {"name": rng.choice(STREAMS) if rng.random() < 0.5 else "split", "dataset": {"name": "digits"}}
    if rng.random() < 0.5:
        stream["paradigm"] = rng.choice(["class", "task", "domain"])
    if rng.random() < 0.3:
        stream["dataset"] = {"name": "synthetic", "samples": 12}
    job = {"method": method, "model": model if head is None else {**model, "head": head}, "stream": stream}
    if rng.random() < 0.15:
        job["criterion"] = rng.choice(["mse", "bce", "nll_loss"])
    return {**job, "trainer": FEW, "references": []}


def refused(job):
    """Why a run of `job` is refused; nothing where it trains."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            stream = job.make_stream()
            make_trainer(job).fit(job.make_model(stream), stream)
        except Diverged:
            return ""  # it trained
        except HoldfastError as error:
            return str(error)
    return ""


def agree(seeds):
    """How many compositions of these seeds train, and how many only the trial refuses; the two must agree."""
    trained = tried = 0
    for seed in seeds:
        try:
            job = validated(drawn(seed))
        except ConfigError:
            continue
        found, reason = disagreements(job), refused(job)
        assert bool(found) == bool(reason), (seed, drawn(seed), found, reason)
        trained, tried = trained + (not found), tried + bool(found)
    return trained, tried


def test_validate_and_run_agree_on_random_compositions():
    trained, tried = agree(range(30))
    assert trained
    assert tried


@pytest.mark.slow
def test_validate_and_run_agree_on_many_random_compositions():
    trained, tried = agree(range(30, 400))
    assert trained > 50
    assert tried > 10


@pytest.mark.parametrize(
    ("job", "says"),
    [
        ({"method": "adahat", "stream": {"paradigm": "task"}, "model": "linear"}, "method: `unit_attention` works on"),
        ({"method": "fg_adahat", "stream": {"paradigm": "task"}, "model": "hypernetwork"}, "are generated"),
        ({"method": "hypernetwork_regularised", "stream": {"paradigm": "task"}}, "needs a model whose weights are gen"),
        ({"stream": "noisy"}, "stream: 4 experiences of 5 classes from the 10 classes of digits"),
        ({"stream": {"name": "noisy", "dataset": "synthetic"}}, "stream: synthetic has inputs of shape"),
        ({"stream": {"name": "split", "dataset": {"name": "image_folder", "path": "x"}}, "model": "linear",
          "method": {"operations": ["duplicate_backbone"]}}, "`duplicate_backbone` copies a backbone"),
        ({"references": ["joint", "continual_backprop"], "model": "linear"}, "references.1: `continual_backprop` does"),
        ({"stream": {"dataset": "mnist", "paradigm": "task"}, "method": "duplicate_backbone",
          "model": {"name": "torchvision", "architecture": "resnet18"}}, "`lateral_connections` runs the layers of"),
        ({"stream": {"dataset": "mnist"}, "model": {"name": "torchvision", "architecture": "vit_b_16"}},
         r"model: 'vit_b_16' cannot take images of shape \(1, 28, 28\)"),
        ({"stream": {"dataset": "mnist"}, "method": "continual_backprop",
          "model": {"name": "frozen", "architecture": "resnet18", "weights": "w.pt"}}, "method: `unit_replacement`"),
    ],
)  # fmt: skip
def test_what_only_the_parts_together_tell_is_told_before_anything_is_loaded(job, says, tmp_path, monkeypatch):
    if "architecture" in str(job):
        pytest.importorskip("torchvision")
        pytest.importorskip("timm")
    monkeypatch.setenv("HOLDFAST_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match=says):
        validated(job, together=True)


@pytest.mark.parametrize("name", ["digits", "mnist", "fashion_mnist", "usps"])
def test_data_that_declare_their_size_are_as_they_say(name, data_or_skip):
    job = validated({"stream": {"dataset": {"name": name}}})
    block = job.block.stream.dataset
    blank, real = stand_in(block, 0, "dataset"), data_or_skip(job)
    assert (blank.input_shape, blank.classes) == (real.input_shape, real.classes)
    assert [len(part) for part in (blank.train, blank.test)] == [len(part) for part in (real.train, real.test)]


@pytest.fixture
def data_or_skip():
    """The data set of a job, or a skip where its files are not here."""
    from holdfast.config.job import make_dataset
    from holdfast.core.errors import DataError

    def load(job: Job):
        try:
            return make_dataset(job.block.stream.dataset, 0, "dataset")
        except (DataError, ImportError) as error:
            pytest.skip(str(error))

    return load


def test_padding_counts_in_the_shape_of_a_stand_in():
    block = validated({"stream": {"dataset": {"name": "mnist", "pad": 2}}}).block.stream.dataset
    assert stand_in(block, 0, "dataset").input_shape == (1, 32, 32)


def test_the_commands_say_it_and_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["method=adahat", "stream.paradigm=task", "model.name=linear", "references=[]"]
    monkeypatch.setattr("holdfast.config.job.make_dataset", lambda *_: pytest.fail("data were read"))
    several = ["run", "-m", *words, "seed=0,1"]
    files = ["run", *words, "stream.dataset={name: idx, path: there}"]
    for command in (["validate", *words], several, ["run", *words, "seeds=2"], files):
        done = CliRunner().invoke(cli.app, command)
        assert done.exit_code == 2, done.output
        assert "method: `unit_attention` works on the linear and convolutional layers" in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_trial_takes_nothing_away_from_the_job():
    job = validated({"method": "er"})
    method, state = job.method, torch.get_rng_state()
    assert disagreements(job) == []
    assert job.take_method() is method
    assert not any(operation.bound for operation in method)
    assert torch.equal(state, torch.get_rng_state())
