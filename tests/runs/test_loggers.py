"""Loggers: MLflow and Comet by modules that stand in for them, and by themselves where they are installed."""

import json
import struct
import sys
import types
import zipfile

import pytest

from holdfast.config.build import resolve
from holdfast.config.compose import compose
from holdfast.metrics import read_log
from holdfast.runs.loggers import TensorBoard
from holdfast.runs.run import run
from holdfast.runs.sweep import sweep

SMALL = ["experiment=digits", "trainer.epochs=1", "trainer.limit_train_batches=3", "stream.experiences=2"]


def job(*changes):
    return resolve(compose(None, [*SMALL, "model.hidden=[8]", *changes]).config)


def accuracies(folder):
    """Test accuracy on the first experience, in the order measured."""
    return [
        event["correct"] / event["samples"]
        for event in read_log(folder)
        if event["event"] == "evaluate" and event["experience"] == 0 and event["split"] == "test"
    ]


class FakeMLflow(types.ModuleType):
    """What the logger uses of MLflow, written down."""

    def __init__(self):
        super().__init__("mlflow")
        self.said, self.values = [], []

    def set_tracking_uri(self, address):
        self.said.append(("uri", address))

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name, place):
        self.said.append(("pictures", place))

    def set_experiment(self, name):
        self.said.append(("experiment", name))

    def start_run(self, run_name=None, tags=None):
        self.said.append(("start", run_name, tags))

    def log_params(self, params):
        assert len(params) <= 100
        assert all(isinstance(value, str) and len(value) <= 500 for value in params.values())
        self.said.append(("params", params["seed"]))

    def log_metrics(self, values, step=None):
        import re

        assert all(re.fullmatch(r"[\w\-. /]+", name) for name in values)  # the names that MLflow takes
        assert all(isinstance(value, float) for value in values.values())
        self.values.append((step, values))

    def log_image(self, pixels, file):
        self.pictures = [*getattr(self, "pictures", []), file]

    def end_run(self):
        self.said.append(("end",))


@pytest.mark.parametrize("database", [True, False])
def test_mlflow_gets_the_numbers_of_the_run_in_its_folder(tmp_path, monkeypatch, database):
    fake = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setattr("holdfast.runs.loggers.find_spec", lambda name: database)
    folder = run(job("loggers=[mlflow]", "tags=[a]", "seed=3"), tmp_path / "one", quiet=True)
    place = (folder / "mlflow").resolve()
    assert fake.said[0] == ("uri", f"sqlite:///{place}/mlflow.db" if database else f"file://{place}/mlruns")
    assert fake.said[1] == ("pictures", f"file://{place}/artifacts")
    assert fake.said[2:] == [("experiment", "holdfast"), ("start", "one", {"a": "true"}), ("params", "3"), ("end",)]
    key = "test/experience_0/accuracy"
    assert [values[key] for _, values in fake.values if key in values] == accuracies(folder)
    steps = [step for step, _ in fake.values]
    assert steps == sorted(steps)


def test_a_server_of_mlflow_is_asked_where_the_logger_is_not_offline(tmp_path, monkeypatch):
    fake = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    run(job("loggers=[{name: mlflow, offline: false, project: p}]"), tmp_path / "one", quiet=True)
    assert [said[0] for said in fake.said] == ["experiment", "start", "params", "end"]
    assert fake.said[0] == ("experiment", "p")


