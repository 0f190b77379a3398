"""Models of torchvision and timm by the name of their architecture, with a head of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from holdfast.core.errors import ConfigError, needs_extra, unknown
from holdfast.core.inspect import find_head
from holdfast.models.build import HeadName, check_image, check_sizes, seeded
from holdfast.models.graft import NO_LINEAR, load_weights, with_head


def torchvision(
    *,
    input_shape: Sequence[int],
    classes: int,
    architecture: str,
    weights: str | None = None,
    size: int | None = None,
    head: HeadName = "fixed",
    seed: int | None = None,
) -> nn.Module:
    """A classification model of torchvision by name, its last linear layer replaced by a head.

    Nothing is downloaded. Needs the extra `vision`. Auxiliary classifiers (googlenet, inception_v3) are cut off.

    Args:
        input_shape: channels, height and width of one image; other than 3 channels get a first convolution to match.
        classes: number of classes of the whole stream.
        architecture: a name of `torchvision.models.list_models()`, for instance "resnet18".
        weights: path of a file with the saved state of that architecture; None starts from random weights.
        size: height and width that images are enlarged or shrunk to first; None leaves them.
        head: "fixed" (all classes from the start), "growing", "task" (one set of outputs a task) or "cosine".
        seed: of the initial weights; None draws them from torch's global generator.

    Raises:
        ConfigError: for an unknown architecture, one without a linear layer at its end, or images it cannot take.
        DataError: if `weights` is no file that fits the architecture.
        ImportError: if torchvision is not installed.
    """
    try:
        from torchvision import models as zoo
    except ImportError as error:
        raise needs_extra("the model `torchvision`", "torchvision", "vision") from error

    check_image("torchvision", input_shape)
    known = zoo.list_models(module=zoo)
    if architecture not in known:
        raise ConfigError(unknown("torchvision architecture", architecture, known))
    # These two warn unless told whether to draw the (slow) initial values of their paper.
    options: dict[str, Any] = {"init_weights": True} if architecture in ("googlenet", "inception_v3") else {}
    with seeded(seed):
        model = zoo.get_model(architecture, weights=None, **options)
        try:
            name, _ = find_head(model)
        except ConfigError:
            raise ConfigError(NO_LINEAR.format(architecture)) from None
        if weights is not None:
            load_weights(model, weights, (name,), architecture)
        model.set_submodule(name, nn.Identity())
        for auxiliary in ("AuxLogits", "aux1", "aux2"):
            if hasattr(model, auxiliary):
                model.aux_logits = False
                setattr(model, auxiliary, None)
        if size is not None:
            check_sizes("size", [size])
            model = nn.Sequential(nn.Upsample(size=(size, size), mode="bilinear"), model)
        return with_head(model, architecture, input_shape, classes, head, weights, seed)


def timm(
    *,
    input_shape: Sequence[int],
    classes: int,
    architecture: str,
    weights: str | None = None,
    head: HeadName = "fixed",
    seed: int | None = None,
) -> nn.Module:
    """A model of timm by name, its classifier replaced by a head.

    Nothing is downloaded. Needs the extra `vision`.

    Args:
        input_shape: channels, height and width of one image; other than 3 channels get a first convolution to match.
        classes: number of classes of the whole stream.
        architecture: a name of `timm.list_models()`, for instance "convnext_atto".
        weights: path of a file with the saved state of that architecture; None starts from random weights.
        head: "fixed" (all classes from the start), "growing", "task" (one set of outputs a task) or "cosine".
        seed: of the initial weights; None draws them from torch's global generator.

    Raises:
        ConfigError: for an unknown architecture, one without a linear layer at its end, or images it cannot take.
        DataError: if `weights` is no file that fits the architecture.
        ImportError: if timm is not installed.
    """
    try:
        import timm as zoo
    except ImportError as error:
        raise needs_extra("the model `timm`", "timm", "vision") from error

    check_image("timm", input_shape)
    if not zoo.is_model(architecture):
        raise ConfigError(unknown("timm architecture", architecture, zoo.list_models()))
    with seeded(seed):
        try:  # vision transformers of a fixed size take others too, where they are asked to
            model: Any = zoo.create_model(architecture, pretrained=False, dynamic_img_size=True, dynamic_img_pad=True)
        except TypeError:
            model = zoo.create_model(architecture, pretrained=False)
        if weights is not None:
            old = model.default_cfg["classifier"]
            load_weights(model, weights, (old,) if isinstance(old, str) else tuple(old), architecture)
        model.reset_classifier(0)
        return with_head(model, architecture, input_shape, classes, head, weights, seed)
