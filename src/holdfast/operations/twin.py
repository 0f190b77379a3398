"""A twin: a second model like the learner's, whose values an operation sets without ever touching the first."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.experience import Tree
from holdfast.core.learner import Learner, Snapshot


class Twin:
    """A copy of the model in eval mode and without gradients; scratch, to be made again when it is `stale`.

    Where `Learner.forward_as` serves a snapshot that stays as it is for a whole experience, a twin's values may
    change at every step: they are written in place, and nothing is copied again.

    Args:
        learner: whose model is copied, outputs as wide as they are now.

    Attributes:
        module: the copy.
        values: its parameters and buffers by name; write into them to change it.
    """

    def __init__(self, learner: Learner) -> None:
        with torch.inference_mode(False):  # it may first be wanted in an evaluation, and written to in training
            self.module = learner.twin()
            self.values: Snapshot = dict(self.module.state_dict())
        self._learner = learner
        self._made_for = (learner.parameters(), learner.experience)

    def stale(self) -> bool:
        """Whether the model has other outputs, or other tasks, than when this copy was made."""
        parameters, experience = self._made_for
        return self._learner.parameters() is not parameters or self._learner.experience != experience

    def copy_from(self, values: Snapshot) -> None:
        """Take over those of `values` that have a place of the same shape here; the others stay."""
        with torch.no_grad():
            for name, own in self.values.items():
                if name in values and values[name].shape == own.shape:
                    own.copy_(values[name])

    def __call__(self, inputs: Tree, task: int | Tensor | str | None = None) -> Tensor:
        """Outputs on raw `inputs`, as those of the learner, with this copy's values."""
        return self._learner.forward_of(self.module, inputs, task)
