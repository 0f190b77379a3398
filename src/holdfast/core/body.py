"""How a model is described: its stages in order, the places where it can be cut in two, its output layer."""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from holdfast.core.errors import ConfigError, UsageError, unknown
from holdfast.core.forward import call
from holdfast.core.inspect import features_of, find_head, makers_of_outputs
from holdfast.core.tree import Tree

PAPER = re.compile(r"(?:HyperResNet18)?(?:SPv([1-9])(?:SH)?|SH)", re.IGNORECASE)
"""The names of Hemati et al. 2023: SH has everything above the cut, SPv1 to SPv4 leave one to four stages below it."""

Cut = int | str | None
"""The number of a cut, the name of the last stage below it, or None: before the output layer."""


class Chain(NamedTuple):
    """Stages that run one after the other, then the output layer.

    Attributes:
        stages: modules by name, in order.
        output: what turns features into outputs.
        cuts: after how many stages each numbered cut lies, from cut 0 (before all) to the last (after all).
    """

    stages: OrderedDict[str, nn.Module]
    output: nn.Module
    cuts: tuple[int, ...]

    def position(self, cut: int | str) -> int:
        """How many stages lie below a cut.

        Args:
            cut: a number from 0 to the last cut, the name of the last stage below, or "SH", "SPv1" to "SPv4".

        Raises:
            ConfigError: for a number or a name that the chain does not have.

        Example:
            >>> chain = chain_of(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> chain.cuts, chain.position(1), chain.position("2"), chain.position("SH")
            ((0, 2, 4), 2, 3, 0)
        """
        asked = cut
        if isinstance(cut, str) and cut not in self.stages:
            paper = PAPER.fullmatch(cut)
            if paper is None:
                raise ConfigError(
                    unknown("stage", cut, self.stages, f"Or write a number from 0 to {len(self.cuts) - 1}.")
                )
            cut = int(paper[1] or 0)
        if isinstance(cut, str):
            return list(self.stages).index(cut) + 1
        if not 0 <= cut < len(self.cuts):
            raise ConfigError(
                f"cut is {asked}, and this model has the cuts 0 (before everything) to {len(self.cuts) - 1} (before "
                f"the output layer). Write one of these, or the name of a stage: {', '.join(self.stages)}."
            )
        return self.cuts[cut]


def chain_of(model: nn.Module) -> Chain:
    """The stages and the output layer of a model that runs them one after the other.

    That is a `Sequential` that ends with its output layer, or any module with `stages` (a mapping of modules by name)
    and `head`, whose forward is nothing but these in order, such as `models.Classifier`. A model may say in `cuts`
    after which of its stages the numbered cuts lie; without, each lies after a stage with parameters, and behind what
    has none or normalises only.

    Args:
        model: what is described; nothing is copied.

    Raises:
        ConfigError: for a model of another kind, or one without an output layer.
    """
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    declared = getattr(model, "stages", None)
    if declared is not None and isinstance(getattr(model, "head", None), nn.Module):
        stages.update(declared.items() if hasattr(declared, "items") else declared)
        output: nn.Module = model.head  # type: ignore[assignment]
    elif isinstance(model, nn.Sequential):
        children = children_of(model)
        learned = [index for index, (_, child) in enumerate(children) if _has_parameters(child)]
        if not learned:
            raise ConfigError("this chain of modules has no parameters, so no output layer. Give one that learns.")
        stages.update(children[: learned[-1]])
        rest = children[learned[-1] :]
        output = rest[0][1] if len(rest) == 1 else nn.Sequential(OrderedDict(rest))
    else:
        raise ConfigError(
            f"{type(model).__name__} does not say in which stages it can be cut. Give an `nn.Sequential`, a "
            "`Classifier(backbone, head)`, or a module with `stages` (modules by name) and `head`."
        )
    return Chain(stages, output, _cuts(model, stages))


def _cuts(model: nn.Module, stages: OrderedDict[str, nn.Module]) -> tuple[int, ...]:
    names = list(stages)
    ends: list[int] = []
    named = getattr(model, "cuts", None)
    if named is not None:
        for name in named:
            if name not in stages:
                raise ConfigError(unknown("stage", name, names))
        ends = [names.index(name) + 1 for name in named]
    else:
        ends = [index + 1 for index, name in enumerate(names) if _begins(stages[name])]
    cuts = [0]
    for end in ends:
        while end < len(names) and not _begins(stages[names[end]]):
            end += 1
        cuts.append(end)
    return tuple(dict.fromkeys(cuts))


def children_of(chain: nn.Sequential) -> list[tuple[str, nn.Module]]:
    """Names and modules in order; one that stands there twice comes twice, which `named_children` hides."""
    return [(name, child) for name, child in chain.named_modules(remove_duplicate=False) if name and "." not in name]


def _begins(module: nn.Module) -> bool:
    """Whether a stage begins here: it has parameters, and does not just normalise what came before."""
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    return _has_parameters(module) and not isinstance(module, norms)


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


