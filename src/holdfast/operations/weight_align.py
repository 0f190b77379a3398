"""Weight alignment: new classes' weight vectors are scaled to the mean length of the old ones'."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.core.experience import Experience, Tree
from holdfast.core.operation import Operation, require
from holdfast.core.services import Services
from holdfast.models.heads import CosineHead, Head


class WeightAlign(Operation):
    r"""After an experience, the new classes' rows of the head are multiplied by one factor.

    $$ w_k \leftarrow \gamma w_k \;\text{for new } k, \qquad
       \gamma = \frac{\operatorname{mean}_{j \in \text{old}} \lVert w_j \rVert_2}
       {\operatorname{mean}_{k \in \text{new}} \lVert w_k \rVert_2} $$

    Training leaves longer weight vectors to the classes it saw last, which then win too often. Old classes' outputs do
    not
    change, nor does the order among the new ones (where biases are small); nothing happens after the first experience,
    or where no class is new. The scaled weights are what the next experience starts from and is taught by. With
    `at="outputs"` weights stay, and the outputs of predictions are multiplied instead.

    Args:
        at: what is multiplied: the `weights`, or the `outputs` of predictions until the next experience ends.
        classes: whose: the `new` ones', or the `old` ones', as CLMixer does.

    Source: Zhao et al. 2020, "Maintaining discrimination and fairness in class incremental learning", eq. 6 to 8.
    Differences: the paper's clipping of weights to positive values is left out; biases stay as they are.

    Example:
        >>> WeightAlign()
        WeightAlign(at='weights', classes='new')
    """

    asks = "nothing"
    heads = frozenset({"fixed", "growing"})
    role = "bias mitigation"
    needs = frozenset({"boundaries", "classes"})
    state = ("scale",)

    def __init__(self, at: Literal["weights", "outputs"] = "weights", classes: Literal["new", "old"] = "new") -> None:
        super().__init__()
        self.at = at
        self.classes = classes
        self.scale: Tensor | None = None
        if at == "outputs":
            self.heads = frozenset({"fixed", "growing", "cosine", "plain_cosine"})  # type: ignore[misc]

    def setup(self, learner: Services) -> None:
        """Refuse heads that lengths do not matter to."""
        require(
            self.at == "outputs" or not isinstance(learner.head, CosineHead),
            self.name,
            "scales lengths, which a cosine head ignores. Drop one.",
        )
        require(not learner.multi_head, self.name, "weighs classes against another, which task heads do not. Drop it.")
        class_rows(learner.head, self.name)

    @torch.no_grad()
    def end(self, experience: Experience, learner: Services) -> None:
        """Scale the rows of the classes that are new, or note by what their outputs are multiplied."""
        self.scale = None
        old = sorted({label for members in learner.members[:-1] for label in members})
        new = sorted(set(learner.members[-1]) - set(old))
        if not old or not new:
            return
        parts = class_rows(learner.head, self.name)
        norms = torch.cat([weight.norm(dim=1) for _, weight, _ in parts])
        factor = norms[old].mean() / norms[new].mean()
        chosen = new if self.classes == "new" else old
        if self.at == "outputs":
            self.scale = torch.ones(len(norms), device=norms.device)
            self.scale[chosen] = factor
            return
        for start, weight, _ in parts:
            rows = [label - start for label in chosen if start <= label < start + weight.shape[0]]
            weight[rows] *= factor

    def predict(self, outputs: Tensor, inputs: Tree, learner: Services) -> Tensor:
        """The outputs, with the chosen classes' multiplied where weights are left alone."""
        if self.scale is None:
            return outputs
        return outputs * F.pad(self.scale, (0, outputs.shape[1] - self.scale.shape[0]), value=1.0)


def class_rows(head: nn.Module | None, operation: str) -> list[tuple[int, Tensor, Tensor | None]]:
    """First class, weight `[classes, features]` and bias of each run of a linear head's outputs.

    Raises:
        ConfigError: if it is not a linear head.
    """
    if isinstance(head, Head):
        return [(part.start, part.weight, part.bias) for part in head.parts()]
    linear = isinstance(head, nn.Linear)
    require(linear, operation, f"needs a linear head, and this model has {type(head).__name__}. Name it: head='path'.")
    assert isinstance(head, nn.Linear)
    return [(0, head.weight, head.bias)]
