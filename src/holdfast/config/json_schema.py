"""The JSON Schema of a job, for completion and checking in editors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from holdfast.config import kinds, schema
from holdfast.config.read import default

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The schema of every configuration: keys, names and values, each with its description.

    A block may be a bare name, or an object whose `name` chooses what else it may hold. Every key is optional at
    the top, and what stands in the default job may be changed without repeating its name.
    """
    definitions: dict[str, Any] = {}
    job = schema.job_model().model_json_schema(by_alias=True)
    for kind in {row.plural: None for row in kinds.KEYS.values()}:
        for name in kinds.names(kind):
            _add(definitions, kind, name)
    properties = job["properties"]
    for part in ("trainer", "checkpoint", "folders"):
        definitions[part] = job["$defs"][part]
    definitions["augment"], definitions["changes"] = job["$defs"]["augment"], job["$defs"]["changes"]
    for key, kind in (("optimizer", "optimizers"), ("scheduler", "schedulers")):
        shape = _block(kind)
        shape["oneOf"].append({"type": "null"})
        definitions["changes"]["properties"][key] = shape
    for key, row in kinds.BLOCKS.items():
        kind = row.plural
        base = default()[key]
        shape = _block(kind)
        if isinstance(base, dict) and base["name"] in kinds.names(kind):
            shape["oneOf"].append(_nameless(definitions[_key(kind, base["name"])]))
        if key == "method":
            shape["oneOf"].append({"$ref": "#/$defs/method_operations"})
        if base is None:
            shape["oneOf"].append({"type": "null"})
        properties[key] = {"description": properties[key].get("description", ""), **shape}
    definitions["method_operations"] = _composition()
    properties["seeds"] = {
        "description": properties["seeds"]["description"],
        "oneOf": [
            {"type": "integer", "minimum": 1},
            {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
            {"type": "null"},
        ],
    }
    properties["references"]["items"] = {"enum": list(kinds.names("methods"))}
    properties["sweep"] = _sweep()
    properties["$schema"] = {"type": "string", "description": "where this schema is, for editors"}
    return {
        "$schema": DIALECT,
        "title": "Holdfast job",
        "description": "A continual-learning job: every key is optional.",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "$defs": definitions,
    }


def _sweep() -> dict[str, Any]:
    """What a file may say of a sweep; it is no part of the job."""
    whole = {"type": "integer", "minimum": 1}
    return {
        "type": "object",
        "description": "keys to vary, with `holdfast run -m`; the best setting is chosen by validation data",
        "properties": {
            "params": {
                "type": "object",
                "description": "key -> list of values, or choice(..), range(..), interval(..)",
            },
            "method": {"enum": ["grid", "random"], "description": "every combination, or some drawn at random"},
            "trials": {**whole, "description": "settings that random draws"},
            "seed": {"type": "integer", "minimum": 0, "description": "of the drawing"},
            "seeds": {**whole, "description": "runs of each setting"},
            "metric": {"type": "string", "description": "measure that the best setting is chosen by"},
        },
        "required": ["params"],
        "additionalProperties": False,
    }


def _add(definitions: dict[str, Any], kind: str, name: str) -> None:
    """The definition of one name; definitions nested in it are left to `_block`."""
    shape = schema.model_of(kind, name).model_json_schema(by_alias=True)
    shape.pop("$defs", None)
    for key, other in (
        ("dataset", _block("datasets")),
        ("datasets", {"type": "array", "minItems": 1, "items": _block("datasets")}),
        ("of", _block("streams", schema.inner_streams(), {"type": "null"})),
    ):
        if kind == "streams" and key in shape["properties"]:
            shape["properties"][key] = {"description": shape["properties"][key].get("description", ""), **other}
            if key == "dataset":  # the default job's
                shape["required"].remove(key)
    definitions[_key(kind, name)] = shape


def _key(kind: str, name: str) -> str:
    return f"{kinds.KINDS[kind].word}_{name}"


def _block(kind: str, names: Sequence[str] | None = None, *more: dict[str, Any]) -> dict[str, Any]:
    """A bare name, or an object with that name, or one of `more`."""
    chosen = list(kinds.names(kind)) if names is None else list(names)
    references = [{"$ref": f"#/$defs/{_key(kind, name)}"} for name in chosen]
    return {"oneOf": [{"enum": chosen}, *references, *more]}


def _nameless(shape: dict[str, Any]) -> dict[str, Any]:
    """The same object without its name: changes to the block of the default job."""
    properties = {key: value for key, value in shape["properties"].items() if key != "name"}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _composition() -> dict[str, Any]:
    """A method made of operations, as a list or as a mapping whose keys are their names."""
    known = list(kinds.names("operations"))
    pattern = f"^({'|'.join(known)})(_[0-9]+)?$"
    return {
        "type": "object",
        "description": "A method composed of operations, in the order in which they act.",
        "properties": {
            "operations": {
                "oneOf": [
                    {"type": "array", "items": _block("operations")},
                    {
                        "type": "object",
                        "patternProperties": {pattern: {"type": ["object", "null"]}},
                        "additionalProperties": False,
                    },
                ]
            }
        },
        "required": ["operations"],
        "additionalProperties": False,
    }
