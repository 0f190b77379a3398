"""A model in two parts: a backbone that computes features and a head that turns them into outputs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from holdfast.core.body import children_of


class Classifier(nn.Module):
    """`head(backbone(inputs))`, with both parts in reach.

    Args:
        backbone: gives features `[rows, features]`.
        head: gives outputs `[rows, width]` of them; a `Head`, or any module.

    Attributes:
        cuts: the children of the backbone after which its numbered cuts lie (`core.body`); None counts those with
            parameters.

    Example:
        >>> import torch
        >>> from holdfast.models import FixedHead
        >>> model = Classifier(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), FixedHead(8, classes=3))
        >>> model(torch.zeros(2, 4)).shape, model.features(torch.zeros(2, 4)).shape
        (torch.Size([2, 3]), torch.Size([2, 8]))
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.cuts: tuple[str, ...] | None = None

    @property
    def stages(self) -> Mapping[str, nn.Module]:
        """What runs in front of the head, in order: the children of a `Sequential`, else the backbone as one."""
        return (
            dict(children_of(self.backbone))
            if isinstance(self.backbone, nn.Sequential)
            else {"backbone": self.backbone}
        )

    def features(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        """What the head sees of these inputs, `[rows, features]`."""
        return self.backbone(*inputs, **named)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        """Outputs `[rows, width]` of inputs as the backbone takes them."""
        return self.head(self.backbone(*inputs, **named))
