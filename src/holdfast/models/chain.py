"""A model as a chain of stages with an output layer, and the places where it can be cut in two."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import NamedTuple

from torch import nn

from holdfast.core.errors import ConfigError, unknown
from holdfast.models.classifier import Classifier

PAPER = re.compile(r"(?:HyperResNet18)?(?:SPv([1-9])(?:SH)?|SH)", re.IGNORECASE)
"""The names of Hemati et al. 2023: SH generates everything, SPv1 to SPv4 leave one to four stages below the cut."""


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
                f"cut is {cut}, and this model has the cuts 0 (before everything) to {len(self.cuts) - 1} (before the "
                f"output layer). Write one of these, or the name of a stage: {', '.join(self.stages)}."
            )
        return self.cuts[cut]


def chain_of(model: nn.Module) -> Chain:
    """The stages and the output layer of a model that runs them one after the other.

    That is a `Classifier` whose backbone is a `Sequential`, a `Sequential` that ends with its output layer, or any
    module with `stages` (a mapping of modules by name) and `head`, whose forward is nothing but these in order. The
    backbone of a `Classifier` that is no `Sequential` is one stage. A model may say in `cuts` after which of its
    stages the numbered cuts lie; without, each lies after a stage with parameters, and behind what has none or
    normalises only.

    Args:
        model: what is described; nothing is copied.

    Raises:
        ConfigError: for a model of another kind, or one without an output layer.
    """
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    declared = getattr(model, "stages", None)
    if isinstance(model, Classifier):
        backbone, output = model.backbone, model.head
        stages.update(_children(backbone) if isinstance(backbone, nn.Sequential) else {"backbone": backbone})
    elif declared is not None and isinstance(getattr(model, "head", None), nn.Module):
        stages.update(declared.items() if hasattr(declared, "items") else declared)
        output = model.head  # type: ignore[assignment]
    elif isinstance(model, nn.Sequential):
        children = _children(model)
        learned = [place for place, (_, child) in enumerate(children) if _has_parameters(child)]
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
        ends = [place + 1 for place, name in enumerate(names) if _begins(stages[name])]
    cuts = [0]
    for end in ends:
        while end < len(names) and not _begins(stages[names[end]]):
            end += 1
        cuts.append(end)
    return tuple(dict.fromkeys(cuts))


def _children(chain: nn.Sequential) -> list[tuple[str, nn.Module]]:
    """Names and modules in order; one that stands there twice comes twice, which `named_children` hides."""
    return [(name, child) for name, child in chain.named_modules(remove_duplicate=False) if name and "." not in name]


def _begins(module: nn.Module) -> bool:
    """Whether a stage begins here: it has parameters, and does not just normalise what came before."""
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    return _has_parameters(module) and not isinstance(module, norms)


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
