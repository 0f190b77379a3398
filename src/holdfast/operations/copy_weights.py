"""Copy weights with re-initialisation: each experience trains outputs of its own, which then join the kept ones."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from holdfast.core.experience import Experience
from holdfast.core.operation import Operation, require
from holdfast.core.services import Services
from holdfast.models.heads import CosineHead
from holdfast.operations.weight_align import class_rows


class CopyWeights(Operation):
    r"""The head starts every experience anew; what it learns of the current classes joins what is kept of the others.

    $$ w \leftarrow 0 \;\text{(when an experience begins)}, \qquad
       w_c \leftarrow \begin{cases} w_c - \bar w & c \text{ is a class of this experience} \\
                                    w_c^{\text{kept}} & \text{otherwise} \end{cases} \;\text{(when it ends)} $$

    The mean is one number, over all weights of the classes so far as they will be kept (and one over their biases).
    So no experience can push down the outputs of classes it does not have, and outputs trained apart have one level.
    Put it after operations that look at the head when an experience begins or ends.

    Args:
        start: `zero` (CWR+), or `random` (CWR): the initial values of a linear layer.
        centred: subtract the mean (CWR+).

    Source: Lomonaco and Maltoni 2017, "CORe50", section 5.1 (CWR); Maltoni and Lomonaco 2019, "Continuous learning in
    single-incremental-task scenarios", algorithm 3 (CWR+). Differences: biases are kept as weights are; the mean is
    over the classes so far, as in van de Ven et al. 2021, and the paper's over those of the batch; classes that come
    again are learnt anew and replace what was kept.

    Example:
        >>> CopyWeights()
        CopyWeights(start='zero', centred=True)
    """

    asks = "nothing"
    heads = frozenset({"fixed", "growing"})
    role = "bias mitigation"
    needs = frozenset({"boundaries", "classes"})
    once = "start the head anew"
    state = ("weight", "bias")

    def __init__(self, start: Literal["zero", "random"] = "zero", centred: bool = True) -> None:
        super().__init__()
        self.start = start
        self.centred = centred
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None

    def setup(self, learner: Services) -> None:
        """Refuse heads whose outputs are no rows of weights, and start outputs that are added as all others."""
        head = learner.head
        require(
            not isinstance(head, CosineHead), self.name, "starts outputs at zero, which have no direction. Drop one."
        )
        require(not learner.multi_head, self.name, "levels classes against another, which task heads do not. Drop it.")
        class_rows(head, self.name)
        learner.trainable.on_growth.append(partial(self._start_new, learner))

    @torch.no_grad()
    def begin(self, experience: Experience, learner: Services) -> None:
        """Keep what the classes so far have, and start the head anew."""
        parts = class_rows(learner.head, self.name)
        unseen = torch.ones(sum(len(weight) for _, weight, _ in parts), dtype=torch.bool)
        unseen[seen(learner)] = False
        for name, weights in _columns(parts).items():
            kept = torch.cat(weights) if weights else None
            if kept is not None:
                kept[unseen.to(kept.device)] = 0
            setattr(self, name, kept)
            for parameter in weights:
                self._start(parameter, learner)

    @torch.no_grad()
    def end(self, experience: Experience, learner: Services) -> None:
        """Put the current classes' outputs, levelled, beside those that were kept."""
        parts = class_rows(learner.head, self.name)
        new, every = sorted(set(learner.members[-1])), seen(learner)
        for name, weights in _columns(parts).items():
            if not weights:
                continue
            learnt, before = torch.cat(weights), getattr(self, name)
            kept = torch.zeros_like(learnt)
            if before is not None:
                kept[: len(before)] = before
            kept[new] = learnt[new]
            if self.centred:
                kept[new] -= kept[every].mean()
            for parameter, rows in zip(weights, kept.split([len(parameter) for parameter in weights])):
                parameter.copy_(rows)

    def _start(self, parameter: Tensor, learner: Services) -> None:
        if self.start == "zero":
            parameter.zero_()
            return
        features = class_rows(learner.head, self.name)[0][1].shape[1]
        drawn = torch.rand(parameter.shape, generator=learner.rng(f"weights/{self.name}"))
        parameter.copy_((2 * drawn - 1) / math.sqrt(features))

    def _start_new(self, learner: Services, new: list[nn.Parameter]) -> None:
        assert learner.head is not None
        in_head = {id(parameter) for parameter in learner.head.parameters()}
        with torch.no_grad():
            for parameter in new:
                if id(parameter) in in_head and self.start == "zero":
                    parameter.zero_()


def seen(learner: Services) -> list[int]:
    """The classes of all experiences so far, sorted."""
    return sorted({label for members in learner.members for label in members})


def _columns(parts: list[tuple[int, Tensor, Tensor | None]]) -> dict[str, list[Tensor]]:
    """Weights, and biases where there are any, of the outputs in order."""
    return {"weight": [weight for _, weight, _ in parts], "bias": [bias for *_, bias in parts if bias is not None]}
