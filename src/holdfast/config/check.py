"""Validating a configuration: every fault at once, each in a sentence with its path; nothing is loaded to find out."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from pydantic import ValidationError

from holdfast.config import arrivals, kinds, schema
from holdfast.config.job import PROTOCOLS, Job
from holdfast.config.messages import refuse, sentences
from holdfast.config.read import as_plain, check_plain, completed
from holdfast.config.trial import check_device_name, disagreements
from holdfast.config.updates import check_changes, check_held_out, check_optimizer, check_scheduler
from holdfast.config.words import pattern_problem, renamed_compile, shown
from holdfast.core.criteria import without_classes
from holdfast.core.errors import ConfigError, HoldfastError, NeedError, unknown
from holdfast.core.method import Method
from holdfast.core.operation import acts_at
from holdfast.models.library import architectures
from holdfast.streams.datasets.vision import known_datasets
from holdfast.training.precision import launched
from holdfast.training.programs import chosen
from holdfast.training.ranks import check_shared


def validated(config: Any, source: str = "", together: bool = False) -> Job:
    """The job that a configuration describes.

    Args:
        config: what a file says; every key may be left out.
        source: the file's name, for error messages.
        together: whether its parts are put together over stand-ins for the data, too (`config.trial`), as a run does
            it anyway with the data.

    Raises:
        ConfigError: with everything that is wrong, each in a sentence with its path.
    """
    if not isinstance(config, dict):
        raise ConfigError(f'a configuration is an object, not a {type(config).__name__}. Write {{"method": "er"}}.')
    refuse(check_plain(config), source)
    values = completed(as_plain(config))
    kinds.names("metrics")  # those of other packages are in the table when the run is measured
    try:
        block = schema.job_model().model_validate(values)
    except ValidationError as error:
        refuse(sentences(error.errors(include_url=False), values), source)
        raise
    job = Job(schema.dump(block), block)
    renamed_compile(job.config)
    refuse(cross_checks(job) or (disagreements(job) if together else []), source)
    return job


def cross_checks(job: Job) -> list[str]:
    """What is wrong between the parts of a job that are right each for itself."""
    if job.learns_from_source:
        return _checks_of_a_source(job)
    problems: list[str] = []
    if job.config["stream"] is None:
        return ["stream: neither a stream nor a source is given. Write stream=split, or source=toy8."]
    block, config, trainer, stream = job.block, job.config, job.config["trainer"], job.config["stream"]
    if trainer.get("epochs") is not None and trainer.get("iterations") is not None:
        problems.append(
            f"trainer: both epochs ({trainer['epochs']}) and iterations ({trainer['iterations']}) are given. "
            "Keep one, and write null for the other."
        )
    elif "iterations" in trainer and trainer.get("epochs") is None and trainer["iterations"] is None:
        problems.append("trainer: neither epochs nor iterations is given. Write trainer.epochs=1.")
    for key in ("boundary", "arrival"):
        if config.get(key) is not None:
            problems.append(
                f"{key}: it is for a source, and a stream says by itself where experiences begin. Write source=."
            )
    if stream.get("of") is not None:
        stream = {**stream["of"], "dataset": stream["dataset"]}
    if trainer.get("evaluate") in ("validation", "both") and stream.get("validation", 1) in (0, None):
        problems.append(
            f"trainer.evaluate: got {shown(trainer['evaluate'])}, but the stream holds no validation data out. "
            "Write stream.validation=0.1, or trainer.evaluate=test."
        )
    problems += check_held_out(stream, "trainer", trainer)
    for key in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        if isinstance(trainer.get(key), float) and trainer[key] > 1:
            problems.append(
                f"trainer.{key}: got {shown(trainer[key])}, expected a whole number, or a fraction up to 1.0."
            )
    for key in ("run", "multirun"):
        pattern = config["folders"][key]
        fault = "" if pattern is None else pattern_problem(pattern)
        problems += [f"folders.{key}: {fault}"] if fault else []
    problems += _check_method(job, stream)
    problems += check_optimizer(block.optimizer) or check_scheduler(block.optimizer, block.scheduler)
    problems += check_changes(block, stream)
    if block.scheduler is not None and block.scheduler.name == "ReduceLROnPlateau":
        refused = check_held_out(stream, "", {**trainer, "scheduler": "ReduceLROnPlateau"}, ("scheduler",))
        problems += [problem.removeprefix(".") for problem in refused]
    problems += check_processes(job)
    problems += _check_references(job, stream)
    problems += check_device_name(config["device"])
    if config["seeds"] is not None and len(set(config["seeds"])) < len(config["seeds"]):
        problems.append(f"seeds: got {shown(config['seeds'])}, in which a seed stands twice. Keep each once.")
    return problems


def _checks_of_a_source(job: Job) -> list[str]:
    """What is wrong between the parts of a job that learns from a source."""
    block, config = job.block, job.config
    problems = arrivals.problems_of(job)
    problems += check_optimizer(block.optimizer) or check_scheduler(block.optimizer, block.scheduler)
    with contextlib.suppress(HoldfastError):
        problems += _check_criterion(job.method, config["criterion"])
    problems += _check_loss_of_model(config["model"]["name"], config["criterion"])
    problems += check_processes(job) + check_device_name(config["device"])
    if config["seeds"] is not None and len(set(config["seeds"])) < len(config["seeds"]):
        problems.append(f"seeds: got {shown(config['seeds'])}, in which a seed stands twice. Keep each once.")
    return problems


def _check_method(job: Job, stream: dict[str, Any]) -> list[str]:
    try:
        method = job.method
    except HoldfastError as error:
        return [str(error)]
    problems = _check_labels("method", method, stream)
    strangers = any(not type(one).__module__.startswith("holdfast.") and acts_at(one, "setup") for one in method)
    if method.unfilled and not strangers:  # a stranger's operation may make a memory without saying so
        problems.append(
            f"method: `{method.unfilled}` draws from a memory, and no operation fills one. "
            "Add one that does: remember, remember_exemplars or remember_diverse."
        )
    head, criterion = job.config["model"].get("head"), job.config["criterion"]
    model = job.config["model"]["name"]
    unlabelled = _unlabelled(stream)
    if head in ("task", "cosine_task") and unlabelled:
        problems.append(
            f'model.head: got "{head}", which has a set of outputs for each task label, and {unlabelled} '
            "Or write model.head=growing."
        )
    elif "task" in getattr(kinds.find("models", model), "needs", ()) and unlabelled:
        problems.append(f"model: `{model}` works by task labels, and {unlabelled}")
    for operation in method:
        if operation.heads and isinstance(head, str) and head not in operation.heads:
            heads = ", ".join(sorted(operation.heads))
            problems.append(f'model.head: got "{head}", and `{operation.name}` works with {heads}. Choose one of them.')
    problems += _check_inputs(model, stream) + _check_libraries(job, stream)
    problems += _check_criterion(method, criterion) + _check_loss_of_model(model, criterion)
    return problems + _check_targets(criterion, stream, job.config["stream"]["name"])


def _check_criterion(method: Method, criterion: str) -> list[str]:
    """Whether `method` works with the loss of the job."""
    problems = []
    owners = [operation.name for operation in method if acts_at(operation, "criterion")]
    if owners and criterion != "cross_entropy":
        problems.append(
            f"criterion: got {shown(criterion)}, but `{owners[0]}` brings its own loss, so it would never be used. "
            "Leave the criterion out, or choose another method."
        )
    loss = kinds.CRITERIA.get(criterion, "cross_entropy")  # what a plug-in takes, it has to know itself
    if "classes" in method.needs and loss not in ("cross_entropy", "nll_loss", "multi_margin_loss"):
        problems.append(
            f"criterion: got {shown(criterion)}, a loss without class labels, but `{method.needs['classes']}` "
            "works with them. Write criterion=cross_entropy, or choose another method."
        )
    return problems


def _check_loss_of_model(model: str, criterion: str) -> list[str]:
    """Whether the loss takes what the forward of a model gives, for a model that says which losses do."""
    taken = getattr(kinds.find("models", model), "criteria", ())
    if not taken or criterion in taken or criterion not in kinds.CRITERIA:
        return []
    told = " or ".join(f"criterion={name}" for name in taken)
    return [f"criterion: got {shown(criterion)}, and `{model}` gives what another loss takes. Write {told}."]


def _check_targets(criterion: str, stream: dict[str, Any], outer: str) -> list[str]:
    """Whether the loss takes targets of the kind that the data sets have, or that the `outer` stream makes of them."""
    if criterion not in kinds.CRITERIA:
        return []
    datasets = [stream["dataset"]] if stream.get("dataset") else stream.get("datasets") or []
    loss = kinds.find("criteria", criterion)
    for dataset in map(schema.expand, datasets):
        made = getattr(kinds.find("datasets", dataset["name"]), "kind", "classification")  # always numbers, or as told
        recast = getattr(kinds.find("streams", outer), "kind", None)  # whatever the data set has
        numbers = (recast or dataset.get("kind", made)) == "regression"
        if numbers and not without_classes(loss):
            return [
                f"criterion: got {shown(criterion)}, which takes class indices, and data set `{dataset['name']}` has "
                "numbers as targets. Write criterion=mse, or binary_cross_entropy_with_logits for several labels a row."
            ]
        if without_classes(loss) and not numbers:
            return [
                f"criterion: got {shown(criterion)}, which takes numbers as targets, and data set `{dataset['name']}` "
                "has classes. Write criterion=cross_entropy."
            ]
    return []


def _check_labels(path: str, method: Method, stream: dict[str, Any]) -> list[str]:
    """Whether `method` gets the task labels that it needs."""
    unlabelled = _unlabelled(stream)
    if "task" not in method.needs or not unlabelled:
        return []
    return [
        f"{path}: `{method.name}` uses task labels (its operation `{method.needs['task']}`), and {unlabelled} "
        "Or choose a method that does without: er, der, agem."
    ]


def _unlabelled(stream: dict[str, Any]) -> str:
    """That a stream has no task labels, and what to write for one that has; empty where it has, or nobody can tell."""
    declared = getattr(kinds.find("streams", stream["name"]), "paradigm", None)
    paradigm = stream.get("paradigm", declared)
    if not isinstance(paradigm, str) or paradigm == "task":
        return ""
    advice = "stream.paradigm=task" if "paradigm" in stream else "stream=split stream.paradigm=task"
    return f"the stream is {paradigm}-incremental, which has none. Write {advice}."


def _check_inputs(model: str, stream: dict[str, Any]) -> list[str]:
    """Whether stream and model take the inputs that the data sets are known to have."""
    datasets = [stream["dataset"]] if stream.get("dataset") else stream.get("datasets") or []
    vectors = [
        one["name"] for one in datasets if getattr(kinds.find("datasets", one["name"]), "inputs", "") == "vectors"
    ]
    takers = {"stream": ("streams", stream["name"]), "model": ("models", model)}
    return [
        f"{path}: `{name}` takes images, and data set `{vectors[0]}` has vectors. "
        f"Choose a data set of images, or another {path}."
        for path, (kind, name) in takers.items()
        if vectors and getattr(kinds.find(kind, name), "inputs", "") == "images"
    ]


def _check_libraries(job: Job, stream: dict[str, Any]) -> list[str]:
    """Names that a library lacks, by its own list; nothing where it is not installed, which is told when it is used."""
    problems = []
    datasets = {"stream.dataset": stream["dataset"]} if stream.get("dataset") else {}
    datasets |= {f"stream.datasets.{i}": one for i, one in enumerate(stream.get("datasets") or [])}
    for path, dataset in datasets.items():
        if dataset["name"] == "torchvision":
            with contextlib.suppress(ImportError):
                names = known_datasets()
                if str(dataset["which"]).lower() not in {name.lower() for name in names}:
                    problems.append(f"{path}.which: {unknown('torchvision data set', dataset['which'], names)}")
    model = job.config["model"]
    library, name = model.get("library", model["name"]), model.get("architecture")
    if library in ("torchvision", "timm") and model["name"] in ("torchvision", "timm", "frozen") and name is not None:
        with contextlib.suppress(ImportError):
            made = architectures(library)
            if str(name).split(".")[0] not in made:
                problems.append(f"model.architecture: {unknown(f'{library} architecture', name, made)}")
    return problems


def check_processes(job: Job) -> list[str]:
    """What several processes cannot share, and number formats that the device does not have."""
    trainer = job.config["trainer"]
    problems = []
    if trainer["precision"] == "16-mixed" and job.config["device"] == "cpu":
        problems.append(
            "trainer.precision: 16-mixed is for GPUs, and the device is the CPU. Write trainer.precision=bf16-mixed."
        )
    if job.config["device"] == "cpu":
        try:
            chosen(trainer["capture"], torch.device("cpu"))
        except ConfigError as error:
            told = str(error).removeprefix("capture=").replace("capture=", "trainer.capture=")
            problems.append(f"trainer.capture: {told}")
    if trainer["num_nodes"] > 1 and not launched():
        problems.append(
            f"trainer.num_nodes: got {trainer['num_nodes']}, and a run starts the processes of one machine. Write"
            " trainer.num_nodes=1, or start the command on every machine by torchrun or SLURM."
        )
    return problems + check_shares(job)


def check_shares(job: Job) -> list[str]:
    """Why the job's method cannot be trained in as many processes as it asks for."""
    trainer = job.config["trainer"]
    count = trainer["devices"] * trainer["num_nodes"]
    if count == 1:
        return []
    with contextlib.suppress(HoldfastError):  # what is wrong with the method alone is told elsewhere
        try:
            check_shared(job.method, trainer["batch_size"], count)
        except NeedError as error:
            return [f"trainer.devices: {' '.join(str(error).split())}"]
        except ConfigError as error:
            if "batch_size" in str(error):
                return [f"trainer.{error}"]
    return []


def _check_references(job: Job, stream: dict[str, Any]) -> list[str]:
    problems = []
    methods, references = kinds.names("methods"), job.config["references"]
    for index, name in enumerate(references):
        if name in references[:index]:
            problems.append(f"references.{index}: {name!r} stands twice. Keep it once.")
        elif name in PROTOCOLS:
            continue
        elif name not in methods:
            problems.append(f"references.{index}: {kinds.unknown_name('methods', name)}")
        elif any(parameter.required for parameter in kinds.configurable("methods", methods[name])):
            problems.append(
                f"references.{index}: `{name}` has parameters without a default. Run it as a method of its own."
            )
        else:
            against = job.references[name]
            problems += _check_labels(f"references.{index}", against.method, stream)
            for problem in [*_check_criterion(against.method, job.config["criterion"]), *check_shares(against)]:
                problems.append(f"references.{index}: `{name}` does not fit this job. {problem}")
    return problems
