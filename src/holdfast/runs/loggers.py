"""Loggers besides the run folder: TensorBoard, Weights & Biases, MLflow and Comet, imported where asked for."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from holdfast.core.errors import ConfigError, needs_extra, unknown
from holdfast.metrics import Log, compute
from holdfast.metrics.log import LOG_NAME
from holdfast.runs.result import Result

EXTRA = "loggers"
MATRIX = "continual/accuracy_matrix"
SHOWN = (
    *("average_accuracy", "task_aware_average_accuracy", "average_incremental_accuracy", "plasticity"),
    *("forgetting_first", "forgetting_max", "backward_transfer", "average_loss", "stability_gap"),
)
"""Measures that loggers get after each experience."""


class Sink(Protocol):
    """Where numbers go."""

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Keep `values` under `step`."""

    def close(self) -> None:
        """Finish."""


class TensorBoard:
    """Event files that `tensorboard --logdir` reads.

    Args:
        folder: for the files.
        about: name, configuration and tags of the run.
        spec: the entry of `loggers`.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise needs_extra("the logger tensorboard", "tensorboard", EXTRA) from error
        self._writer: Any = SummaryWriter(str(folder))
        self._writer.add_text("config", f"```\n{json.dumps(about['config'], indent=2)}\n```")
        if about["tags"]:
            self._writer.add_text("tags", ", ".join(about["tags"]))
        self._hyperparameters = flat(about["config"])
        self._measures: dict[str, float] = {}

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Keep `values` under `step`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._measures |= {name: value for name, value in values.items() if name.startswith("continual/")}

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Keep a picture under `step`."""
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left, and the last measures beside the hyperparameters (the tab HParams)."""
        if self._measures:
            ended = {f"end/{name.removeprefix('continual/')}": value for name, value in self._measures.items()}
            self._writer.add_hparams(self._hyperparameters, ended, run_name=".")
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; offline unless told otherwise (`wandb sync` sends it later)."""

    def __init__(self, folder: Path, about: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise needs_extra("the logger wandb", "wandb", EXTRA) from error
        self._run: Any = wandb.init(
            project=spec["project"],
            name=about["name"],
            dir=str(folder),
            config=about["config"],
            tags=about["tags"],
            mode="offline" if spec["offline"] else "online",
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Keep `values`; the step is a value of its own, since steps of training and evaluation differ."""
        self._run.log({**values, "step": step})

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Keep a picture."""
        import wandb

        self._run.log({name: wandb.Image(pixels), "step": step})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


MOST_VALUES = 100
"""Parameters that MLflow takes at once."""


class MLflow:
    """A run of MLflow, in a database in the folder, or in files there where the small MLflow is installed.

    Not offline, it goes where MLflow is told to go: `MLFLOW_TRACKING_URI`.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise needs_extra("the logger mlflow", "mlflow", EXTRA) from error
        self._mlflow: Any = mlflow
        if spec["offline"]:
            database = all(find_spec(library) for library in ("sqlalchemy", "alembic"))  # mlflow-skinny has neither
            address = f"sqlite:///{(folder / 'mlflow.db').resolve()}"
            if not database:
                os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer MLflows refuse files otherwise
            mlflow.set_tracking_uri(address if database else (folder / "mlruns").resolve().as_uri())
            if mlflow.get_experiment_by_name(spec["project"]) is None:  # else its pictures go to the working directory
                mlflow.create_experiment(spec["project"], (folder / "artifacts").resolve().as_uri())
        mlflow.set_experiment(spec["project"])
        mlflow.start_run(run_name=about["name"], tags=dict.fromkeys(about["tags"], "true"))
        values = [(key, str(value)[:500]) for key, value in flat(about["config"]).items()]
        for start in range(0, len(values), MOST_VALUES):
            mlflow.log_params(dict(values[start : start + MOST_VALUES]))

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Keep `values` under `step`."""
        self._mlflow.log_metrics(dict(values), step=step)

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Keep a picture as an artifact of its step."""
        self._mlflow.log_image(pixels, f"{name}_{step}.png")

    def close(self) -> None:
        """Finish the run."""
        self._mlflow.end_run()


class Comet:
    """An experiment of Comet; offline (a zip in the folder) unless told otherwise."""

    def __init__(self, folder: Path, about: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
        try:
            import comet_ml
        except ImportError as error:
            raise needs_extra("the logger comet", "comet-ml", EXTRA) from error
        if spec["offline"]:
            self._experiment: Any = comet_ml.OfflineExperiment(
                project_name=spec["project"], offline_directory=str(folder)
            )
        else:
            self._experiment = comet_ml.Experiment(project_name=spec["project"])
        self._experiment.set_name(about["name"])
        self._experiment.log_parameters(flat(about["config"]))
        for tag in about["tags"]:
            self._experiment.add_tag(tag)

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Keep `values` under `step`."""
        self._experiment.log_metrics(dict(values), step=step)

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Keep a picture under `step`."""
        self._experiment.log_image(pixels, name=name, step=step)

    def close(self) -> None:
        """Finish the experiment."""
        self._experiment.end()


def flat(config: Mapping[str, Any], path: str = "") -> dict[str, str | int | float | bool]:
    """The values of a configuration by their dotted keys; what is null is left out.

    Example:
        >>> flat({"method": {"name": "er", "capacity": 200}, "scheduler": None, "seeds": [0, 1]})
        {'method.name': 'er', 'method.capacity': 200, 'seeds': '[0, 1]'}
    """
    values: dict[str, str | int | float | bool] = {}
    for key, value in config.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping):
            values |= flat(value, name)
        elif value is not None:
            values[name] = value if isinstance(value, str | int | float | bool) else json.dumps(value, default=str)
    return values


SINKS: dict[str, Callable[[Path, Mapping[str, Any], Mapping[str, Any]], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "comet": Comet,
}


LIBRARIES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "comet": "comet_ml"}
PACKAGES = {"mlflow": "mlflow-skinny", "comet": "comet-ml"}
DEFAULTS: dict[str, Any] = {"project": "holdfast", "offline": True, "folder": None}


def specified(loggers: Iterable[Any]) -> list[Any]:
    """Loggers as a user writes them (a name, a mapping with `name`, or an object with `write` and `close`) in full.

    Raises:
        ConfigError: for anything else.
        ImportError: where a library is not installed, with what to install; before anything is made.
    """
    full = []
    for logger in loggers:
        if isinstance(logger, str | Mapping):
            spec = {**DEFAULTS, **({"name": logger} if isinstance(logger, str) else logger)}
            name = spec.get("name")
            if name not in SINKS:
                raise ConfigError(unknown("logger", name, SINKS))
            for key in spec.keys() - {"name", *DEFAULTS}:
                raise ConfigError(unknown(f"setting of the logger {name}", key, DEFAULTS))
            if LIBRARIES[name] not in sys.modules and find_spec(LIBRARIES[name]) is None:
                raise needs_extra(f"the logger {name}", PACKAGES.get(name, name), EXTRA)
            full.append(spec)
        elif callable(getattr(logger, "write", None)) and callable(getattr(logger, "close", None)):
            full.append(logger)
        else:
            raise ConfigError(
                f"loggers got {logger!r}. Give names ({', '.join(SINKS)}), mappings with a name, or objects with "
                "write(values, step) and close()."
            )
    return full


class Loggers:
    """Every logger of a run.

    Args:
        specs: the entries of `loggers`, or objects with `write(values, step)` and `close()`.
        folder: of the run; a logger without a folder of its own gets one there.
        config: of the run.

    Raises:
        ImportError: where a library is not installed, with what to install.
    """

    def __init__(self, specs: Iterable[Any], folder: Path, config: Mapping[str, Any]) -> None:
        about = {"name": folder.resolve().name, "config": config, "tags": list(config.get("tags") or [])}
        self._sinks: list[Sink] = []
        for spec in specs:
            if not isinstance(spec, Mapping):
                self._sinks.append(spec)
                continue
            target = Path(spec["folder"]) if spec["folder"] else folder / str(spec["name"])
            target.mkdir(parents=True, exist_ok=True)
            self._sinks.append(SINKS[spec["name"]](target, about, spec))
        self._step, self._folder = 0, folder

    def event(self, event: Mapping[str, Any]) -> None:
        """Pass the numbers of an event of the log on."""
        if not self._sinks:
            return
        self._step = int(event.get("step", self._step))
        values = {name: float(value) for name, value in numbers(event).items() if value is not None}
        if event["event"] == "experience":
            values |= self._measures()
        for sink in self._sinks:
            sink.write(values, self._step)
        drawing = [sink.picture for sink in self._sinks if hasattr(sink, "picture")]
        if event["event"] == "experience" and drawing:
            pixels = matrix_picture(self._folder)
            for draw in drawing if pixels is not None else ():
                draw(MATRIX, pixels, self._step)

    def _measures(self) -> dict[str, float]:
        """Average accuracy, forgetting and the like after an experience, from the log as far as it goes."""
        measures = compute(Log.read(self._folder)) if (self._folder / LOG_NAME).is_file() else {}
        names = [name for name in SHOWN if measures.get(name) is not None]
        return {f"continual/{name}": float(measures[name]) for name in names}

    def close(self) -> None:
        """Finish all."""
        for sink in self._sinks:
            sink.close()


def matrix_picture(folder: Path) -> np.ndarray | None:
    """The accuracy matrix of a run so far, `[height, width, 3]` bytes; None without accuracies.

    Args:
        folder: of the run.
    """
    from holdfast.runs.plots import heat_map

    run = Result(folder)
    if not np.isfinite(run.matrix).any():
        return None
    figure = heat_map(run.matrix, run.names)
    figure.canvas.draw()
    pixels: np.ndarray = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]
    return pixels


def numbers(event: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of one event, by the names that loggers show.

    Example:
        >>> numbers({"event": "evaluate", "experience": 1, "split": "test", "samples": 4, "correct": 3, "loss": 0.5})
        {'test/experience_1/loss': 0.5, 'test/experience_1/accuracy': 0.75}
    """
    kind = event["event"]
    if kind == "train":
        values = {f"train/{key}": event.get(key) for key in ("loss", "accuracy", "lr")}
        return {**values, **{f"train/terms/{name}": value for name, value in (event.get("terms") or {}).items()}}
    if kind == "evaluate":
        name = f"{event['split']}/experience_{event['experience']}"
        values = {f"{name}/loss": event.get("loss")}
        for key, label in (("correct", "accuracy"), ("correct_task", "task_aware_accuracy")):
            if event.get(key) is not None:
                values[f"{name}/{label}"] = event[key] / event["samples"]
        return values
    if kind == "experience":
        return {f"experience/{key}": event.get(key) for key in ("seconds", "parameters", "memory_bytes")}
    return {}
