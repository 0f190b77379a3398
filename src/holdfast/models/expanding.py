"""A backbone that grows by copies of itself: earlier copies stay as they are, the last one learns."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.core.copying import deep_copy


class ExpandingBackbone(nn.Module):
    r"""Features of all copies together, each but the first through a linear map: `phi_1(x) + sum_k A_k phi_k(x)`.

    The frozen copies are part of the model: teachers, snapshots and checkpoints carry them, and the maps as the
    module's extra state. The maps belong to whoever trains them, so they are no parameters of this module.

    Args:
        live: the backbone that learns; the only one at the start.
        mix: the maps `[copies - 1, features, features]` of the second copy on.

    Example:
        >>> body = ExpandingBackbone(nn.Linear(4, 3), nn.Parameter(torch.zeros(2, 3, 3)))
        >>> before = body(torch.ones(1, 4))
        >>> body.duplicate()
        >>> torch.equal(before, body(torch.ones(1, 4))), len(body.frozen)
        (True, 1)
    """

    def __init__(self, live: nn.Module, mix: nn.Parameter) -> None:
        super().__init__()
        self.live = live
        self.frozen = nn.ModuleList()
        object.__setattr__(self, "mix", mix)

    mix: nn.Parameter

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        """Features `[rows, features]`; copies run first, without a graph."""
        with torch.no_grad():
            kept = [part(*inputs, **named) for part in self.frozen]
        features = self.live(*inputs, **named)
        if not kept:
            return features  # type: ignore[no-any-return]
        for column, values in enumerate([*kept[1:], features]):
            kept[0] = kept[0] + F.linear(values, self.mix[column])
        return kept[0]

    def duplicate(self) -> None:
        """Freeze a copy of the live backbone; what this module gives stays the same until a map has learned."""
        twin = deep_copy(self.live)
        for module in twin.modules():  # a deep copy has the hooks too, which would act, and count, once per copy
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
        self.frozen.append(twin.requires_grad_(False).eval())

    def train(self, mode: bool = True) -> ExpandingBackbone:
        """Set the mode of the live backbone; copies stay in eval mode."""
        super().train(mode)
        self.frozen.eval()
        return self

    def get_extra_state(self) -> Tensor:
        """The maps."""
        return self.mix.detach()

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the maps."""
        with torch.no_grad():
            self.mix.copy_(state)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Have as many copies as were saved, then load as every module does."""
        saved = len({key[len(prefix) :].split(".")[1] for key in state_dict if key.startswith(f"{prefix}frozen.")})
        self.frozen = nn.ModuleList(list(self.frozen)[:saved])
        while len(self.frozen) < saved:
            self.duplicate()
        super()._load_from_state_dict(state_dict, prefix, *args)
