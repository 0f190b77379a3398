"""A quick look at a stream: only its first experiences are learned and evaluated."""

import json

import pytest

from holdfast.config.compose import load
from holdfast.core.errors import ConfigError
from holdfast.core.method import Method
from holdfast.runs.run import run
from holdfast.training import Trainer


def test_only_the_first_experiences_are_learned_and_evaluated_with_the_weights_they_have_in_the_whole_stream(toy):
    of = toy.stream(experiences=3)
    short, whole = toy.model(of), toy.model(of)
    states = []

    def record(event):
        if event["event"] == "experience":
            states.append(toy.weights(whole))

    settings = {"optimizer": "Adam", "batch_size": 4, "seed": 3}
    events = Trainer(Method(), limit_experiences=2, **settings).fit(short, of)
    Trainer(Method(), record=record, **settings).fit(whole, of)
    assert {event["experience"] for event in events if event["event"] == "evaluate"} == {0, 1}
    assert [event["experience"] for event in events if event["event"] == "experience"] == [0, 1]
    assert all((states[1][name] == value).all() for name, value in short.state_dict().items())
    assert len(of) == 3
    assert all(experience.stream is of for experience in of), "the stream that was given stays as it was"


def test_a_limit_beyond_the_stream_changes_nothing_and_one_below_1_is_refused(toy):
    of = toy.stream(experiences=3)
    assert of.first(7) is of
    with pytest.raises(ConfigError, match="limit_experiences=0"):
        Trainer(Method(), limit_experiences=0)


def test_the_log_of_a_run_folder_says_that_there_were_so_many(tmp_path):
    job = {"stream": {"name": "split", "dataset": "digits", "experiences": 5}, "method": "finetune"}
    (tmp_path / "job.json").write_text(json.dumps(job))
    folder = run(load(tmp_path / "job.json", ["trainer.limit_experiences=2"]), tmp_path / "out", quiet=True)
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert events[0]["stream"]["experiences"] == 2
    assert events[0]["stream"]["classes"] == 10
    assert json.loads((folder / "metrics.json").read_text())["learned"] == 2
