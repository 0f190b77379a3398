"""A configuration is validated once, and each part it names is made once."""

import collections

import pytest
import torch
from typer.testing import CliRunner

from holdfast import cli
from holdfast.config import job as jobs
from holdfast.config import kinds, plugins, schema, updates
from holdfast.config.build import resolve
from holdfast.config.check import validated
from holdfast.core.errors import ConfigError
from holdfast.core.method import Method
from holdfast.core.operation import Operation

SMALL = ["trainer.epochs=1", "trainer.limit_train_batches=2", "model.hidden=[8]"]


@pytest.fixture
def made(monkeypatch):
    """How often a configuration was validated, and each kind of part made."""
    counts = collections.Counter()
    call, model = jobs.called, schema.job_model()
    validate = type(model).__dict__.get("model_validate", model.model_validate)

    def counted(path, function, arguments):
        part = call(path, function, arguments)  # an optimizer that is only asked about raises here
        counts[path] += 1
        return part

    def counted_validation(values):
        counts["validation"] += 1
        return validate(values)

    def counted_method(self, *operations, **about):
        counts["methods"] += 1
        make(self, *operations, **about)

    make = Method.__init__
    monkeypatch.setattr(jobs, "called", counted)
    monkeypatch.setattr(updates, "called", counted)
    monkeypatch.setattr(model, "model_validate", counted_validation)
    monkeypatch.setattr(Method, "__init__", counted_method)
    return counts


