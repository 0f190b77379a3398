"""A resolved configuration in a few lines, saying only what is not a default."""

from __future__ import annotations

from typing import Any

from holdfast.config import kinds, schema
from holdfast.config.job import changed
from holdfast.config.words import shown


def summary(config: dict[str, Any]) -> dict[str, str]:
    """One line for each part of a resolved configuration.

    Args:
        config: from `resolve`.
    """
    lines = {}
    for key, kind in kinds.BLOCKS.items():
        if config[key] is not None:
            lines[key] = one_line(kind.plural, config[key])
    defaults = {parameter.name: parameter.default for parameter in schema.trainer_parameters()}
    given = {key: value for key, value in config["trainer"].items() if value != defaults.get(key) and value is not None}
    lines["trainer"] = ", ".join(f"{key}={shown(value)}" for key, value in given.items()) or "defaults"
    for key in ("criterion", "device", "threads"):
        if config[key] is not None:
            lines[key] = str(config[key])
    seeds = config["seeds"] or [config["seed"]]
    lines["seeds" if len(seeds) > 1 else "seed"] = ", ".join(map(str, seeds))
    if config["references"]:
        lines["references"] = ", ".join(config["references"])
    return lines


def one_line(kind: str, spec: dict[str, Any]) -> str:
    """A block as a call: `split(digits, experiences=5)`."""
    if "operations" in spec:
        return " + ".join(one_line("operations", operation) for operation in spec["operations"])
    given = {key: value for key, value in spec.items() if key not in ("name", "dataset", "datasets", "every")}
    words = [f"{key}={shown(value)}" for key, value in changed(kinds.find(kind, spec["name"]), given).items()]
    data = [spec["dataset"]] if "dataset" in spec else spec.get("datasets", [])
    words = [one_line("datasets", part) for part in data] + words
    if "every" in spec:
        words.append(f"every={spec['every']}")
    return f"{spec['name']}({', '.join(words)})"
