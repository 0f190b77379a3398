"""The default job, and how a job that says less is completed by it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from holdfast.config import kinds
from holdfast.config.signatures import parameters

CHOSEN = ("name", "operations")
"""The keys that choose what a block is; a block with one of them stands for itself."""


def default() -> dict[str, Any]:
    """The default job as it stands in the package: `holdfast run` without a configuration."""
    values: dict[str, Any] = json.loads(Path(__file__).with_name("default.json").read_text(encoding="utf-8"))
    return values


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with what it leaves out taken from the default job.

    A block that says its `name` stands for itself, and what it leaves out is that callable's default; a block
    without a name, like `trainer`, changes single keys of the default job's. References are run only where asked for.
    """
    result: dict[str, Any] = {}
    for key, base in default().items():
        if key in config:
            result[key] = _merged(base, copy.deepcopy(config[key]))
        else:
            result[key] = [] if key == "references" else base
    result.update(
        {key: copy.deepcopy(value) for key, value in config.items() if key not in result and key != "$schema"}
    )
    stream = result["stream"]
    if isinstance(stream, str) and takes_dataset(stream):
        stream = result["stream"] = {"name": stream}
    if isinstance(stream, dict) and "dataset" not in stream and takes_dataset(stream.get("name")):
        stream["dataset"] = default()["stream"]["dataset"]
    given = config.get("trainer")
    if isinstance(given, dict) and isinstance(result["trainer"], dict):
        settle_length(result["trainer"], set(given))
    return result


def _merged(base: Any, given: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(given, dict) or any(key in given for key in CHOSEN):
        return given
    return {**base, **given}


def takes_dataset(name: object) -> bool:
    """Whether the stream called `name` is made from one data set."""
    factory = kinds.names("streams").get(str(name))
    return factory is not None and any(parameter.name == "dataset" for parameter in parameters(factory))


def settle_length(trainer: dict[str, Any], given: set[str]) -> None:
    """Of `epochs` and `iterations`, the one that was given wins over the one that was not."""
    for one, other in (("iterations", "epochs"), ("epochs", "iterations")):
        if one in given and other not in given and trainer[one] is not None and trainer.get(other) is not None:
            trainer[other] = None
