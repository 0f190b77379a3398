"""What is wrong with blocks, as sentences: the path, the value seen, and the nearest right name or what is expected."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from holdfast.config import kinds, schema
from holdfast.config.read import as_plain, check_plain, default
from holdfast.config.signatures import parameters
from holdfast.config.words import dotted, nearest, shown
from holdfast.core.errors import ConfigError, HoldfastError
from holdfast.streams.datasets.vision import known_datasets

EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "bool_type": "true or false",
    "none_required": "null",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}

SPECIAL = {("seeds",): "a number of seeds from 1 to 10000, a list of them, or null"}
"""What is expected at paths that pydantic cannot describe."""


def expected(error: Any) -> str:
    """What one error of pydantic wanted to see."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in EXPECTED:
        return EXPECTED[kind]
    if kind == "literal_error":
        return f"one of {context['expected']}"
    bounds = {"greater_than_equal": ("ge", "at least"), "greater_than": ("gt", "more than")}
    bounds |= {"less_than_equal": ("le", "at most"), "less_than": ("lt", "less than")}
    if kind in bounds:
        key, word = bounds[kind]
        return f"a number of {word} {context[key]:g}"
    if kind in ("too_short", "too_long"):
        number = context.get("min_length", context.get("max_length"))
        return f"a list of at {'least' if kind == 'too_short' else 'most'} {number}"
    return str(error["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")


def hint(value: Any, kinds: set[str], wanted: str) -> str:
    """What to write instead, where the value shows what was meant."""
    numeric = kinds & {"int_type", "int_from_float", "float_type"}
    if isinstance(value, bool) and numeric:
        return "true and false are not numbers"
    if isinstance(value, str) and numeric and re.fullmatch(r"\s*[-+]?[\d_]*\.?\d+([eE][-+]?\d+)?\s*", value):
        return f"write {value.strip()} without quotes"
    if isinstance(value, str) and "bool_type" in kinds:
        meant = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}
        if value.lower() in meant:
            return f"write {meant[value.lower()]} without quotes"
    if (
        isinstance(value, float)
        and kinds & {"int_type", "int_from_float"}
        and value == value // 1
        and abs(value) < 1e15
    ):
        return f"write {int(value)}"
    if value in (0, 1) and isinstance(value, int) and "bool_type" in kinds:
        return f"write {'true' if value else 'false'}"
    if isinstance(value, (int, float)) and "string_type" in kinds:
        return f'write "{value}" in quotes'
    if kinds & {"list_type", "tuple_type"} and not isinstance(value, (list, dict)) and value is not None:
        return f"write [{shown(value)}]"
    if "literal_error" in kinds:
        near = nearest(value, re.findall(r"'([^']*)'", wanted))
        return f"did you mean {near!r}?" if near else ""
    return ""


KIND_AT = {key: kind.plural for key, kind in kinds.KEYS.items()}
"""Key -> what kind of thing its block is."""

Path = tuple[Any, ...]


@dataclass
class Place:
    """Where an error is: its path as the user wrote it, the value there, and the block around it."""

    path: Path
    value: Any
    found: bool
    kind: str = ""
    name: str = ""


def sentences(errors: Iterable[Any], raw: Any, prefix: Path = ()) -> list[str]:
    """Every error as one sentence that begins with its path, in the order of the configuration.

    Args:
        errors: `ValidationError.errors()`.
        raw: what was validated, as the user wrote it.
        prefix: the path of `raw` itself.
    """
    placed = [(place(error, raw, prefix), error) for error in errors]
    grouped: dict[Path, list[tuple[Place, Any]]] = {}
    for where, error in placed:
        deeper = any(
            len(other.path) > len(where.path) and other.path[: len(where.path)] == where.path for other, _ in placed
        )
        if not (deeper and error["type"] in EXPECTED):  # another alternative of the same union came further
            grouped.setdefault(where.path, []).append((where, error))
    return [_sentence(path, group) for path, group in grouped.items()]


def place(error: Any, raw: Any, prefix: Path) -> Place:
    """Follow the location of an error, which also names the alternatives of unions, through what the user wrote."""
    here = Place(prefix, raw, True)
    for part in error["loc"]:
        if isinstance(part, str) and part.startswith(schema.TAG):
            key = next((key for key in reversed(here.path) if key in KIND_AT), "")
            here.kind, here.name = KIND_AT.get(key, ""), part[len(schema.TAG) :]
            continue
        value = here.value
        if isinstance(value, dict) and isinstance(part, int) and part < len(value):
            part = list(value)[part]  # operations written as a mapping
        inside = part in value if isinstance(value, dict) else isinstance(part, int) and isinstance(value, list)
        if inside and (isinstance(value, dict) or part < len(value)):
            here = Place((*here.path, part), value[part], True, here.kind, here.name)
        elif error["type"] == "missing" and part == error["loc"][-1]:
            here = Place((*here.path, part), None, False, here.kind, here.name)
    return here


