"""A backbone that never learns, and a small network on its features that does."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, DataError
from holdfast.core.needs import declares
from holdfast.core.randomness import module_digest
from holdfast.core.ranges import BelowOne, Count, ranged
from holdfast.models.build import Activation, Classifier, HeadName, make_activation, make_head, seeded
from holdfast.models.dense import LowRankLinear, MixedLinear
from holdfast.models.library import timm, torchvision, transformers
from holdfast.models.pretrained import Pool


class FrozenBackbone(nn.Module):
    """Features of a network in eval mode, without gradients: its batch norm keeps its statistics too.

    Args:
        network: gives `[rows, features]`; its parameters no longer take gradients.

    Example:
        >>> frozen = FrozenBackbone(nn.BatchNorm1d(2)).train()
        >>> frozen.network.training, any(p.requires_grad for p in frozen.parameters())
        (False, False)
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Stay in eval mode, whatever is asked."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """Features `[rows, features]`, without a graph."""
        with torch.no_grad():
            return self.network(inputs)  # type: ignore[no-any-return]


class CachedBackbone(nn.Module):
    """A frozen network beside the model: features from a cache pass through, images still become features.

    The network's tensors are no part of the model: not of its parameters, copies and checkpoints. A checkpoint has
    their digest instead, and loads only where the network is the same.

    Args:
        network: gives `[rows, features]` of raw inputs `[rows, ...]`.
        dims: dimensions of one raw input, 3 for images; whatever has others is features already.

    Raises:
        ConfigError: for raw inputs that are vectors, which nothing tells from features.

    Example:
        >>> cached = CachedBackbone(nn.Flatten())
        >>> cached(torch.zeros(2, 3, 4, 4)).shape, cached(torch.zeros(2, 48)).shape, list(cached.parameters())
        (torch.Size([2, 48]), torch.Size([2, 48]), [])
    """

    digest: Tensor

    def __init__(self, network: nn.Module, dims: int = 3) -> None:
        super().__init__()
        if dims < 2:
            raise ConfigError("features of vectors cannot be told from vectors. Put the network into the model.")
        self.dims = dims
        self._beside = Beside(FrozenBackbone(network))
        value = torch.frombuffer(bytearray.fromhex(module_digest(self.frozen)), dtype=torch.uint8)
        self.register_buffer("digest", value.clone())

    @property
    def frozen(self) -> FrozenBackbone:
        """The network, frozen."""
        return self._beside.module

    def forward(self, inputs: Tensor) -> Tensor:
        """Features `[rows, features]`, without a graph."""
        return self.frozen(inputs) if inputs.dim() == self.dims + 1 else inputs

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CachedBackbone:
        self.frozen._apply(fn, recurse)
        return super()._apply(fn, recurse)  # type: ignore[return-value]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}digest")
        if saved is not None and not torch.equal(saved.cpu(), self.digest.cpu()):
            raise DataError(
                "the saved state was learnt on features of another backbone: its weights, its preprocessing or the "
                "library that makes it have changed. Give the weights and versions of then."
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """The class of the network."""
        return type(self.frozen.network).__name__


class Beside:
    """Holds a module out of another's sight; a deep copy is the same one, since it never changes."""

    def __init__(self, module: FrozenBackbone) -> None:
        self.module = module

    def __deepcopy__(self, _: Any) -> Beside:
        return self


Layer = Literal["plain", "low_rank", "subspace", "subspace_rank_one"]
_LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "plain": nn.Linear,
    "low_rank": functools.partial(LowRankLinear, rank=1),
    "subspace": functools.partial(MixedLinear, count=80),
    "subspace_rank_one": functools.partial(MixedLinear, count=20, rank_one=True),
}


