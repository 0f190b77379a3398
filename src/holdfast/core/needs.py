"""What methods need, what each way to train offers, and the sentence where the two do not meet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from holdfast.core.errors import NeedError, UsageError

Made = TypeVar("Made", bound=Callable[..., object])

NEEDS: dict[str, str] = {
    "boundaries": "does something when an experience begins or ends, and this loop never says when that is",
    "data": "goes over an experience's data once more when it ends, and this loop does not hand it over",
    "replacement": "chooses which data an experience is trained on, and this loop chooses its own",
    "stream": "uses the data of every experience, and this loop has only the current one",
    "task": "uses task labels, and this stream has none",
    "progress": "follows how far the experience has come, and this loop has no end to measure against",
    "update": "acts after the optimiser moved, and this loop does not say when that was",
    "batch": "adds rows to the batch before the forward, and this loop's model takes no more rows",
    "targets": "reads or changes a batch's targets before the forward, and this loop has them only after it",
    "criterion": "brings its own loss instead of the default one, and this loop computes its own",
    "classes": "works with class labels, and these targets are not integers",
}
"""Every need, with the sentence that says why a loop without it will not do."""

ADVICE: dict[str, str] = {
    "boundaries": "Pass boundary=Every(steps=1000) or boundary=OnNewClass(), or call begin() and end() yourself.",
    "data": (
        "Call begin(data) and end(data) around each experience, or choose a method that needs none: er, der_plus_plus,"
        " agem."
    ),
    "replacement": "Leave boundary out and loop over the data that `begin` returns, or use the Trainer.",
    "stream": "Leave boundary out and call begin(experience) with the experiences of a stream, or use the Trainer.",
    "task": "Leave boundary out and call begin(data, task=...), or choose a method that needs no task labels.",
    "update": "Pass optimizer=..., so that the method sees when the parameters moved.",
    "progress": "Leave boundary out and call begin(data, epochs=..., batch_size=...), or use the Trainer.",
    "criterion": "Leave boundary out (the loss is made before one is found); write loss = cl.loss(outputs, targets).",
    "targets": "Use the Trainer or the StreamTrainer, which have inputs and targets before the forward.",
}
"""What to write where a loop that is not ours lacks a need; `StreamTrainer` says the same."""


@dataclass(frozen=True)
class Way:
    """A way to train: what it offers to a method, and what to write where that is not enough.

    Attributes:
        name: for pages.
        offers: the needs that it meets.
        advice: need -> what to write instead.
    """

    name: str
    offers: frozenset[str]
    advice: Mapping[str, str] = field(default_factory=dict)


TRAINER = Way(
    "trainer",
    frozenset(NEEDS),
    {"task": "Make the stream with paradigm='task', or choose a method that needs no task labels."},
)
LOOP = Way("wrapper, `begin` and `end` called", frozenset(NEEDS) - {"targets"}, ADVICE)
LOOP_WITH_BOUNDARY = Way(
    "wrapper, `boundary=Every(...)` or `OnNewClass()`",
    frozenset({"boundaries", "data", "update", "batch", "classes"}),
    ADVICE,
)
LIGHTNING = Way("Lightning", frozenset(NEEDS) - {"targets"}, ADVICE)
ENDLESS = Way("unlabelled stream", frozenset({"update", "batch", "targets", "classes", "criterion"}), ADVICE)
ENDLESS_WITH_BOUNDARY = Way(
    "unlabelled stream, `boundary=Every(...)` or `OnNewClass()`",
    frozenset({"boundaries", "data", "update", "batch", "targets", "classes"}),
    ADVICE,
)


WAYS = (TRAINER, LOOP, LOOP_WITH_BOUNDARY, LIGHTNING, ENDLESS, ENDLESS_WITH_BOUNDARY)
"""Every way to train; the "Can I use?" table of a method's page is this, against its needs."""


def check_needs(
    method: str, needs: Mapping[str, str], offers: Iterable[str], advice: Mapping[str, str] | None = None
) -> None:
    """Raise if a method needs what a loop does not offer.

    Args:
        method: the method's name.
        needs: need -> name of the operation that has it.
        offers: what the loop offers.
        advice: need -> what to write instead, in this loop.

    Raises:
        NeedError: with the first missing need and the sentence that helps.
    """
    offered = set(offers)
    for need, operation in needs.items():
        if need not in offered:
            who = f"`{method}`" if method == operation else f"`{method}` (its operation `{operation}`)"
            help_ = (advice or {}).get(need, "Choose a method that does without: er, der, der_plus_plus, agem.")
            raise NeedError(f"{who} {NEEDS[need]}.\n  {help_}")


class TargetNeeds:
    """What a method takes as targets, and the sentence for what it does not.

    Args:
        method: its name.
        needs: need -> name of the operation that has it.
        single: the operation that takes one class per sample, and not one at each position; "" where none does.
    """

    def __init__(self, method: str, needs: Mapping[str, str], single: str) -> None:
        self.method, self.needs, self.single = method, needs, single
        self.classes = "classes" in needs

    def check(self, targets: Tensor) -> None:
        """Refuse numbers where class indices are needed, and several where one is.

        Raises:
            NeedError: for such targets.
        """
        if self.classes and targets.is_floating_point():
            check_needs(self.method, {"classes": self.needs["classes"]}, ())
        if self.single and targets.dim() > 1:
            raise NeedError(
                f"`{self.method}` (its operation `{self.single}`) takes one class per sample, and these targets of"
                f" shape {tuple(targets.shape)} have one at each position. Choose a method that takes them: er, er_ace,"
                " der_plus_plus, agem, lwf, ewc, si."
            )

    def check_values(self, targets: Tensor, ignored: int) -> bool:
        """Refuse labels that count for nothing where every sample must have a class; reads the values.

        Returns:
            Whether there are such labels.

        Raises:
            UsageError: if there are some.
        """
        some = not targets.is_floating_point() and bool((targets == ignored).any())
        if self.single and some:
            raise UsageError(
                f"`{self.method}` (its operation `{self.single}`) takes a class for every sample, and some labels are"
                f" {ignored}, which count for nothing. Leave those rows out."
            )
        return some


def declares(
    *,
    paradigm: str = "",
    inputs: str = "",
    needs: Iterable[str] = (),
    shape: tuple[int, ...] = (),
    classes: int = 0,
    rows: tuple[int, int] = (0, 0),
    made: bool = False,
    loads: bool = False,
) -> Callable[[Made], Made]:
    """Write on a factory what is known of all that it makes, so that a configuration can be checked without making it.

    Args:
        paradigm: of a stream that has always the same.
        inputs: `"images"` or `"vectors"`: what a data set has, or a stream or model takes.
        needs: what a model cannot do without, names from `NEEDS`.
        shape: of one sample of a data set that has always the same; an argument `pad` adds to it.
        classes: how many that data set has.
        rows: how many training and test samples it has.
        made: whether a data set is made from random numbers, without a file.
        loads: whether a model is read from a file or from another library, which takes seconds.
    """
    declared: dict[str, object] = {"paradigm": paradigm, "inputs": inputs, "needs": frozenset(needs), "shape": shape}
    declared |= {"classes": classes, "rows": rows if shape else (), "made": made, "loads": loads}

    def mark(factory: Made) -> Made:
        for name, value in declared.items():
            if value:
                setattr(factory, name, value)
        return factory

    return mark