def test_a_plain_run_validates_once_and_makes_each_part_once(made, tmp_path):
    done = CliRunner().invoke(cli.app, ["run", *SMALL, "references=[]", "-q", "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    del made["optimizer"]  # the training makes one over the parameters whenever an experience is to start afresh
    assert made == dict.fromkeys(("validation", "methods", "method", "stream.dataset", "stream", "model"), 1)


def test_resuming_validates_once_and_makes_each_part_once(made, tmp_path):
    folder = tmp_path / "run"
    CliRunner().invoke(cli.app, ["run", *SMALL, "references=[]", "-q", "--out", str(folder)])
    (folder / "run.json").write_text((folder / "run.json").read_text().replace('"finished"', '"interrupted"'))
    (folder / "log.jsonl").unlink()
    made.clear()
    done = CliRunner().invoke(cli.app, ["resume", str(folder)])
    assert done.exit_code == 0, done.output
    assert made["validation"] == made["stream"] == made["model"] == made["method"] == 1


def test_references_and_seeds_make_a_method_each_and_validate_nothing_again(made, tmp_path):
    words = [*SMALL, "references=[finetune,joint]", "seeds=2", "-q", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(cli.app, ["run", *words])
    assert done.exit_code == 0, done.output
    assert made["validation"] == 1
    assert made["method"] == 6
    assert made["stream"] == made["model"] == 6 + 3  # each method once over stand-ins before the first is trained


def test_a_model_for_each_experience_gets_a_method_of_its_own(made, tmp_path):
    words = [*SMALL, "references=[]", "protocol=independent", "-q", "--out", str(tmp_path / "run")]
    assert CliRunner().invoke(cli.app, ["run", *words]).exit_code == 0
    assert made["validation"] == made["stream"] == 1
    assert made["method"] == made["model"] - 1 == 5


def test_a_job_gives_the_method_that_was_checked_away_once():
    job = validated({})
    checked = job.method
    assert job.take_method() is checked
    assert job.take_method() is not checked


def test_the_parts_of_a_job_are_as_if_each_was_validated_alone():
    job = validated({"seeds": 2, "references": ["lwf", "random"]})
    assert list(job.parts()) == [
        f"{at}seed-{n}" for at in ("", "references/lwf/", "references/random/") for n in (0, 1)
    ]
    for part in job.parts().values():
        assert part.config == resolve(part.config)
        assert part.config == schema.dump(part.block)


def test_a_reference_that_does_not_fit_the_job_is_refused_before_anything_starts():
    data = {"name": "csv", "path": "x.csv", "kind": "regression"}
    stream = {"name": "data_incremental", "dataset": data}
    job = {"stream": stream, "criterion": "mse", "method": "finetune"}
    validated({**job, "references": ["joint"]})
    with pytest.raises(ConfigError, match=r"references.1: `icarl` does not fit this job. criterion: got \"mse\""):
        validated({**job, "references": ["joint", "icarl"]})


def test_a_stream_inside_another_is_checked_and_completed_like_any_other():
    found = resolve({"stream": {"name": "online", "of": {"name": "split", "experiences": 2}}})["stream"]
    assert found["of"]["experiences"] == 2
    assert found["of"]["class_order"] == "natural"
    assert "dataset" not in found["of"]
    assert resolve({"stream": {"name": "online", "of": "cil"}})["stream"]["of"]["name"] == "cil"
    for inner, says in (
        ({"name": "split", "experience": 2}, r"stream.of.experience: .*did you mean 'experiences'\?"),
        ({"name": "split", "experiences": 0}, "stream.of.experiences: got 0"),
        ({"name": "split", "dataset": "digits"}, "stream.of.dataset: the data set is given once, outside"),
        ("splt", "unknown stream 'splt'; did you mean 'split'"),
        ("domains", "`domains` cannot be cut"),
        ("online", "`online` cannot be cut"),
    ):
        with pytest.raises(ConfigError, match=says):
            resolve({"stream": {"name": "online", "of": inner}})


PLUGIN = '''
from holdfast import Stream
from holdfast.streams import split
from holdfast.streams.datasets import Dataset


def pairs(dataset: Dataset, reverse: bool = False) -> Stream:
    """Two classes at a time.

    Args:
        reverse: the last ones first.
    """
    order = list(range(dataset.classes))
    made = split(dataset, experiences=dataset.classes // 2, class_order=order[::-1] if reverse else order)
    made.description = {"name": "pairs"}
    return made
'''


def test_what_validate_accepts_run_accepts_for_streams_of_a_plug_in_inside_others(tmp_path):
    file = tmp_path / "pairs_of_classes.py"
    file.write_text(PLUGIN)
    plugins.use(file)
    try:
        job = validated({"stream": {"name": "online", "samples": 200, "of": {"name": "pairs", "reverse": True}}})
        stream = job.make_stream()
        assert stream.name.startswith("online")
        assert stream.description["of"] == {"name": "pairs"}
        assert len(stream) == 10
    finally:
        plugins.drop("pairs_of_classes")


def test_every_key_of_a_block_is_a_row_of_the_table():
    fields = schema.job_model().model_fields
    assert set(kinds.BLOCKS) <= set(fields)
    assert all(kind.plural in kinds.KINDS for kind in kinds.KEYS.values())


def test_the_optimizer_of_a_job_is_made_over_the_parameters_it_is_given():
    arguments = validated({"optimizer": {"name": "Adam", "lr": 0.5}}).trainer_arguments()
    made = arguments["optimizer"]([torch.nn.Parameter(torch.zeros(1))])
    assert type(made) is torch.optim.Adam
    assert made.defaults["lr"] == 0.5
    assert all(isinstance(operation, Operation) for operation in arguments["method"])


@pytest.mark.parametrize(
    ("job", "says"),
    [
        ({"method": {"operations": ["remember_exemplars", "gradient_constraints"]}}, "fill the memory"),
        ({"method": {"operations": ["replay"]}}, "`replay` draws from a memory, and no operation fills one"),
        ({"method": {"operations": [{"name": "nearest_class_mean", "source": "memory"}]}}, "draws from a memory"),
        ({"method": "packnet", "stream": "data_incremental"}, "domain-incremental, which has none. Write stream=split"),
        ({"method": "hat", "stream": {"name": "online", "of": "split"}}, "the stream is class-incremental"),
        ({"model": "hypernetwork"}, "`hypernetwork` works by task labels"),
        ({"model": {"name": "mlp", "head": "task"}, "stream": "data_incremental"}, "model.head"),
        (
            {"stream": {"name": "split", "dataset": "synthetic"}, "model": "cnn"},
            "`cnn` takes images, and data set `syn",
        ),
        ({"stream": {"name": "rotated", "dataset": "synthetic"}}, "`rotated` takes images"),
        ({"method": "wa", "model": {"name": "mlp", "head": "cosine"}}, "`weight_align` works with fixed, growing"),
    ],
)
def test_validate_refuses_what_a_run_would(job, says):
    operations = job.get("method", {}) if isinstance(job.get("method"), dict) else {}
    for index, one in enumerate(operations.get("operations", [])):
        if one == "remember_exemplars":
            operations["operations"][index] = {"name": one, "per_class": 3}
    with pytest.raises(ConfigError, match=says):
        resolve(job)
