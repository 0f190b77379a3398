"""From a job to a trainer, and from a checkpoint back to a model that can be asked."""

from __future__ import annotations

import hashlib
import json
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.config import plugins
from holdfast.config.check import validated
from holdfast.config.job import Job
from holdfast.core.engine import Engine
from holdfast.core.errors import DataError
from holdfast.core.experience import Stream
from holdfast.runs.folder import CONFIG, LAST, load_tensors, read_config, read_info, refuse_objects
from holdfast.training import Trainer
from holdfast.training.ranks import Ranks

WITHOUT_EFFECT = (
    *("references", "checkpoint", "folders", "tags", "loggers", "experiment_name", "profiler", "threads", "$schema"),
)
"""Keys of a job that change nothing about what is learned."""


@dataclass(frozen=True)
class Restored:
    """A trained model with everything around it.

    Attributes:
        config: of its run.
        stream: what it learned.
        trainer: that trained it.
        engine: model and method; `engine.predict` asks them.
        path: the checkpoint.
    """

    config: dict[str, Any]
    stream: Stream
    trainer: Trainer
    engine: Engine
    path: Path


def job_key(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits for a resolved configuration, without what has no effect on its results.

    The plug-in files in use are part of it.

    Args:
        config: resolved, so that a default left out and one written down give the same key.

    Example:
        >>> job_key({"seed": 1, "tags": ["a"]}) == job_key({"tags": [], "seed": 1})
        True
    """
    kept = {key: value for key, value in config.items() if key not in WITHOUT_EFFECT}
    if plugins.used():
        kept["plugins"] = plugins.digests()
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def make_trainer(job: Job, **services: Any) -> Trainer:
    """The trainer of a job, with a method that nobody else trains.

    Args:
        job: a single run.
        services: `record`, `progress` and `checkpoints` of the trainer.
    """
    return Trainer(**job.trainer_arguments(), **services)


def restore(where: Path | str, changes: dict[str, Any] | None = None) -> Restored:
    """The newest state of a run, from its folder, from a checkpoint file, or from the address of one.

    Args:
        where: a run folder, a `last.pt`, or an address that begins with http:// or https://.
        changes: top-level keys of the configuration to replace, for instance `device`.

    Raises:
        DataError: where there is no checkpoint, or a file that is none.
    """
    path = fetched(str(where)) if is_address(str(where)) else Path(where)
    if path.is_dir():
        checkpoint = path / "checkpoints" / LAST
        if not checkpoint.is_file():
            read_config(path)
            raise DataError(
                f"{path} has no checkpoint to evaluate. Give the folder of a single run, for instance {path}/seed-0."
            )
    elif path.is_file():
        checkpoint = path
    else:
        raise DataError(f"there is no checkpoint at {path}. Give a run folder, or its checkpoints/{LAST}.")
    loaded = load_tensors(checkpoint)
    if not isinstance(loaded, dict) or "state" not in loaded:
        raise DataError(
            f"{checkpoint} holds weights and no state of a run. Give {LAST}, which is beside it, or the run folder."
        )
    config = loaded.get("config") or _config_beside(checkpoint)
    folder = checkpoint.resolve().parent.parent
    refuse_objects(config, folder)
    plugins.check_recorded(read_info(folder).get("plugins", []), folder)
    job = validated({**config, **(changes or {})})
    stream = job.make_stream()
    model = job.make_model(stream)
    trainer = make_trainer(job)
    parts = 1 + len(loaded["state"].get("ranks") or [])  # a process's part of the memory has its size
    engine = trainer.bind(model, stream, Ranks(count=parts))
    engine.load(loaded["state"]["engine"])
    return Restored(job.config, stream, trainer, engine, checkpoint)


def is_address(where: str) -> bool:
    """Whether `where` is to be fetched."""
    return where.startswith(("http://", "https://", "file://"))


def fetched(address: str) -> Path:
    """The file at an address, in a new temporary folder.

    Raises:
        DataError: where it is not to be had.
    """
    name = Path(urllib.parse.urlparse(address).path).name or LAST
    target = Path(tempfile.mkdtemp(prefix="holdfast-")) / name
    try:
        urllib.request.urlretrieve(address, target)
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise DataError(f"{address} cannot be fetched: {reason}. Give its right address, or a file.") from error
    return target


def _config_beside(checkpoint: Path) -> dict[str, Any]:
    folder = checkpoint.resolve().parent.parent
    if not (folder / CONFIG).is_file():
        raise DataError(f"{checkpoint} does not say of which run it is. Give the run folder that it was written in.")
    return read_config(folder)