def test_mlflow_itself_keeps_a_run_offline(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'holdfast[loggers]'")
    monkeypatch.chdir(tmp_path)
    folder = run(job("loggers=[mlflow]", "tags=[a,b]"), tmp_path / "one", quiet=True)
    client = mlflow.MlflowClient(tracking_uri=mlflow.get_tracking_uri())
    experiment = client.get_experiment_by_name("holdfast")
    [kept] = client.search_runs([experiment.experiment_id])
    assert kept.info.status == "FINISHED"
    assert kept.data.tags["a"] == kept.data.tags["b"] == "true"
    assert kept.data.params["seed"] == "0"
    history = client.get_metric_history(kept.info.run_id, "test/experience_0/accuracy")
    found = [one.value for one in sorted(history, key=lambda one: one.timestamp)]
    assert sorted(found) == sorted(accuracies(folder))
    assert kept.data.metrics["continual/forgetting_first"] >= 0
    assert len(client.list_artifacts(kept.info.run_id, "continual")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["one"]  # its pictures too are in the folder of the run


@pytest.mark.slow
def test_wandb_itself_keeps_a_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="Weights & Biases is not installed: pip install 'holdfast[loggers]'")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.chdir(tmp_path)
    folder = run(job("loggers=[wandb]", "tags=[a,b]"), tmp_path / "one", quiet=True)
    [file] = folder.glob("wandb/wandb/offline-run-*/*.wandb")
    content, place, part, said = file.read_bytes(), 7, b"", []
    while place + 7 <= len(content) and content[place : place + 7] != bytes(7):  # the blocks of LevelDB
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        part, place = part + content[place + 7 : place + 7 + length], place + 7 + length
        if kind in (1, 4):  # whole, or the last piece
            said.append(wandb_internal_pb2.Record.FromString(part))
            part = b""
    [about] = [one.run for one in said if one.HasField("run")]
    assert (about.display_name, list(about.tags)) == ("one", ["a", "b"])
    assert {"method", "optimizer", "seed"} <= {one.key for one in about.config.update}
    rows = [
        {item.key or ".".join(item.nested_key): item.value_json for item in one.history.item}
        for one in said
        if one.HasField("history")
    ]
    key = "test/experience_0/accuracy"
    assert [float(row[key]) for row in rows if key in row] == pytest.approx(accuracies(folder))
    assert sum("continual/forgetting_first" in row for row in rows) == 1
    assert len(list(file.parent.glob("files/media/images/continual/*.png"))) == 2
    assert any(one.metric.step_metric == "step" for one in said if one.HasField("metric"))


@pytest.mark.slow
def test_comet_itself_keeps_a_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("comet_ml", reason="Comet is not installed: pip install 'holdfast[loggers]'")
    monkeypatch.chdir(tmp_path)
    folder = run(job("loggers=[comet]", "tags=[a,b]"), tmp_path / "one", quiet=True)
    [file] = folder.glob("comet/*.zip")
    said = [json.loads(line) for line in zipfile.ZipFile(file).read("messages.json").splitlines()]
    told = {kind: [one["payload"] for one in said if one["type"] == kind] for kind in {one["type"] for one in said}}
    assert {"method.name", "optimizer.lr"} <= {one["param"]["paramName"] for one in told["parameter_msg"]}
    values = {one["metric"]["metricName"]: float(one["metric"]["metricValue"]) for one in told["metric_msg"]}
    assert values["test/experience_0/accuracy"] == pytest.approx(accuracies(folder)[-1])
    assert values["continual/forgetting_first"] >= 0
    assert sum("accuracy_matrix" in json.dumps(one) for kind in told for one in told[kind]) == 2


def test_a_sweep_tells_a_missing_library_before_a_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("holdfast.runs.loggers.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "comet_ml", raising=False)
    with pytest.raises(ImportError, match=r"holdfast\[loggers\]"):
        sweep(None, [*SMALL, "loggers=[comet]", "seed=0,1"], out=tmp_path / "many", quiet=True)
    assert not list(tmp_path.iterdir())


class FakeExperiment:
    """What the logger uses of a Comet experiment, written down."""

    made = []

    def __init__(self, **about):
        self.about, self.values, self.tags, self.ended = about, [], [], False
        FakeExperiment.made.append(self)

    def set_name(self, name):
        self.name = name

    def log_parameters(self, parameters):
        self.parameters = parameters

    def add_tag(self, tag):
        self.tags.append(tag)

    def log_metrics(self, values, step=None):
        self.values.append((step, values))

    def log_image(self, pixels, name, step):
        self.pictures = [*getattr(self, "pictures", []), name]

    def end(self):
        self.ended = True


@pytest.mark.parametrize("offline", [True, False])
def test_comet_gets_the_numbers_of_the_run(tmp_path, monkeypatch, offline):
    class Offline(FakeExperiment):
        pass

    class Online(FakeExperiment):
        pass

    monkeypatch.setattr(FakeExperiment, "made", [])
    fake = types.SimpleNamespace(OfflineExperiment=Offline, Experiment=Online)
    monkeypatch.setitem(sys.modules, "comet_ml", fake)
    logger = f"loggers=[{{name: comet, project: p, offline: {str(offline).lower()}}}]"
    folder = run(job(logger, "tags=[a,b]"), tmp_path / "one", quiet=True)
    [made] = FakeExperiment.made
    assert type(made) is (Offline if offline else Online)
    expected = {"project_name": "p", **({"offline_directory": str(folder / "comet")} if offline else {})}
    assert made.about == expected
    assert (made.name, made.tags, made.ended) == ("one", ["a", "b"], True)
    assert made.parameters["seed"] == 0
    key = "test/experience_0/accuracy"
    assert [values[key] for _, values in made.values if key in values] == accuracies(folder)


def test_every_logger_is_closed_when_training_fails(tmp_path, monkeypatch):
    from holdfast.training import Trainer

    fake = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setattr(Trainer, "fit", lambda *given, **more: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(job("loggers=[mlflow]"), tmp_path / "one", quiet=True)
    assert fake.said[-1] == ("end",)


def test_loggers_get_average_accuracy_forgetting_and_the_matrix_as_a_picture(tmp_path):
    class Sink:
        def __init__(self):
            self.values, self.pictures = {}, []

        def write(self, values, step):
            self.values |= {(step, name): value for name, value in values.items()}

        def picture(self, name, pixels, step):
            self.pictures.append((name, pixels.shape[2], step))

        def close(self):
            pass

    from holdfast import Trainer, datasets, methods, metrics, models, streams

    sink = Sink()
    stream = streams.split(datasets.synthetic(classes=4, samples=20), experiences=2)
    model = models.mlp(input_shape=stream.input_shape, classes=4, hidden=[8], seed=0)
    events = Trainer(methods.finetune(), loggers=[sink]).fit(model, stream, out=tmp_path / "run")
    last = max(step for step, _ in sink.values)
    found = metrics.compute(events)
    for name in ("average_accuracy", "forgetting_first", "plasticity"):
        assert sink.values[last, f"continual/{name}"] == pytest.approx(found[name])
    assert [(name, channels) for name, channels, _ in sink.pictures] == [("continual/accuracy_matrix", 3)] * 2


def test_tensorboard_has_hyperparameters_beside_the_last_measures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoard(tmp_path, {"config": {"method": {"name": "er"}, "seed": 3}, "tags": []}, {})
    logger.write({"continual/average_accuracy": 0.5, "train/loss": 1.0}, 1)
    logger.close()
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert "end/average_accuracy" in read.Tags()["scalars"]
    assert any("hparams" in name for name in read.summary_metadata)
