"""Checking a whole job before anything is loaded: every fault at once, each in a sentence with its path."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from holdfast.config import namespaces, schema
from holdfast.config.messages import sentences
from holdfast.config.signatures import parameters
from holdfast.config.words import dotted, nearest, shown
from holdfast.core.errors import ConfigError, HoldfastError
from holdfast.core.method import Method
from holdfast.core.operation import Operation

DEPTH = 32
"""How deep a configuration may nest."""


def refuse(problems: Sequence[str], source: str = "") -> None:
    """Raise one `ConfigError` with all `problems`, if there are any."""
    if not problems:
        return
    where = f"{source}: " if source else ""
    if len(problems) == 1:
        raise ConfigError(f"{where}{problems[0]}")
    listing = "\n".join(f"  {problem}" for problem in problems)
    raise ConfigError(f"{where}{len(problems)} things are wrong in this configuration:\n{listing}")


def check_plain(value: Any, path: tuple[Any, ...] = ()) -> list[str]:
    """A sentence for everything in `value` that JSON cannot write."""
    where = f"{dotted(path)}: " if path else ""
    if len(path) > DEPTH:
        return [f"{where}nested more than {DEPTH} deep. `holdfast schema` shows the shape of a configuration."]
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{where}got {value}, expected a finite number."]
    if value is None or isinstance(value, (bool, int, float, str)):
        return []
    if isinstance(value, (list, tuple)):
        return [problem for i, item in enumerate(value) for problem in check_plain(item, (*path, i))]
    if isinstance(value, dict):
        keys = [f"{where}the key {key!r} is no string; write {str(key)!r}." for key in value if not isinstance(key, str)]
        return keys + [problem for key, item in value.items() for problem in check_plain(item, (*path, key))]
    return [f"{where}got a {type(value).__name__}, expected a plain JSON value: number, string, true, null, list or object."]


def as_plain(value: Any) -> Any:
    """`value` copied, with tuples as lists."""
    if isinstance(value, dict):
        return {key: as_plain(item) for key, item in value.items()}
    return [as_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def check_job(config: dict[str, Any], source: str = "") -> Any:
    """The validated pydantic job of a completed configuration.

    Raises:
        ConfigError: with everything that is wrong.
    """
    try:
        job = schema.job_model().model_validate(config)
    except ValidationError as error:
        refuse(sentences(error.errors(include_url=False), config), source)
        raise
    refuse(cross_checks(job), source)
    return job


def check_block(kind: str, spec: Any, path: tuple[str, ...]) -> Any:
    """The validated pydantic block of one thing of `kind`.

    Raises:
        ConfigError: with everything that is wrong, under `path`.
    """
    refuse(check_plain(spec, path))
    spec = as_plain(spec)
    try:
        return TypeAdapter(schema.block(kind)).validate_python(spec)
    except ValidationError as error:
        refuse(sentences(error.errors(include_url=False), spec, path))
        raise


def make_method(value: Any) -> Method:
    """The method of a validated block.

    Raises:
        ConfigError: where the method refuses its arguments.
    """
    if hasattr(value, "operations"):
        return Method(*(make_operation(operation, i) for i, operation in enumerate(value.operations)))
    method = called("method", namespaces.find("methods", value.name), schema.arguments(value))
    if not isinstance(method, Method):
        raise ConfigError(f"method: {value.name!r} gave a {type(method).__name__} instead of a Method. Correct its package.")
    return method


def make_operation(value: Any, index: int) -> Operation:
    """The operation of a validated block."""
    function = namespaces.find("operations", value.name)
    return called(f"method.operations.{index}", function, schema.arguments(value))  # type: ignore[no-any-return]


def called(path: str, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
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
        raise ConfigError(f"{path}: {name} refuses {seen or 'its defaults'}: {reason}. `holdfast list` shows what it takes.") from None


def changed(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of `arguments` that are plain values and not the default of `function`."""
    defaults = {p.name: p.default for p in parameters(function) if p.configurable}
    return {key: value for key, value in arguments.items() if key in defaults and as_plain(value) != defaults[key]}


