"""Every setting of a training in one dataclass: what is alike in the whole run, and what may differ by experience."""

# Annotations are evaluated here: the configuration reads types and defaults off the dataclass, in other modules too.
import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import torch

from holdfast.core.errors import ConfigError, renamed, unknown
from holdfast.core.learner import Criterion
from holdfast.core.ranges import BelowOne, Count, NonNegative, Positive, Range, check_fields
from holdfast.training.divergence import OnDivergence
from holdfast.training.optimization import OptimizerFactory, SchedulerFactory, optimizer_factory
from holdfast.training.precision import Precision, check_precision
from holdfast.training.programs import CaptureMode, chosen

Changes = Mapping[str, Any]
PerExperience = Mapping[str | int, Changes] | Sequence[Changes | None]
"""Changes by experience (`{0: ..., "2-4": ..., "5-": ...}`), or a list with one entry for each, None for none."""

Strategy = Literal["auto", "ddp", "ddp_fork", "ddp_spawn"]

Limit = Annotated[int | float, Range(0, low_open=True)]
"""A number of batches, or a fraction of them up to 1.0."""

AUGMENTATIONS = ("crop", "flip")
"""Arguments of `streams.dataset.Prepare` that act in training only."""


@dataclasses.dataclass(kw_only=True)
class ExperienceSettings:
    """What may differ from one experience to the next.

    Args:
        optimizer: a torch name, a mapping with `name` and arguments, or a function from parameters to an optimiser.
        scheduler: a function from an optimiser to a scheduler; a new one for each experience.
        epochs: passes over each experience's data.
        iterations: steps per experience instead of epochs (the data is shuffled again whenever it runs out).
        batch_size: current samples per step, of all processes together.
        drop_last: leave out an epoch's last batch if it is smaller than the others; an only batch is kept.
        reset_optimizer: start each experience with a new optimiser, without the momentum of the last.
        scheduler_every: move the scheduler every `step` or every `epoch`.
        clip_norm: largest norm of the whole gradient; larger ones are scaled down to it.
        clip_by: what `clip_norm` bounds: the `norm` of the whole gradient, or each `value` of it.
        accumulate: batches whose gradients are averaged before the optimiser moves.
        limit_train_batches: batches of each experience's training data that are used, a number or a fraction; the same
            every epoch.
        patience: end an experience after so many epochs without a better validation accuracy.
        restore_best: end an experience with the weights of the epoch that had the best validation accuracy.
        monitor: what `patience` and `restore_best` look at: the `accuracy`, or the `loss`, of which less is better.
        min_delta: by how much it must be better to count.
        monitor_on: the data it is measured on: `validation`, or the `test` data of all experiences so far. What is
            chosen on test data looks better than it is; it is there to repeat what was measured so.

    Attributes:
        augment: random changes of the training inputs, set by `changed` alone.

    Raises:
        ConfigError: for a number that makes no sense.
    """

    optimizer: str | Mapping[str, Any] | OptimizerFactory = "SGD"
    scheduler: SchedulerFactory | None = None
    epochs: Count = 1
    iterations: Count | None = None
    batch_size: Count = 32
    drop_last: bool = False
    reset_optimizer: bool = False
    scheduler_every: Literal["step", "epoch"] = "epoch"
    clip_norm: Positive | None = None
    clip_by: Literal["norm", "value"] = "norm"
    accumulate: Count = 1
    limit_train_batches: Limit | None = None
    patience: Count | None = None
    restore_best: bool = False
    monitor: Literal["accuracy", "loss"] = "accuracy"
    min_delta: NonNegative = 0.0
    monitor_on: Literal["validation", "test"] = "validation"
    augment: Mapping[str, Any] | None = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        check_fields(self, "Trainer")
        self.optimizer = optimizer_factory(self.optimizer)
        check_limit("limit_train_batches", self.limit_train_batches)

    @property
    def make_optimizer(self) -> OptimizerFactory:
        """From parameters to a new optimiser; the same object as long as nobody changed the optimiser."""
        return optimizer_factory(self.optimizer)

    def changed(self, changes: Changes) -> Self:
        """These settings with some others; `epochs` puts `iterations` out of force.

        Raises:
            ConfigError: for a name that is not a setting of an experience.
        """
        names = [field.name for field in dataclasses.fields(ExperienceSettings)]
        for name in changes:
            if name not in names:
                raise ConfigError(unknown("setting of an experience", name, names))
        new = dict(changes)
        augment = new.pop("augment", self.augment)
        for name in augment or ():
            if name not in AUGMENTATIONS:
                raise ConfigError(unknown("augmentation", name, AUGMENTATIONS))
        if new.get("epochs") is not None and "iterations" not in new:
            new["iterations"] = None
        made = dataclasses.replace(self, **new)
        made.augment = augment
        return made


