"""Models of torchvision and timm by the name of their architecture, with a head of ours."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from holdfast.core.errors import ConfigError, DataError, needs_extra, unknown
from holdfast.core.inspect import find_head
from holdfast.core.needs import declares
from holdfast.core.ranges import Count, ranged
from holdfast.models.build import HeadName, check_image, seeded
from holdfast.models.pretrained import NO_LINEAR, Cut, Pool, Preprocess, folder_preprocess, with_head
from holdfast.models.weights import load_weights


@functools.cache
def architectures(library: str) -> frozenset[str]:
    """The names that a library has models for: torchvision's classifiers, or timm's; it must be installed."""
    if library == "torchvision":
        from torchvision import models as zoo

        return frozenset(zoo.list_models(module=zoo))
    import timm as other

    return frozenset(other.list_models())


@declares(inputs="images", loads=True)
@ranged
def torchvision(
    *,
    input_shape: Sequence[int],
    classes: int,
    architecture: str,
    weights: str | None = None,
    preprocess: bool = False,
    size: Count | None = None,
    cut: str | None = None,
    head: HeadName = "fixed",
    seed: int | None = None,
) -> nn.Module:
    """A classification model of torchvision by name, its last layer replaced by a head.

    Nothing is downloaded. Needs the extra `vision`. Auxiliary classifiers (googlenet, inception_v3) are cut off.

    Args:
        input_shape: channels, height and width of one image; other than 3 channels get a first convolution to match.
        classes: number of classes of the whole stream.
        architecture: a name of `torchvision.models.list_models()`, for instance "resnet18".
        weights: path of a file with the saved state of that architecture; "random" or None starts from random weights.
        preprocess: whether images (0 to 1, not normalised in the data set) are resized and normalised as for ImageNet.
        size: height and width that images are enlarged or shrunk to first; None leaves them, or takes the model's own.
        cut: name of an inner layer whose output, averaged over positions, are the features; None takes the last.
        head: "fixed" (all classes from the start), "growing", "task" (one set of outputs a task), "cosine",
            "cosine_learnable" (its scale is learnt), "cosine_task" or "plain_cosine" (all classes, no scale).
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

    weights = None if weights == "random" else weights
    check_image("torchvision", input_shape)
    zoo_names = zoo.list_models(module=zoo)
    if architecture not in zoo_names:
        raise ConfigError(unknown("torchvision architecture", architecture, zoo_names))
    # These two warn unless told whether to draw the (slow) initial values of their paper.
    options: dict[str, Any] = {"init_weights": True} if architecture in ("googlenet", "inception_v3") else {}
    with seeded(seed):
        model = zoo.get_model(architecture, weights=None, **options)
        squeeze = architecture.startswith("squeezenet")  # whose last layer is a convolution, then a mean
        try:
            name = "classifier" if squeeze else find_head(model)[0]
        except ConfigError:
            raise ConfigError(NO_LINEAR.format(architecture)) from None
        if weights is not None:
            load_weights(model, weights, (name,), architecture)
        features = nn.Sequential(nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1)) if squeeze else nn.Identity()
        model.set_submodule(name, features)
        for auxiliary in ("AuxLogits", "aux1", "aux2"):
            if hasattr(model, auxiliary):
                model.aux_logits = False
                setattr(model, auxiliary, None)
        if cut is not None:
            model = Cut(model, cut)
        if preprocess:
            preprocessing = zoo.get_model_weights(architecture).DEFAULT.transforms()
            resized = Preprocess(
                preprocessing.mean,
                preprocessing.std,
                size or preprocessing.crop_size[0],
                preprocessing.interpolation.value,
            )
            return with_head(model, architecture, input_shape, classes, head, weights, seed, resized)
        if size is not None:
            model = nn.Sequential(nn.Upsample(size=(size, size), mode="bilinear"), model)
        return with_head(model, architecture, input_shape, classes, head, weights, seed)