def _sentence(path: Path, group: list[tuple[Place, Any]]) -> str:
    where, error = group[0]
    kind = error["type"]
    if kind == "extra_forbidden":
        text = _unknown_key(where)
    elif kind == "missing":
        text = _missing(where)
    elif kind == "union_tag_invalid":
        named = isinstance(where.value, dict) and "name" in where.value
        text = _unknown_name(where)
        path = (*path, "name") if named else path
    else:
        wanted = [SPECIAL[path]] if path in SPECIAL else list(dict.fromkeys(expected(error) for _, error in group))
        text = f"got {shown(where.value)}, expected {' or '.join(wanted)}"
        advice = "" if path in SPECIAL else hint(where.value, {error["type"] for _, error in group}, " ".join(wanted))
        text += f"; {advice}" if advice else ""
        text += "" if text.endswith("?") else "."
    return f"{dotted(path)}: {text}"


def known_keys(where: Place) -> tuple[str, list[str]]:
    """What the object that holds `where` is called, and the keys it may have."""
    parent = where.path[:-1]
    if where.kind and where.path[0] not in ("trainer", "checkpoint"):
        if where.name == "operations":
            return "a method made of operations", ["operations"]
        keys = ["name"] + [p.name for p in kinds.configurable(where.kind, kinds.find(where.kind, where.name))]
        if where.kind in ("streams", "schedulers"):
            inside = "of" in where.path
            keys = [f.alias or key for key, f in schema.model_of(where.kind, where.name, inside).model_fields.items()]
        return f"{kinds.KINDS[where.kind].word} `{where.name}`", keys
    fields = schema.job_model().model_fields
    if not parent:
        return "a job", list(fields)
    if parent[0] == "loggers":
        return "a logger", list(schema.LOGGER_FIELDS)
    part: Any = fields[parent[0]].annotation
    part = next((one for one in get_args(part) if hasattr(one, "model_fields")), part)  # of a part that may be null
    return f"`{parent[0]}`", [field.alias or key for key, field in part.model_fields.items()]


def _unknown_key(where: Place) -> str:
    key = str(where.path[-1])
    owner, allowed = known_keys(where)
    if key in ("_target_", "_partial_", "_args_", "_recursive_", "_convert_", "class_path", "init_args"):
        return (
            f"a configuration cannot run code, so there is no key {key!r}; "
            "name things of Holdfast or of installed packages: `holdfast list methods`."
        )
    if where.name == "operations" and key == "name":
        return "a method has either a `name` or `operations`; both are given. Delete one of the two."
    if key == "dataset" and "of" in where.path:
        return "the data set is given once, outside. Write stream.dataset=..."
    elsewhere = _elsewhere(key, where.path)
    near = elsewhere or nearest(key, allowed)
    if near:
        return f"unknown key {key!r} of {owner}; did you mean {near!r}?"
    return f"unknown key {key!r}; the keys of {owner} are {', '.join(allowed)}."


def _elsewhere(key: str, path: Path) -> str:
    """The full path of a right key of this very name in another part of the job."""
    fields = schema.job_model().model_fields
    if len(path) > 1 and key in fields:
        return key
    for part in ("trainer", "checkpoint"):
        annotation: Any = fields[part].annotation
        if part not in path and any(
            field.alias == key or name == key for name, field in annotation.model_fields.items()
        ):
            return f"{part}.{key}"
    for part in ("optimizer", "method", "model"):
        block = default().get(part)
        function = kinds.names(KIND_AT[part]).get(block["name"]) if isinstance(block, dict) else None
        if function is None or part in path:
            continue
        if any(parameter.name == key for parameter in kinds.configurable(KIND_AT[part], function)):
            return f"{part}.{key}"
    return ""


def _missing(where: Place) -> str:
    key = where.path[-1]
    if isinstance(key, int):
        return "is missing; the list has too few elements."
    owner, _ = known_keys(where)
    if where.kind and where.name != "operations" and key != "name":
        model = schema.model_of(where.kind, where.name)
        doc = next((f.description for name, f in model.model_fields.items() if key in (name, f.alias)), "")
        meaning = f" ({doc.rstrip('.')})" if doc else ""
        return f"is missing; {owner} needs it{meaning}. Write {dotted(where.path)}=..."
    return f"is missing; {owner} needs it."