@dataclasses.dataclass(kw_only=True)
class Settings(ExperienceSettings):
    """Every setting of a training.

    Args:
        per_experience: what is different in some experiences, by number: `{0: {"epochs": 5}, "1-": {"batch_size": 8}}`,
            or a list with one entry for each experience; every setting of `ExperienceSettings` may differ.
        criterion: `criterion(outputs, targets)` -> mean loss; default: cross-entropy.
        eval_batch_size: samples per forward in evaluation.
        precision: `32-true`; `bf16-mixed` or `16-mixed` (GPUs only) for autocast; `64-true` for doubles.
        evaluate: which data the accuracy matrix is measured on: `test`, `validation`, `both` or `none`.
        evaluate_before: also evaluate before any training (forward transfer needs it); not where only the end is
            evaluated, or only what was seen.
        evaluate_on: evaluate `all` experiences each time, or those `seen` so far, which halves the time and leaves the
            matrix empty above its diagonal.
        evaluate_when: evaluate `after_each` experience, or at the `end` of the training only, which leaves all but the
            last row empty; measures that need the others are then not given.
        evaluate_during: share of the steps that may go into measuring older experiences inside one, on a sample of
            their test data; 0.05 shows their minimum and the stability gap, 0 measures at the end only.
        limit_experiences: learn and evaluate only so many experiences, the first ones, for a quick look.
        limit_val_batches: batches of each experience's validation data that are used, a number or a fraction.
        limit_test_batches: the same of test data.
        max_seconds: training time after which no further step is made; what was learned is evaluated.
        deterministic: let torch refuse operations whose result is not reproducible.
        detect_anomaly: let torch say where a gradient became NaN; slow.
        capture: record a step once and run the recording: as a CUDA `graph` (`auto` on a GPU), compiled (`compile`, for
            long runs on a CPU), or call by call (`tape`, which is no faster: for checks); `none` runs it as written.
        stack: of runs that differ in seeds and numbers (`seeds=8`, or several values with `-m`), how many are trained
            at once, by one program on stacked tensors: a number, `auto` for as many as memory holds, or `none`; one run
            alone is not changed by it.
        compile: the old name of `capture="compile"`.
        log_every: steps between two records of loss and accuracy.
        on_divergence: `stop` where a loss or a weight is not finite, or a loss a thousand times that at the start, or
            `go_on`; looked at with each record.
        seed: of every random choice.
        device: where to train, for instance `cpu` or `cuda`.
        memory_device: where memories keep their rows, for instance `cpu` beside a model on a GPU; they are moved when
            they are drawn. Default: where the model is.
        pad: what inputs are padded with that are as long as the longest of their batch (text), a number or one by name;
            default: the embedding's `padding_idx`, 0 for masks, the ignored label for labels.
        devices: processes on this machine, one device each, that train one model together; see `training.launch`.
        num_nodes: machines that do so.
        strategy: how the processes start: `ddp` (by whichever of the others is safe), `ddp_fork` or `ddp_spawn`;
            `auto` is one process for one device.

    Raises:
        ConfigError: for a value that makes no sense, or that this machine cannot do.
    """

    per_experience: PerExperience | None = None
    criterion: Criterion | None = None
    eval_batch_size: Count = 512
    precision: Precision = "32-true"
    evaluate: Literal["test", "validation", "both", "none"] = "test"
    evaluate_before: bool = True
    evaluate_during: BelowOne = 0.0
    evaluate_on: Literal["all", "seen"] = "all"
    evaluate_when: Literal["after_each", "end"] = "after_each"
    limit_experiences: Count | None = None
    limit_val_batches: Limit | None = None
    limit_test_batches: Limit | None = None
    max_seconds: Positive | None = None
    deterministic: bool = False
    detect_anomaly: bool = False
    capture: CaptureMode = "auto"
    stack: Literal["auto", "none"] | Count = "none"
    compile: bool = False
    log_every: Count = 50
    on_divergence: OnDivergence = "stop"
    seed: int = 0
    device: str | torch.device = "cpu"
    memory_device: str | None = None
    pad: float | Mapping[str, float] | None = None
    devices: Count = 1
    num_nodes: Count = 1
    strategy: Strategy = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.device = torch.device(self.device)
        if self.compile:
            renamed("compile=True", 'capture="compile"')
            self.capture, self.compile = "compile", False
        check_precision(self.precision, self.device)
        chosen(self.capture, self.device)
        for name in ("limit_val_batches", "limit_test_batches"):
            check_limit(name, getattr(self, name))

    def limit_of(self, split: str) -> int | float | None:
        """The limit on the batches of `validation` or `test` data."""
        return self.limit_val_batches if split == "validation" else self.limit_test_batches

    def by_experience(self, experiences: int) -> list[Self]:
        """The settings of each experience."""
        changes = by_experience(self.per_experience, experiences)
        return [self.changed(changes.get(index, {})) for index in range(experiences)]