class Body:
    """One model described once: every operation finds its head, its features and its cuts here.

    A model of ours declares them (`stages`, `cuts`, `head`, or `below` and `above` of its own). Of any other model the
    head is what `head` names, else a guess (see `find_head`), which is shown once and tried before anything relies on
    it.

    Args:
        model: any module.
        head: dotted path of its output layer; None guesses.

    Attributes:
        head: the output layer; None if there is none.
        path: its dotted name.
        guessed: whether nobody said so.
        asked: whether an operation relied on it.
        tried: whether the guess was found right.
    """

    def __init__(self, model: nn.Module, head: str | None = None) -> None:
        self.model = model
        self.head: nn.Module | None = None
        self.path = ""
        try:
            self.path, self.head = find_head(model, head)
        except ConfigError:
            if head is not None:
                raise
        declared = getattr(model, "stages", None) is not None and self.head is getattr(model, "head", None)
        chained = isinstance(model, nn.Sequential) and _output_of(model) is self.head
        marked = (
            head is not None
            or isinstance(getattr(model, "head", None), str)
            or declared
            or chained
            or self.head is model
        )
        self.guessed = self.head is not None and not marked
        self.asked = False
        self.tried = False

    def __repr__(self) -> str:
        how = "guessed: the last linear layer" if self.guessed else "declared"
        return f"Body({type(self.model).__name__}, head={self.path!r} ({how}))"

    @property
    def taken(self) -> nn.Module | None:
        """The head, for something that relies on it: a guess is then shown and tried."""
        self.asked = True
        return self.head

    # Features ------------------------------------------------------------------------------------------

    def features(self, inputs: Tree) -> Tensor:
        """What enters the head when the model runs on prepared `inputs`, `[rows, features]`.

        Raises:
            UsageError: if there is no head, or the forward never called it, or outputs are not made of what it gives.
        """
        if self.head is None:
            raise UsageError(
                "features were asked for, but the model has no linear layer. Name its output layer with head='path'."
            )
        self.try_head(inputs)
        return features_of(self.model, self.head, inputs)

    def try_head(self, inputs: Tree) -> None:
        """Find out, once, whether the guessed head makes the model's outputs; costs one forward in eval mode.

        Raises:
            UsageError: if it does not.
        """
        if not self.guessed or self.tried:
            return
        self.tried = True
        makers = makers_of_outputs(self.model, inputs, self.head)
        if makers is None or makers == [self.path]:
            return
        layers = " and ".join(repr(name) for name in makers) or "something else than linear layers"
        raise UsageError(
            f"this method works on the output layer of {type(self.model).__name__}, which was taken to be its last"
            f" linear layer, {self.path!r}; but its outputs are made by {layers}. Name the layer that makes them:"
            " model.head = 'path', or head='path' where the model is given."
        )

    def show(self) -> None:
        """Say once which layer was taken for the head, where that was a guess that something relies on."""
        if self.guessed and self.asked:
            logging.getLogger("holdfast").info(
                "the head of %s is taken to be its last linear layer, %r; model.head = 'path' names another",
                type(self.model).__name__,
                self.path,
            )

    # The cut -------------------------------------------------------------------------------------------

    def below(self, inputs: Tree, cut: Cut = None) -> Tensor:
        """Latents at a cut, `[rows, ...]`, of prepared inputs.

        Args:
            inputs: prepared.
            cut: where; None is the model's own cut, or before the head.

        Raises:
            ConfigError: for a model that cannot be cut there.
        """
        parts, _ = self.parts(cut)
        if parts is None:
            return self.features(inputs)
        latents: Any = inputs
        for number, part in enumerate(parts):
            latents = part(latents) if number or not isinstance(part, nn.Module) else call(part, latents)
        return latents

    def above(self, latents: Tensor, cut: Cut = None) -> Tensor:
        """The model's outputs on latents: `above(below(inputs, cut), cut)` is its forward.

        Args:
            latents: as `below` gave them, `[rows, ...]`.
            cut: as there.
        """
        for part in self.parts(cut)[1]:
            latents = part(latents)
        return latents

    def parts(self, cut: Cut = None) -> tuple[Sequence[Callable[..., Any]] | None, Sequence[Callable[..., Any]]]:
        """What runs below a cut and above it, in order; None below where only the whole model gives its features.

        Raises:
            ConfigError: for a model that cannot be cut there.
        """
        model = self.model
        below, above = getattr(model, "below", None), getattr(model, "above", None)
        if callable(below) and callable(above):
            if cut is not None:
                raise ConfigError(
                    f"got cut={cut!r}, and {type(model).__name__} has a cut of its own. Leave it out, and give it to"
                    " the model."
                )
            return [below], [above]
        declared = isinstance(model, nn.Sequential) or getattr(model, "stages", None) is not None
        if not declared and cut is None and self.head is not None:
            return None, [self.head]
        chain = chain_of(model)
        start = len(chain.stages) if cut is None else chain.position(cut)
        stages = list(chain.stages.values())
        return stages[:start], [*stages[start:], chain.output]

    def parameters_below(self, cut: Cut = None) -> list[nn.Parameter]:
        """The parameters below a cut, those that are frozen too."""
        parts, above = self.parts(cut)
        if parts is None:
            upper = {id(p) for part in above if isinstance(part, nn.Module) for p in part.parameters()}
            return [p for p in self.model.parameters() if id(p) not in upper]
        return [p for part in parts if isinstance(part, nn.Module) for p in part.parameters()]


def _output_of(model: nn.Sequential) -> nn.Module | None:
    """The last child that has parameters."""
    return next((child for _, child in reversed(children_of(model)) if _has_parameters(child)), None)
