"""What is wrong between the parts of a job that are right each for itself; nothing is loaded to find out."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from holdfast.config import namespaces, schema
from holdfast.config.blocks import try_block
from holdfast.config.make import called, make_method
from holdfast.config.words import nearest, shown
from holdfast.core.errors import ConfigError, HoldfastError
from holdfast.core.method import Method


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
        given = schema.expand(stream["of"])
        if "dataset" in given:
            problems.append("stream.of.dataset: the data set is given once, outside. Write stream.dataset=...")
        inner, wrong = try_block("streams", {**given, "dataset": stream["dataset"]}, ("stream", "of"))
        problems += wrong
        stream = schema.dump(inner) if inner is not None else stream
    if trainer.get("evaluate") in ("validation", "both") and stream.get("validation", 1) in (0, None):
        problems.append(
            f"trainer.evaluate: got {shown(trainer['evaluate'])}, but the stream holds no validation data out. "
            "Write stream.validation=0.1, or trainer.evaluate=test."
        )
    held_out = stream.get("validation", 1) not in (0, None)
    for key in ("patience", "restore_best"):
        if trainer.get(key) and not held_out:
            problems.append(
                f"trainer.{key}: got {shown(trainer[key])}, but the stream holds no validation data out. "
                "Write stream.validation=0.1."
            )
    for key in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        if isinstance(trainer.get(key), float) and trainer[key] > 1:
            problems.append(
                f"trainer.{key}: got {shown(trainer[key])}, expected a whole number, or a fraction up to 1.0."
            )
    hidden = getattr(job.model, "given_hidden", None) or ()
    if isinstance(hidden, (list, tuple)) and any(isinstance(size, int) and size < 1 for size in hidden):
        problems.append(f"model.hidden: got {shown(list(hidden))}, expected whole numbers from 1 up.")
    problems += _check_method(job, stream)
    problems += _check_optimizer(job) or _check_scheduler(job)
    problems += _check_references(job.references, stream)
    problems += check_device_name(job.device)
    if job.seeds is not None and len(set(job.seeds)) < len(job.seeds):
        problems.append(f"seeds: got {shown(job.seeds)}, in which a seed stands twice. Keep each once.")
    return problems


def _check_method(job: Any, stream: dict[str, Any]) -> list[str]:
    try:
        method = make_method(job.method)
    except HoldfastError as error:
        return [str(error)]
    problems = _check_labels("method", method, stream)
    paradigm = stream.get("paradigm")
    if schema.dump(job.model).get("head") == "task" and isinstance(paradigm, str) and paradigm != "task":
        problems.append(
            'model.head: got "task", which has a set of outputs for each task label, and the stream is '
            f"{paradigm}-incremental, which has none. Write stream.paradigm=task, or model.head=growing."
        )
    owners = [operation.name for operation in method if operation.overrides("criterion")]
    if owners and job.criterion != "cross_entropy":
        problems.append(
            f"criterion: got {shown(job.criterion)}, but `{owners[0]}` brings its own loss, so it would never be used. "
            "Leave the criterion out, or choose another method."
        )
    if "classes" in method.needs and job.criterion not in ("cross_entropy", "nll_loss", "multi_margin_loss"):
        problems.append(
            f"criterion: got {shown(job.criterion)}, a loss without class labels, but `{method.needs['classes']}` "
            "works with them. Write criterion=cross_entropy, or choose another method."
        )
    return problems


def _check_labels(path: str, method: Method, stream: dict[str, Any]) -> list[str]:
    """Whether `method` gets the task labels that it needs."""
    paradigm = stream.get("paradigm")
    if "task" not in method.needs or not isinstance(paradigm, str) or paradigm == "task":
        return []
    return [
        f"{path}: `{method.name}` uses task labels (its operation `{method.needs['task']}`), and the stream is "
        f"{paradigm}-incremental, which has none. "
        "Write stream.paradigm=task, or choose a method that does without: er, der, agem."
    ]


def _check_optimizer(job: Any) -> list[str]:
    """Ask torch itself: without parameters it checks the values, then stops before it imports its compiler."""
    function = namespaces.find("optimizers", job.optimizer.name)
    try:
        called("optimizer", function, {"params": [], **schema.arguments(job.optimizer)})
    except ConfigError as error:
        return [] if "empty parameter list" in str(error) else [str(error)]
    return []


def _check_scheduler(job: Any) -> list[str]:
    """Make the scheduler over one number and move it once. Its optimiser imports torch's compiler, for a second."""
    if job.scheduler is None:
        return []
    function = namespaces.find("schedulers", job.scheduler.name)
    size = getattr(job.scheduler, "given_step_size", 1)
    if isinstance(size, int) and size < 0:
        return [f"scheduler.step_size: got {size}, expected a number of at least 1."]

    def moved(**arguments: Any) -> None:
        optimizer = namespaces.find("optimizers", job.optimizer.name)
        scheduler = function(
            optimizer([torch.nn.Parameter(torch.zeros(1, 1))], **schema.arguments(job.optimizer)), **arguments
        )
        scheduler.step()

    moved.__name__, moved.__wrapped__ = job.scheduler.name, function  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            called("scheduler", moved, schema.arguments(job.scheduler, "every"))
    except ConfigError as error:
        return [str(error)]
    return []


def _check_references(references: list[str], stream: dict[str, Any]) -> list[str]:
    problems = []
    known = namespaces.names("methods")
    for index, name in enumerate(references):
        if name in references[:index]:
            problems.append(f"references.{index}: {name!r} stands twice. Keep it once.")
        elif name in ("independent", "random"):
            continue
        elif name not in known:
            problems.append(f"references.{index}: {namespaces.unknown_name('methods', name)}")
        elif any(parameter.required for parameter in namespaces.configurable("methods", known[name])):
            problems.append(
                f"references.{index}: `{name}` has parameters without a default. Run it as a method of its own."
            )
        else:
            problems += _check_labels(f"references.{index}", known[name](), stream)
    return problems


def check_device_name(device: str) -> list[str]:
    """Whether torch knows a device of this name; whether it is there is asked when it is used."""
    if device == "auto":
        return []
    try:
        torch.device(device)
    except RuntimeError:
        near = nearest(device.split(":")[0], ["cpu", "cuda", "mps", "xpu", "auto"])
        advice = f"did you mean {near!r}?" if near else "write cpu, cuda, cuda:1 or mps."
        return [f"device: unknown device {device!r}; {advice}"]
    return []