@declares(loads=True)
@ranged
def frozen(
    *,
    input_shape: Sequence[int],
    classes: int,
    architecture: str | None = None,
    library: Literal["timm", "torchvision", "transformers"] = "timm",
    weights: str | None = None,
    preprocess: bool = False,
    size: Count | None = None,
    cut: str | None = None,
    pool: Pool | None = None,
    cache: Literal["auto"] | bool = "auto",
    cache_folder: str | None = None,
    cache_precision: Literal["float32", "float16"] = "float32",
    hidden: Sequence[Count] = (),
    activation: Activation = "relu",
    dropout: BelowOne = 0.0,
    batch_norm: bool = False,
    layer: Layer = "plain",
    head: HeadName = "fixed",
    seed: int | None = None,
) -> nn.Module:
    """A frozen backbone of timm, torchvision or transformers, then a perceptron that learns.

    Nothing is downloaded. Needs the extra `vision`, for transformers `backbones`. `holdfast run` computes the features
    of every sample once and keeps them on disk; in Python, `streams.features.cache_features(stream,
    model.backbone[0].frozen)` does. Features of inputs that are augmented change, and are computed anew.

    Args:
        input_shape: channels, height and width of one image.
        classes: number of classes of the whole stream.
        architecture: of the backbone, as timm or torchvision call it; for transformers the folder says.
        library: "timm", "torchvision" or "transformers".
        weights: path of a file with the saved state of that architecture, for transformers of a folder; or "random".
            None is random weights too, with a warning, and will be refused in the next release: features of random
            weights are seldom what was meant.
        preprocess: whether images (0 to 1, not normalised in the data set) are resized and normalised as the
            pretrained model's own settings say.
        size: height and width that images are resized to first; None leaves them, or takes the model's own.
        cut: name of an inner layer whose output are the features; None takes the last.
        pool: of the tokens of a transformer: "cls", "mean" or "cls_mean"; None is the model's own way.
        cache: whether features are computed once and read from disk after that: "auto" does where training inputs are
            not augmented; true refuses those, and false computes features at every step.
        cache_folder: where; None takes $HOLDFAST_CACHE, else a folder `holdfast` among the user's caches.
        cache_precision: of the features on disk; float16 halves their size and rounds them.
        hidden: units of each layer between backbone and head.
        activation: after each of them.
        dropout: probability of dropping one of their units in training.
        batch_norm: whether to normalise before each activation.
        layer: of the layers between: "plain", "low_rank" (see the model `low_rank_mlp`, of rank 1), "subspace" or
            "subspace_rank_one" (see `subspace_mlp`, of 80 and of 20 dimensions): CLMixer's perceptrons.
        head: "fixed" (all classes from the start), "growing", "task" (one set of outputs a task), "cosine",
            "cosine_learnable" (its scale is learnt), "cosine_task" or "plain_cosine" (all classes, no scale).
        seed: of the initial weights; None draws them from torch's global generator.

    Raises:
        ConfigError: for an unknown architecture, a size below 1, or an argument that the library does not take.
        DataError: if `weights` is no file that fits the architecture.
        ImportError: if the library is not installed.
    """
    asked, weights = weights, None if weights == "random" else weights
    common: dict[str, Any] = {"preprocess": preprocess, "size": size, "cut": cut, "seed": seed}
    whole: nn.Module
    if library == "transformers":
        if weights is None or architecture is not None:
            raise ConfigError(
                "the library transformers reads architecture and weights from a folder. "
                "Give weights=<folder>, and leave architecture out."
            )
        whole = transformers(input_shape=input_shape, classes=1, weights=weights, pool=pool or "cls", **common)
    else:
        if architecture is None:
            raise ConfigError(f"no architecture of {library} is named. Write for instance architecture='resnet18'.")
        if asked is None:
            warnings.warn(
                f"the frozen backbone {architecture} has random weights, which never learn. Give their file:"
                " weights=FILE, or write weights=random if that is meant; the next release will ask for it.",
                FutureWarning,
                stacklevel=3,
            )
        if library == "timm":
            common["pool"] = pool
        elif pool is not None:
            raise ConfigError(f"pool={pool!r} is for tokens, and torchvision's are pooled its own way. Use timm.")
        make = timm if library == "timm" else torchvision
        whole = make(input_shape=input_shape, classes=1, architecture=architecture, weights=weights, **common)
    assert isinstance(whole.backbone, nn.Module)
    backbone = CachedBackbone(whole.backbone, len(input_shape)) if cache else FrozenBackbone(whole.backbone)
    width = int(backbone(torch.zeros(1, *input_shape)).shape[1])
    with seeded(seed):
        layers: list[nn.Module] = [backbone]
        for units in hidden:
            layers += [_LAYERS[layer](width, units), *([nn.BatchNorm1d(units)] if batch_norm else [])]
            layers += [make_activation(activation), *([nn.Dropout(dropout)] if dropout else [])]
            width = units
        model = Classifier(nn.Sequential(*layers), make_head(head, width, classes, seed))
    if isinstance(backbone, CachedBackbone):
        name = f"{library} {architecture or weights}"
        model.features_cache = {"folder": cache_folder, "precision": cache_precision, "name": name}  # type: ignore[assignment]
        model.features_needed = cache is True  # type: ignore[assignment]
    return model
