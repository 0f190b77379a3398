"""What a configuration shows: one name with its parameters, a job in a few lines or as a tree, and its JSON Schema."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdfast.config import kinds, schema
from holdfast.config.compose import DEFAULT, Composition
from holdfast.config.kinds import KINDS, configurable, find
from holdfast.config.messages import changed
from holdfast.config.read import default
from holdfast.config.signatures import Parameter, docs, type_name
from holdfast.config.words import shown

if TYPE_CHECKING:
    from rich.tree import Tree


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
    for part in ("trainer", "checkpoint", "folders", "arrival"):
        definitions[part] = job["$defs"][part]
    definitions["augment"], definitions["changes"] = job["$defs"]["augment"], job["$defs"]["changes"]
    for key, kind in (("optimizer", "optimizers"), ("scheduler", "schedulers")):
        shape = _block(kind)
        shape["oneOf"].append({"type": "null"})
        definitions["changes"]["properties"][key] = shape
    for key, row in kinds.BLOCKS.items():
        kind = row.plural
        base = default().get(key)
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
    """What a file may say of a sweep; it is not part of the job."""
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
    operations = list(kinds.names("operations"))
    pattern = f"^({'|'.join(operations)})(_[0-9]+)?$"
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


@dataclass(frozen=True)
class Description:
    """What a listing says about one name.

    Attributes:
        name: in JSON.
        summary: first sentence of the docstring.
        parameters: what a configuration may give.
        paper: where it was published, if it was.
        role: what it is for; of a method, the roles of its operations.
        needs: what it cannot do without.
    """

    name: str
    summary: str
    parameters: tuple[Parameter, ...]
    paper: str = ""
    role: str = ""
    needs: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """All of it but the name, as JSON holds it."""
        parameters = {
            one.name: {
                "type": type_name(one.type),
                **({} if one.required else {"default": one.default}),
                "description": one.doc,
            }
            for one in self.parameters
        }
        facts = {"summary": self.summary, "paper": self.paper, "role": self.role, "needs": list(self.needs)}
        return {**{key: value for key, value in facts.items() if value}, "parameters": parameters}


def describe(kind: str, name: str) -> Description:
    """Everything a listing shows about the `name` of `kind`.

    Raises:
        ConfigError: if there is none of that name.
    """
    value = find(kind, name)
    if not KINDS[kind].made and hasattr(value, "direction"):
        better = {"up": "more is better", "down": "less is better"}[value.direction]
        return Description(name, value.description, (), role=better)
    summary, _ = docs(inspect.unwrap(value).__doc__)
    paper, role, needs = getattr(value, "paper", ""), getattr(value, "role", ""), getattr(value, "needs", ())
    if kind in ("methods", "operations"):
        try:
            example = value()
        except Exception:  # it has parameters without a default: the class says what it can
            example = None
        if example is not None:
            needs = example.needs
            if kind == "methods":
                role = ", ".join(dict.fromkeys(operation.role for operation in example))
    return Description(
        name,
        summary,
        tuple(configurable(kind, value)),
        str(paper or ""),
        role if isinstance(role, str) else "",
        tuple(sorted(needs)) if isinstance(needs, (dict, frozenset, set, tuple)) else (),
    )


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
    changed = {
        key: value for key, value in config["trainer"].items() if value != defaults.get(key) and value is not None
    }
    lines["trainer"] = ", ".join(f"{key}={shown(value)}" for key, value in changed.items()) or "defaults"
    for key in ("start_from", "criterion", "device", "threads"):
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
    arguments = {key: value for key, value in spec.items() if key not in ("name", "dataset", "datasets", "every")}
    words = [f"{key}={shown(value)}" for key, value in changed(kinds.find(kind, spec["name"]), arguments).items()]
    data = [spec["dataset"]] if "dataset" in spec else spec.get("datasets", [])
    words = [one_line("datasets", part) for part in data] + words
    if "every" in spec:
        words.append(f"every={spec['every']}")
    return f"{spec['name']}({', '.join(words)})"


def tree(composition: Composition, resolved: Mapping[str, Any], title: str = "job") -> Tree:
    """The tree that `holdfast config` prints.

    Args:
        composition: what was composed.
        resolved: the same, checked and with every default.
        title: at its root.
    """
    from rich.text import Text
    from rich.tree import Tree

    def grow(branch: Tree, value: Any, path: tuple[str, ...]) -> None:
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in items:
            here = (*path, str(key))
            label = f"{key}"
            if isinstance(part, Mapping) or (isinstance(part, list) and any(isinstance(one, Mapping) for one in part)):
                grow(branch.add(Text(label, "bold")), part, here)
            else:
                source = _source(composition, resolved, here)
                branch.add(Text.assemble((f"{label}: ", "bold"), shown(part, 200), (f"  {source}", "dim")))

    root = Tree(Text(title, "bold"), guide_style="dim")
    grow(root, resolved, ())
    return root


def lines(composition: Composition, resolved: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """The same flat: dotted path -> value and source."""
    flat: dict[str, tuple[Any, str]] = {}

    def walk(value: Any, path: tuple[str, ...]) -> None:
        if isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(one, Mapping) for one in value)):
            for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
                walk(part, (*path, str(key)))
        else:
            flat[".".join(path)] = (value, _source(composition, resolved, path))

    walk(resolved, ())
    return flat


def _source(composition: Composition, resolved: Mapping[str, Any], path: tuple[str, ...]) -> str:
    """The source of a value, of a list's elements the last that was said."""
    below = [source for where, source in composition.origins.items() if where[: len(path)] == path]
    return below[-1] if below else origin(composition, resolved, path)


def origin(composition: Composition, resolved: Mapping[str, Any], path: tuple[str, ...]) -> str:
    """Where the value at `path` of a resolved configuration came from.

    Args:
        composition: what was resolved.
        resolved: of `resolve`.
        path: of a value without parts.
    """
    for length in range(len(path), 0, -1):
        if path[:length] in composition.origins:
            return composition.origins[path[:length]]
    block: Any = resolved
    owner = ""
    for part in path[:-1]:
        block = block[int(part)] if isinstance(block, list) else block[part]
        if isinstance(block, Mapping) and isinstance(block.get("name"), str):
            owner = block["name"]
    if path[-1] == "name" and len(path) > 1:
        above = [path_above for path_above in composition.origins if path_above[: len(path) - 1] == path[:-1]]
        return composition.origins[above[0]] if above else DEFAULT
    return f"default of {owner}" if owner else "default"