def described(*parts: type) -> str:
    """What the docstrings of `parts` say of their arguments, as lines of another's `Args:`, the first not indented."""
    sections = [inspect.cleandoc(part.__doc__ or "").split("Args:\n", 1)[1].split("\n\n", 1)[0] for part in parts]
    return "\n".join(sections).lstrip()


def check_limit(name: str, limit: int | float | None) -> None:
    """Refuse a limit on batches that is neither a number of them nor a fraction."""
    if isinstance(limit, float) and limit > 1:
        raise ConfigError(f"the trainer got {name}={limit}. Give a number of batches, or a fraction up to 1.0.")


def by_experience(stated: PerExperience | None, experiences: int) -> dict[int, dict[str, Any]]:
    """The changes of each experience that has some.

    Args:
        stated: as the user wrote it; where two keys name the same experience, the later one wins for what both say.
        experiences: of the stream.

    Raises:
        ConfigError: for an experience that is not in the stream, or a list of another length.

    Example:
        >>> by_experience({"0": {"epochs": 9}, "1-": {"epochs": 2}, 2: {"batch_size": 8}}, experiences=3)
        {0: {'epochs': 9}, 1: {'epochs': 2}, 2: {'epochs': 2, 'batch_size': 8}}
    """
    if stated is None:
        return {}
    if not isinstance(stated, Mapping):
        if len(stated) != experiences:
            raise ConfigError(
                f"per_experience lists {len(stated)} experiences, and the stream has {experiences}. "
                'Give one entry for each (null where nothing changes), or name them: {"0": ..., "3-": ...}.'
            )
        return {index: dict(changes) for index, changes in enumerate(stated) if changes}
    by_index: dict[int, dict[str, Any]] = {}
    for key, changes in stated.items():
        for index in indices(key, experiences):
            by_index.setdefault(index, {}).update(changes)
    return dict(sorted(by_index.items()))


def indices(key: str | int, experiences: int | None = None) -> range:
    """The experiences that a key of `per_experience` names: `3`, `"3"`, `"2-4"`, or `"2-"` for all from 2 on.

    Args:
        key: as written.
        experiences: of the stream; None where that is not known yet.

    Raises:
        ConfigError: for something else, or an experience that is not in the stream.
    """
    parts = re.fullmatch(r"(\d+)(-(\d*))?", str(key))
    if parts is None or (parts[3] and int(parts[3]) < int(parts[1])):
        raise ConfigError(f'per_experience: {key!r} names no experiences. Write "3", "2-4", or "2-" for all from 2 on.')
    first = int(parts[1])
    highest = int(parts[3]) if parts[3] else first
    if experiences is not None and highest >= experiences:
        raise ConfigError(
            f"per_experience: there is no experience {highest}. The stream has {experiences}, counted from 0 to "
            f"{experiences - 1}."
        )
    if parts[2] and not parts[3] and experiences is not None:
        highest = experiences - 1
    return range(first, highest + 1)


def augmented(prepare: Callable[..., Any] | None, augment: Mapping[str, Any] | None) -> Callable[..., Any] | None:
    """`prepare` with other random changes of the training inputs.

    Raises:
        ConfigError: where the stream has no `Prepare` to change.
    """
    if augment is None:
        return prepare
    describe = getattr(prepare, "describe", None)
    if describe is None:
        raise ConfigError(
            "per_experience changes crop or flip, and this stream prepares its inputs in a way of its own. "
            "Leave augment out."
        )
    kind: Any = type(prepare)
    return kind(**{**describe(), **augment})  # type: ignore[no-any-return]