def _of_torchvision(name: str) -> str:
    """The data set of torchvision that a name means; empty without torchvision, or if it has no such data set."""
    plain = "".join(letter for letter in name.lower() if letter.isalnum())
    try:
        names = known_datasets()
    except ImportError:
        return ""
    return next((one for one in names if one.lower() == plain), "")


def _unknown_name(where: Place) -> str:
    key = next((key for key in reversed(where.path) if key in KIND_AT), "")
    kind = KIND_AT.get(key, "")
    if (
        key == "operations"
        and isinstance(where.path[-1], str)
        and where.path[-1] != "operations"
        and isinstance(where.value, dict)
    ):
        where.value = {"name": schema.operation_name(where.path[-1]), **where.value}
    elif key == "operations" and isinstance(where.path[-1], str) and where.value is None:
        where.value = schema.operation_name(where.path[-1])
    word = kinds.KINDS[kind].word
    value = where.value
    if isinstance(value, dict) and "name" not in value:
        if "_target_" in value or "class_path" in value:
            return (
                "a configuration cannot run code, so `_target_` and `class_path` mean nothing; "
                f'write {{"name": ...}} with a name that `holdfast list {kind}` shows.'
            )
        near = nearest("name", [key for key in value if key not in ("seed", "size")])
        suggestion = (
            f"; did you mean 'name' instead of {near!r}?" if near else f"; `holdfast list {kind}` shows all names."
        )
        return f"has no `name` to say which {word} it is{suggestion}"
    name = value.get("name") if isinstance(value, dict) else value
    if not isinstance(name, str):
        meant = f'the name of {"an" if word[0] in "aeiou" else "a"} {word}, or an object with a "name"'
        return f"got {shown(name)}, expected {meant}; `holdfast list {kind}` shows all."
    if name in kinds.names(kind):
        return f"`{name}` cannot be cut: it is made of several data sets, or cuts a stream itself. Choose another."
    text = kinds.unknown_name(kind, name)
    if kind == "datasets" and (which := _of_torchvision(name)):
        return f'{name!r} is a data set of torchvision. Write {{"name": "torchvision", "which": "{which}"}}.'
    if re.search(r"[./:]|__", name):
        text += " A configuration names things, it never imports them by path."
    return text


def refuse(problems: Sequence[str], source: str = "") -> None:
    """Raise one `ConfigError` with all `problems`, if there are any."""
    if not problems:
        return
    where = f"{source}: " if source else ""
    if len(problems) == 1:
        raise ConfigError(f"{where}{problems[0]}")
    listing = "\n".join(f"  {problem}" for problem in problems)
    raise ConfigError(f"{where}{len(problems)} things are wrong in this configuration:\n{listing}")


def check_block(kind: str, spec: Any, path: tuple[str, ...]) -> Any:
    """The validated pydantic block of one thing of `kind`.

    Raises:
        ConfigError: with everything that is wrong, under `path`.
    """
    value, problems = try_block(kind, spec, path)
    refuse(problems)
    return value


def try_block(kind: str, spec: Any, path: tuple[str, ...]) -> tuple[Any, list[str]]:
    """The validated pydantic block of one thing of `kind`, or None and what is wrong with it."""
    problems = check_plain(spec, path)
    if problems:
        return None, problems
    spec = as_plain(spec)
    try:
        return TypeAdapter(schema.block(kind)).validate_python(spec), []
    except ValidationError as error:
        return None, sentences(error.errors(include_url=False), spec, path)


def called(path: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """`function(**arguments)`, with what it refuses as a `ConfigError` that begins with `path`."""
    try:
        return function(**arguments)
    except HoldfastError as error:
        text = str(error)
        raise type(error)(text if text.startswith(path) else f"{path}: {text}") from None
    except (TypeError, ValueError, AssertionError, ZeroDivisionError, KeyError, IndexError) as error:
        name = getattr(function, "__name__", str(function))
        seen = ", ".join(f"{key}={shown(value)}" for key, value in changed(function, arguments).items())
        reason = str(error).rstrip(".") or type(error).__name__
        raise ConfigError(
            f"{path}: {name} refuses {seen or 'its defaults'}: {reason}. `holdfast list` shows what it takes."
        ) from None


def changed(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `arguments` that are plain values and not the default of `function`."""
    defaults = {p.name: p.default for p in parameters(function) if p.configurable}
    return {
        key: value
        for key, value in arguments.items()
        if key in defaults and key != "params" and as_plain(value) != defaults[key]
    }


def needs_argument(function: Callable[..., Any], name: str) -> bool:
    """Whether `function` takes an argument of this name."""
    return name in inspect.signature(function).parameters
