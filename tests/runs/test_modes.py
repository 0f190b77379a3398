"""Modes of a run: debug, limits, early stopping, profiler, summary, evaluation and prediction from a checkpoint."""

import csv
import json
import shutil
import sys
import types

import numpy as np
import pytest
import torch

from holdfast.config.build import resolve
from holdfast.config.compose import compose
from holdfast.core.errors import ConfigError, DataError
from holdfast.methods import er, finetune, slda
from holdfast.metrics import read_log
from holdfast.models import mlp
from holdfast.runs.loggers import numbers
from holdfast.runs.predict import predict
from holdfast.runs.run import evaluate, run
from holdfast.streams import split
from holdfast.streams.datasets import digits
from holdfast.training import Trainer

SMALL = ["experiment=digits", "trainer.epochs=1", "stream.experiences=2", "model.hidden=[8]"]


def job(*changes):
    return resolve(compose(None, [*SMALL, *changes]).config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run."""
    return run(job("trainer.epochs=5"), tmp_path_factory.mktemp("runs") / "one", quiet=True)


def fitted(method=None, epochs=2, batch_size=16, validation=0.0, **arguments):
    stream = split(digits(), experiences=2, validation=validation)
    model = mlp(input_shape=stream.input_shape, classes=stream.classes, hidden=[8], seed=0)
    trainer = Trainer(
        method or finetune(), optimizer={"name": "SGD", "lr": 0.1}, epochs=epochs, batch_size=batch_size, **arguments
    )
    return model, trainer, trainer.fit(model, stream)


def steps(events):
    return [event["steps"] for event in events if event["event"] == "experience"]


def test_a_limit_counts_batches_or_a_share_of_them():
    assert steps(fitted(limit_train_batches=3, epochs=2)[2]) == [6, 6]
    whole, half = steps(fitted(epochs=1)[2]), steps(fitted(epochs=1, limit_train_batches=0.5)[2])
    assert half[0] == whole[0] // 2


def test_a_limit_of_one_batch_is_the_same_batch_every_epoch():
    seen = []

    class Look(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, inputs):
            if self.training:
                seen.append(frozenset(map(tuple, inputs.flatten(1).tolist())))
            return self.model(inputs)

    stream = split(digits(), experiences=2)
    model = Look(mlp(input_shape=stream.input_shape, classes=stream.classes, hidden=[8], seed=0))
    Trainer(finetune(), epochs=3, batch_size=8, limit_train_batches=1, evaluate="none").fit(model, stream)
    assert len(seen) == 6
    assert len(set(seen)) == 2


def test_a_limit_on_test_batches_evaluates_fewer_samples():
    events = fitted(limit_test_batches=1, eval_batch_size=10)[2]
    assert {event["samples"] for event in events if event["event"] == "evaluate"} == {10}


def test_accumulated_gradients_are_those_of_one_large_batch():
    small = fitted(batch_size=4, accumulate=4, limit_train_batches=40, epochs=1)[0]
    stream = split(digits(), experiences=2)
    large = mlp(input_shape=stream.input_shape, classes=stream.classes, hidden=[8], seed=0)
    Trainer(finetune(), optimizer={"name": "SGD", "lr": 0.1}, epochs=1, batch_size=16, limit_train_batches=10).fit(
        large, stream
    )
    for one, other in zip(small.parameters(), large.parameters()):
        torch.testing.assert_close(one, other)


def test_a_method_that_makes_the_whole_step_refuses_to_accumulate():
    with pytest.raises(ConfigError, match="cannot be accumulated"):
        fitted(slda(), accumulate=2)


def test_clipping_by_value_bounds_every_step():
    stream = split(digits(), experiences=1)
    model = mlp(input_shape=stream.input_shape, classes=stream.classes, hidden=[8], seed=0)
    before = [p.detach().clone() for p in model.parameters()]
    Trainer(
        finetune(), optimizer={"name": "SGD", "lr": 1.0}, clip_norm=1e-4, clip_by="value", iterations=1, epochs=1
    ).fit(model, stream)
    moved = max(float((p.detach() - old).abs().max()) for p, old in zip(model.parameters(), before))
    assert moved == pytest.approx(1e-4, rel=1e-3)


def test_training_stops_once_validation_accuracy_no_longer_rises():
    events = fitted(epochs=60, validation=0.3, patience=2, evaluate="validation")[2]
    full = fitted(epochs=60, validation=0.3)[2]
    assert steps(events)[0] < steps(full)[0]


def test_an_experience_ends_with_the_best_weights():
    stream = split(digits(), experiences=1, validation=0.3)

    def after(epochs, **arguments):
        model = mlp(input_shape=stream.input_shape, classes=stream.classes, hidden=[8], seed=0)
        trainer = Trainer(
            finetune(),
            optimizer={"name": "SGD", "lr": 0.1},
            scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, [1.0, 1e9, 1e9, 1e9].__getitem__),
            epochs=epochs,
            on_divergence="go_on",  # so that the last weights are far from the best
            **arguments,
        )
        trainer.fit(model, stream)
        return list(model.parameters())

    first, best, last = after(1), after(3, restore_best=True), after(3)
    assert all(torch.equal(one, other) for one, other in zip(first, best))
    assert not any(torch.equal(one, other) for one, other in zip(first, last))


def test_early_stopping_without_validation_data_is_refused():
    with pytest.raises(ConfigError, match=r"validation=0\.1"):
        fitted(patience=1)


def test_time_that_is_up_ends_training_and_evaluates():
    events = fitted(max_seconds=1e-9, epochs=50)[2]
    assert steps(events) == [1]
    assert [event["experience"] for event in events if event["event"] == "evaluate" and event["after"] == 0] == [0, 1]


def test_torchs_own_checks_end_with_training():
    fitted(er(capacity=10, size=5), epochs=1, limit_train_batches=2, deterministic=True, detect_anomaly=True)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.is_anomaly_enabled()


def test_debugging_with_one_batch_takes_one_step_an_experience(tmp_path):
    folder = run(job("debug=fdr", "profiler=simple", "tags=[look]", "experiment_name=x"), tmp_path / "r", quiet=True)
    assert steps(read_log(folder)) == [1, 1]
    assert "cumulative" in (folder / "profile.txt").read_text()
    assert json.loads((folder / "run.json").read_text())["tags"] == ["look"]


def test_a_run_has_a_summary_of_its_model(folder):
    text = (folder / "model.txt").read_text()
    assert "backbone.1  Linear" in text
    assert "610 parameters, 610 trainable" in text


def test_a_checkpoint_alone_can_be_evaluated(folder, tmp_path):
    alone = tmp_path / "somewhere" / "state.pt"
    alone.parent.mkdir()
    shutil.copy(folder / "checkpoints" / "last.pt", alone)
    found = evaluate(alone)
    assert found == evaluate(folder) == evaluate(alone.as_uri())
    assert found["average_accuracy"] == pytest.approx(
        json.loads((folder / "metrics.json").read_text())["average_accuracy"]
    )


def test_what_is_no_checkpoint_is_refused(folder, tmp_path):
    with pytest.raises(DataError, match="there is no checkpoint"):
        evaluate(tmp_path / "none.pt")
    with pytest.raises(DataError, match="holds weights and no state"):
        evaluate(folder / "checkpoints" / "model.pt")
    with pytest.raises(DataError, match="cannot be fetched"):
        evaluate((tmp_path / "none.pt").as_uri())


def rows(path):
    return list(csv.DictReader(path.open()))


def test_predictions_on_the_test_data_are_those_that_were_counted(folder, tmp_path):
    found = rows(predict(folder, ["test"], tmp_path).path)
    counted = evaluate(folder)["experiences"]
    assert len(found) == sum(one["samples"] for one in counted)
    assert sum(row["right"] == "True" for row in found) == sum(one["correct"] for one in counted)
    assert (tmp_path / "predictions.png").read_bytes()[:4] == b"\x89PNG"


def test_predictions_on_arrays_and_images(folder, tmp_path):
    from PIL import Image

    stream = split(digits(), experiences=2)
    batch = stream[0].test.gather(torch.arange(6))
    np.save(tmp_path / "six.npy", batch.inputs.numpy())
    top = float(stream[0].train.gather(torch.arange(64)).inputs.max())
    (tmp_path / "images").mkdir()
    for row in range(6):
        pixels = (batch.inputs[row].reshape(8, 8).numpy() * (255 / top)).astype("uint8")
        Image.fromarray(pixels).save(tmp_path / "images" / f"{row}.png")
    known = [row["label"] for row in rows(predict(folder, ["test"], tmp_path / "a").path)[:6]]
    assert [row["label"] for row in rows(predict(folder, [str(tmp_path / "six.npy")], tmp_path / "b").path)] == known
    seen = rows(predict(folder, [str(tmp_path / "images")], tmp_path / "c").path)
    assert [row["label"] for row in seen] == known
    assert seen[0]["input"].endswith("0.png")


@pytest.mark.parametrize(
    ("name", "says"),
    [("none.npy", "there are no inputs"), ("empty", "holds no images"), ("wrong.npy", "the model takes")],
)
def test_inputs_that_do_not_fit_are_refused(folder, tmp_path, name, says):
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "wrong.npy", np.zeros((2, 5)))
    with pytest.raises(DataError, match=says):
        predict(folder, [str(tmp_path / name)], tmp_path / "out")


def test_several_loggers_get_the_numbers_of_the_run(tmp_path, monkeypatch):
    written, tagged = [], {}

    class Run:
        def define_metric(self, names, step_metric):
            pass

        def log(self, values):
            written.append(values)

        def finish(self):
            written.append("finished")

    def init(**about):
        tagged.update(about)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Image=lambda pixels: pixels))
    pytest.importorskip("tensorboard")
    folder = run(job("loggers=[tensorboard,wandb]", "tags=[a,b]"), tmp_path / "run", quiet=True)
    assert list((folder / "tensorboard").glob("events.*"))
    assert (tagged["mode"], tagged["tags"], tagged["project"]) == ("offline", ["a", "b"], "holdfast")
    assert written[-1] == "finished"
    last = [values for values in written[:-1] if "test/experience_0/accuracy" in values][-1]
    events = [event for event in read_log(folder) if event["event"] == "evaluate" and event["experience"] == 0]
    assert last["test/experience_0/accuracy"] == events[-1]["correct"] / events[-1]["samples"]


def test_a_logger_that_is_not_installed_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "comet_ml", None)
    with pytest.raises(ImportError, match=r"pip install 'holdfast\[loggers\]'"):
        run(job("loggers=[comet]"), tmp_path / "run", quiet=True)


def test_an_unknown_logger_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        job("loggers=[tensorbord]")


def test_an_event_without_numbers_logs_nothing():
    assert numbers({"event": "end"}) == {}