@declares(inputs="images", loads=True)
@ranged
def timm(
    *,
    input_shape: Sequence[int],
    classes: int,
    architecture: str,
    weights: str | None = None,
    preprocess: bool = False,
    size: Count | None = None,
    cut: str | None = None,
    pool: Pool | None = None,
    head: HeadName = "fixed",
    seed: int | None = None,
) -> nn.Module:
    """A model of timm by name, its classifier replaced by a head.

    Nothing is downloaded. Needs the extra `vision`. Weights may also be those of the model's first publication where
    timm knows how to read them (DINOv2's own files).

    Args:
        input_shape: channels, height and width of one image; other than 3 channels get a first convolution to match.
        classes: number of classes of the whole stream.
        architecture: a name of `timm.list_models()`, for instance "convnext_atto".
        weights: path of a file with the saved state of that architecture; "random" or None starts from random weights.
        preprocess: whether images (0 to 1, not normalised in the data set) are resized and normalised as the model's
            own settings say.
        size: height and width that images are enlarged or shrunk to first; None leaves them, or takes the model's own.
        cut: name of an inner layer whose output are the features; None takes the last.
        pool: of the tokens of a transformer: "cls", "mean" or "cls_mean"; None is the model's own way.
        head: "fixed" (all classes from the start), "growing", "task" (one set of outputs a task), "cosine",
            "cosine_learnable" (its scale is learnt), "cosine_task" or "plain_cosine" (all classes, no scale).
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

    weights = None if weights == "random" else weights
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
            converter = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
            load_weights(model, weights, (old,) if isinstance(old, str) else tuple(old), architecture, converter)
        preprocessing: dict[str, Any] = zoo.data.resolve_model_data_config(model)  # type: ignore[attr-defined]
        model.reset_classifier(0)
        if pool is not None and cut is None:
            model.forward = model.forward_features
        if pool is not None or cut is not None:
            model = Cut(model, cut, pool or "cls", getattr(model, "num_prefix_tokens", 1))
        resized = None
        if preprocess:
            resized = Preprocess(
                preprocessing["mean"],
                preprocessing["std"],
                size or preprocessing["input_size"][1],
                preprocessing["interpolation"],
            )
        elif size is not None:
            resized = Preprocess([0.0], [1.0], size, "bilinear")
        return with_head(model, architecture, input_shape, classes, head, weights, seed, resized)


@declares(inputs="images", loads=True)
@ranged
def transformers(
    *,
    input_shape: Sequence[int],
    classes: int,
    weights: str,
    preprocess: bool = True,
    size: Count | None = None,
    cut: str | None = None,
    pool: Pool = "cls",
    head: HeadName = "fixed",
    seed: int | None = None,
) -> nn.Module:
    """A vision model of transformers (DINOv2, ViT and others) from a folder, with a head on its features.

    Nothing is downloaded: the folder is one that `save_pretrained` wrote, or a copy of a hub's. Its weights are read
    from safetensors, or from a file of tensors only. Needs the extra `backbones`.

    Args:
        input_shape: channels, height and width of one image: 3 channels, or 1, which is repeated.
        classes: number of classes of the whole stream.
        weights: the folder, with `config.json`.
        preprocess: whether images (0 to 1, not normalised in the data set) are resized and normalised as
            `preprocessor_config.json` in the folder says.
        size: height and width that images are resized to instead; None takes the model's own.
        cut: name of an inner layer whose output are the features, for instance "encoder.layer.8"; None takes the last.
        pool: of the tokens: the class token ("cls"), the "mean" over the image's, or both side by side ("cls_mean").
        head: "fixed" (all classes from the start), "growing", "task" (one set of outputs a task), "cosine",
            "cosine_learnable" (its scale is learnt), "cosine_task" or "plain_cosine" (all classes, no scale).
        seed: of the head's initial weights; None draws them from torch's global generator.

    Raises:
        ConfigError: for a model that takes no images of this shape, or an unknown layer.
        DataError: if the folder holds no model.
        ImportError: if transformers is not installed.
    """
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise needs_extra("the model `transformers`", "transformers", "backbones") from error

    channels, *_ = check_image("transformers", input_shape)
    if channels not in (1, 3):
        raise ConfigError(f"a pretrained transformer takes images of 3 channels, not {channels}. Choose `timm`.")
    if not (Path(weights) / "config.json").is_file():
        raise DataError(
            f"there is no model of transformers in {weights!r}: it needs config.json beside its weights. "
            "Give a folder that `save_pretrained` wrote."
        )
    with seeded(seed):
        try:
            model: Any = AutoModel.from_pretrained(weights, local_files_only=True, weights_only=True)
        except Exception as error:  # many kinds: no weights, unknown kind of model, another shape
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise DataError(f"the model in {weights!r} cannot be read: {reason} Give a whole folder of one.") from error
        registers = int(getattr(model.config, "num_register_tokens", 0))
        backbone = Cut(model, cut, pool, 1 + registers)
        resized = None
        if preprocess:
            resized = folder_preprocess(weights, size or getattr(model.config, "image_size", None))
        elif size is not None:
            resized = Preprocess([0.0] * 3, [1.0] * 3, size)
        elif channels == 1:
            resized = Preprocess([0.0] * 3, [1.0] * 3)
        name = type(model).__name__
        return with_head(backbone, name, input_shape, classes, head, weights, seed, resized)
