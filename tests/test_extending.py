"""The page `extending.md`: a stranger's file of each kind is run by name, swept and resumed."""

import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from holdfast import Batch, Method, Operation, Trainer, cli
from holdfast.config import plugins
from holdfast.config.arrivals import outline_of
from holdfast.core.errors import ConfigError, Interrupted
from holdfast.core.source import Source
from holdfast.metrics import METRICS
from holdfast.runs.folder import CheckpointFolder, load_tensors
from holdfast.testing import check_operation

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = {
    block.split("\n")[0].removeprefix("# "): block
    for block in re.findall(r"^```python\n(# \w+\.py\n.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
}
COMMANDS = "".join(re.findall(r"^```console\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)).splitlines()
SMALL = ["model.hidden=[8]", "trainer.limit_train_batches=3"]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files of the page in an empty folder; what they define is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    before = dict(METRICS)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    yield tmp_path
    for one in plugins.used():
        plugins.drop(one.path.stem)
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)
    METRICS.clear()
    METRICS.update(before)


def call(*words):
    done = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("weight_average.py", {"operations": ["weight_average"]}),
        ("distilled_replay.py", {"methods": ["distilled_replay"]}),
        ("half_then_few.py", {"streams": ["half_then_few"]}),
        ("worst_experience.py", {"metrics": ["task_aware_worst_experience", "worst_experience"]}),
        ("loss_jumps.py", {"boundaries": ["loss_jumps"]}),
        ("drifting_ring.py", {"sources": ["drifting_ring"]}),
    ],
)
def test_each_file_offers_one_thing(files, file, names):
    assert plugins.use(files / file).names == names


def test_the_page_has_no_other_file():
    assert len(FILES) == 6


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(line, marks=[pytest.mark.slow] if number else [])
        for number, line in enumerate(line for line in COMMANDS if line.startswith("holdfast run "))
    ],
)
def test_a_run_or_sweep_by_name_is_what_the_command_says(files, line):
    words = shlex.split(line)[1:]
    source = any(word.startswith("source=") for word in words)  # whose length is in the command
    call(*words, *(SMALL[:1] if source else SMALL), "--quiet", "--out", "out")
    folders = sorted(path.parent for path in (files / "out").glob("**/config.json") if "references" not in path.parts)
    expected = 1
    for word in words:
        values = word.partition("=")[2].split(",")
        expected *= len(values) if "-m" in words and "[" not in word else 1
    assert len(folders) == expected
    plugin = words[words.index("--plugin") + 1]
    for folder in folders:
        assert (folder / "plugins" / plugin).read_text() == FILES[plugin]
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["prequential_accuracy" if source else "average_accuracy"] > 0
        if plugin == "worst_experience.py":
            assert metrics["worst_experience"] == min(metrics["accuracy_matrix"][-1])
    if expected > 1:
        assert (files / "out" / "table.csv").read_text().count("\n") == expected + 1


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("holdfast list ")])
def test_a_listing_shows_it(files, line):
    words = shlex.split(line)[1:]
    assert words[words.index("--plugin") + 1].removesuffix(".py") in call(*words)


def test_a_run_of_a_strangers_operation_is_resumed_to_equal_weights(files, monkeypatch):
    job = ["run", "--plugin", "weight_average.py", "method.operations=[weight_average]", "stream.experiences=2"]
    job += [*SMALL, "trainer.epochs=2", "references=[]", "checkpoint.every_steps=1", "--quiet", "--out"]
    call(*job, "whole")
    due, count = CheckpointFolder.due, [0]

    def interrupting(self, seconds, steps):
        count[0] += 1
        if count[0] == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return due(self, seconds, steps)

    monkeypatch.setattr(CheckpointFolder, "due", interrupting)
    stopped = CliRunner().invoke(cli.app, [*job, "cut"])
    assert stopped.exit_code == 130 or isinstance(stopped.exception, Interrupted)
    monkeypatch.setattr(CheckpointFolder, "due", due)
    call("resume", "cut", "--plugin", "weight_average.py", "--quiet")
    one, other = (load_tensors(files / run / "checkpoints" / "last.pt")["state"]["engine"] for run in ("whole", "cut"))
    assert one["index"] == other["index"]
    average = "weight_average"
    for key, values in (("model", one["learner"]["model"]), ("average", one["operations"][average]["average"])):
        found = other["learner"]["model"] if key == "model" else other["operations"][average]["average"]
        assert values.keys() == found.keys()
        assert all(torch.equal(value, found[name]) for name, value in values.items())
    assert (files / "whole" / "metrics.json").exists()


# An average kept in a snapshot -----------------------------------------------------------------------------


class SnapshotAverage(Operation):
    """An average of the weights, kept in a snapshot: what an outsider would write first.

    Args:
        share: of today's weights.
    """

    role = "knowledge retention"
    needs = frozenset({"update"})
    state = ("average",)

    def __init__(self, share: float = 0.1) -> None:
        super().__init__()
        self.share = share
        self.average = None

    def setup(self, learner):
        self.average = learner.snapshot()

    def update(self, step, learner):
        live = learner.model.state_dict()
        if live.keys() != self.average.keys():  # the head has grown: what is new starts as it is
            before, self.average = self.average, learner.snapshot()
            for name, value in before.items():
                self.average[name] = value
        for name, value in live.items():
            self.average[name].lerp_(value.to(self.average[name].dtype), self.share)

    def predict(self, outputs, inputs, learner):
        if learner.model.state_dict().keys() != self.average.keys():
            return outputs  # the head has just grown, and no step was made with it
        return learner.forward_as(self.average, inputs)


def test_an_average_that_is_kept_in_a_snapshot_answers_with_what_was_written_into_it(toy):
    stream = toy.stream()
    net = toy.model(stream)
    operation = SnapshotAverage()
    expected = {name: value.clone() for name, value in net.state_dict().items()}

    class Watched(SnapshotAverage):
        """The same, and the average once more by hand."""

        def update(self, step, learner):
            super().update(step, learner)
            for name, value in learner.model.state_dict().items():
                expected[name] += self.share * (value - expected[name])

    trainer = Trainer(Method(Watched(operation.share)), evaluate="none", batch_size=4, seed=3)
    trainer.fit(net, stream)
    by_hand = toy.model(stream)
    by_hand.load_state_dict(expected)
    inputs = stream[0].test.gather(torch.arange(5)).inputs
    with trainer.engine.evaluating(), torch.no_grad():
        found = trainer.engine.predict(inputs)
    assert torch.allclose(found, by_hand.eval()(inputs), atol=1e-5)
    assert not torch.allclose(found, net(inputs), atol=1e-5)


@pytest.mark.parametrize("check", ["state", "first_step", "device", "random", "resume", "double"])
def test_an_average_that_is_kept_in_a_snapshot_keeps_the_promises_of_an_operation(check):
    assert check_operation(SnapshotAverage, only=[check])


class Unsaid(Source):
    """A source that does not say how many classes it has."""

    def batches(self) -> Iterator[Batch]:
        yield Batch(torch.zeros(2, 3), torch.tensor([0, 1]))

    def position(self) -> dict[str, int]:
        return {"batches": 0}


class Seekable(Unsaid):
    seekable = True

    def seek(self, position: Any) -> None:
        """It begins anew whenever it is asked."""


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (Seekable, r"does not say how many there are\. Write `classes = 10` in Seekable"),
        (Unsaid, r"Unsaid cannot go back.*Write `input_shape` and `classes` in it"),
    ],
)
def test_a_source_that_does_not_say_its_classes_is_told_where_to_write_them(kind: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        outline_of(kind(), "unsaid", "cross_entropy")