def cross_checks(job: Any) -> list[str]:
    """What is wrong between the parts of a job that are right each for itself."""
    problems: list[str] = []
    trainer = schema.dump(job.trainer)
    stream = schema.dump(job.stream)
    if trainer.get("epochs") is not None and trainer.get("iterations") is not None:
        problems.append(
            f"trainer: both epochs ({trainer['epochs']}) and iterations ({trainer['iterations']}) are given. "
            "Keep one, and write null for the other."
        )
    elif "iterations" in trainer and trainer.get("epochs") is None and trainer["iterations"] is None:
        problems.append("trainer: neither epochs nor iterations is given. Write trainer.epochs=1.")
    if "of" in stream and stream["of"] is not None:
        try:
            inner = check_block("streams", {**schema.expand(stream["of"]), "dataset": stream["dataset"]}, ("stream", "of"))
            stream = {**schema.dump(inner), **{k: v for k, v in stream.items() if k == "validation"}}
        except ConfigError as error:
            problems.append(str(error))
    if trainer.get("evaluate") in ("validation", "both") and stream.get("validation", 1) in (0, None):
        problems.append(
            f"trainer.evaluate: got {shown(trainer['evaluate'])}, but the stream holds no validation data out. "
            "Write stream.validation=0.1, or trainer.evaluate=test."
        )
    problems += _check_method(job, stream)
    problems += _check_optimizer(job)
    problems += _check_references(job.references)
    problems += check_device_name(job.device)
    if job.seeds is not None and len(set(job.seeds)) < len(job.seeds):
        problems.append(f"seeds: got {shown(job.seeds)}, in which a seed stands twice. Keep each once.")
    return problems


def _check_method(job: Any, stream: dict[str, Any]) -> list[str]:
    try:
        method = make_method(job.method)
    except HoldfastError as error:
        return [str(error)]
    problems = []
    paradigm = stream.get("paradigm")
    if "task" in method.needs and isinstance(paradigm, str) and paradigm != "task":
        problems.append(
            f"method: `{method.name}` uses task labels (its operation `{method.needs['task']}`), and the stream is "
            f"{paradigm}-incremental, which has none. Write stream.paradigm=task, or choose a method without: er, der, agem."
        )
    if schema.dump(job.model).get("head") == "task" and isinstance(paradigm, str) and paradigm != "task":
        problems.append(
            f'model.head: got "task", which has a set of outputs for each task label, and the stream is {paradigm}-incremental, '
            "which has no labels. Write stream.paradigm=task, or model.head=growing."
        )
    owners = [operation.name for operation in method if operation.overrides("criterion")]
    if owners and job.criterion != "cross_entropy":
        problems.append(
            f"criterion: got {shown(job.criterion)}, but `{owners[0]}` brings its own loss, so it would never be used. "
            "Leave the criterion out, or choose another method."
        )
    if "classes" in method.needs and job.criterion not in ("cross_entropy", "nll_loss", "multi_margin_loss"):
        problems.append(
            f"criterion: got {shown(job.criterion)}, a loss without class labels, but `{method.needs['classes']}` works with "
            "them. Write criterion=cross_entropy, or choose another method."
        )
    return problems


def _check_optimizer(job: Any) -> list[str]:
    """Ask torch itself: without parameters it checks the values, then stops before it imports its compiler."""
    function = namespaces.find("optimizers", job.optimizer.name)
    try:
        called("optimizer", function, {"params": [], **schema.arguments(job.optimizer)})
    except ConfigError as error:
        return [] if "empty parameter list" in str(error) else [str(error)]
    return []


def _check_references(references: list[str]) -> list[str]:
    problems = []
    known = namespaces.names("methods")
    for index, name in enumerate(references):
        if name not in known:
            problems.append(f"references.{index}: {namespaces.unknown_name('methods', name)}")
        elif any(parameter.required for parameter in namespaces.configurable("methods", known[name])):
            problems.append(f"references.{index}: `{name}` has parameters without a default. Run it as a method of its own.")
        elif name in references[:index]:
            problems.append(f"references.{index}: {name!r} stands twice. Keep it once.")
    return problems


def check_device_name(device: str) -> list[str]:
    """Whether torch knows a device of this name; whether it is there is asked when it is used."""
    import torch

    try:
        torch.device(device)
    except RuntimeError:
        near = nearest(device.split(":")[0], ["cpu", "cuda", "mps", "xpu"])
        advice = f"did you mean {near!r}?" if near else "write cpu, cuda, cuda:1 or mps."
        return [f"device: unknown device {device!r}; {advice}"]
    return []


def needs_argument(function: Callable[..., Any], name: str) -> bool:
    """Whether `function` takes an argument of this name."""
    return name in inspect.signature(function).parameters
