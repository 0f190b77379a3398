"""A data set, and how its raw inputs become what the model sees: scale, augmentation, normalisation; batched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.decide import decide
from holdfast.core.errors import ConfigError, DataError, UsageError
from holdfast.core.experience import Data

if TYPE_CHECKING:
    from holdfast.streams.datasets.encoding import Encoding


class Prepare:
    """Turn raw inputs into floats just before the model.

    Integers become `x / scale` as float32 (with 255 exactly what torchvision's `ToTensor` gives), floats keep their
    values; then, if training, a random crop from the image padded with black and a horizontal flip, drawn for every
    sample on its own; then `(x - mean) / std`. Works on any device, and never changes its input.

    Args:
        mean: subtracted, one value or one per channel (per feature for vectors); None leaves it out.
        std: divided by, like mean; zeros count as one.
        scale: what integer inputs are divided by.
        crop: black pixels added on each side before a random crop to the old size; 0 is no crop.
        flip: whether half of the training images are mirrored.

    Raises:
        ConfigError: a negative crop, a scale that is not positive, a negative std.
        UsageError: an augmentation without a generator.

    Example:
        >>> Prepare(mean=0.5, std=0.5)(torch.tensor([[0, 255]], dtype=torch.uint8))
        tensor([[-1.,  1.]])
    """

    def __init__(
        self,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        scale: float = 255.0,
        crop: int = 0,
        flip: bool = False,
    ) -> None:
        if crop < 0:
            raise ConfigError(f"crop is {crop}. Give the number of padded pixels, 0 or more.")
        if not scale > 0:
            raise ConfigError(f"scale is {scale}. Give a positive number, 255 for 8-bit images.")
        if std is not None and any(value < 0 for value in _values(std)):
            raise ConfigError(f"std is {std}. Give no negative values.")
        self.mean = mean
        self.std = std
        self.scale = scale
        self.crop = crop
        self.flip = flip
        self._cache: dict[tuple[torch.device, int], tuple[Tensor | None, Tensor | None]] = {}

    def __call__(self, inputs: Tensor, training: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Prepare a batch.

        Args:
            inputs: raw inputs, `[rows, ...]`; images `[rows, channels, height, width]`.
            training: whether to augment.
            generator: what the augmentations are drawn from.

        Returns:
            float32, of the shape of the inputs.
        """
        if training and (self.crop or self.flip):
            inputs = self._augment(inputs, generator)
        if inputs.is_floating_point():
            values = inputs.to(torch.float32)
        elif torch.get_default_dtype() is torch.float32:  # one call: to float32, and divided there
            values = inputs.div(self.scale)
        else:
            values = inputs.to(torch.float32).div_(self.scale)
        if self.mean is None and self.std is None:
            return values
        mean, std = self._statistics(values)
        # `values` may still be the caller's tensor (or a view of its memory) if it was float32: nothing in place.
        if mean is not None:
            values = values.sub(mean) if values is inputs else values.sub_(mean)
        if std is not None:
            values = values.div(std) if values is inputs else values.div_(std)
        return values

    def _augment(self, inputs: Tensor, generator: torch.Generator | None) -> Tensor:
        """Crop and flip in one gather: each sample has its own rows and columns of the padded image."""
        if generator is None:
            raise UsageError("augmentation draws random numbers. Give `prepare` a generator, or training=False.")
        if inputs.dim() != 4:
            raise ConfigError(
                f"crop and flip need images [rows, channels, height, width], and these inputs have shape "
                f"{tuple(inputs.shape)}. Set crop=0 and flip=false."
            )
        count, channels, height, width = inputs.shape
        device, source = inputs.device, generator.device
        rows = torch.arange(height, device=device).expand(count, -1)
        columns = torch.arange(width, device=device).expand(count, -1)
        if self.flip:
            mirrored = decide(lambda: torch.randint(2, (count, 1), generator=generator, device=source), device).bool()
            columns = torch.where(mirrored, columns.flip(1), columns)
        if self.crop:
            offsets = 2 * self.crop + 1
            offset = decide(lambda: torch.randint(offsets, (2, count, 1), generator=generator, device=source), device)
            rows, columns = rows + offset[0], columns + offset[1]
            inputs = F.pad(inputs, (self.crop,) * 4)
        pixels = (rows[:, :, None] * inputs.shape[3] + columns[:, None, :]).view(count, 1, -1)
        taken = inputs.flatten(2).gather(2, pixels.expand(-1, channels, -1))
        return taken.view(count, channels, height, width)

    def _statistics(self, values: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Mean and standard deviation on the device, shaped to act on dimension 1."""
        key = (values.device, values.dim())
        if key not in self._cache:
            with torch.inference_mode(False):  # an evaluation may come first, and gradients of inputs later
                mean, std = (self._shaped(value, values) for value in (self.mean, self.std))
                self._cache[key] = (mean, None if std is None else torch.where(std == 0, 1.0, std))
        return self._cache[key]

    def _shaped(self, value: float | Sequence[float] | None, like: Tensor) -> Tensor | None:
        if value is None:
            return None
        numbers = _values(value)
        if len(numbers) > 1 and len(numbers) != like.shape[1]:
            raise ConfigError(
                f"mean or std has {len(numbers)} values and the inputs {like.shape[1]} channels. Give one, or one each."
            )
        return torch.tensor(numbers, device=like.device).view(-1, *(1,) * (like.dim() - 2))

    def describe(self) -> dict[str, Any]:
        """The constructor's arguments as JSON values: `Prepare(**described)` is the same again."""
        mean, std = (
            value if value is None or isinstance(value, (int, float)) else list(value)
            for value in (self.mean, self.std)
        )
        return {"mean": mean, "std": std, "scale": self.scale, "crop": self.crop, "flip": self.flip}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prepare) and self.describe() == other.describe()

    def __hash__(self) -> int:
        return hash(str(self.describe()))

    def __repr__(self) -> str:
        return f"Prepare({', '.join(f'{key}={value!r}' for key, value in self.describe().items())})"


def _values(value: float | Sequence[float]) -> list[float]:
    return [float(value)] if isinstance(value, (int, float)) else [float(number) for number in value]


@dataclass
class Dataset:
    """What every stream is made from.

    Args:
        name: for reports.
        train: training data, with targets 0..classes-1 (or floats for regression).
        test: test data, or None.
        classes: number of classes; 0 for regression.
        input_shape: shape of one prepared sample, for instance `(1, 28, 28)`.
        class_names: one per class; None numbers them.
        prepare: from raw inputs to floats; None leaves them as they are.
        kind: "classification" or "regression".
        groups: the group of each training sample, int64, where the data come in groups (`csv(by="month")`).
        test_groups: the group of each test sample.
        group_names: of the groups, in order.
        table: how the columns of a table became the features, or None.

    Raises:
        DataError: a target outside 0..classes-1, or no training sample.
    """

    name: str
    train: Data
    test: Data | None
    classes: int
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...] | None = None
    prepare: Prepare | None = None
    kind: Literal["classification", "regression"] = "classification"
    groups: Tensor | None = None
    test_groups: Tensor | None = None
    group_names: tuple[str, ...] = ()
    table: Encoding | None = None

    def __post_init__(self) -> None:
        if len(self.train) == 0:
            raise DataError(f"{self.name} has no training samples. Give at least one.")
        if self.kind == "regression":
            self.class_names = ()
            return
        if self.class_names is None:
            self.class_names = tuple(str(label) for label in range(self.classes))
        if len(self.class_names) != self.classes:
            raise DataError(
                f"{self.name} has {self.classes} classes and {len(self.class_names)} names. Name each once."
            )
        for part, data in (("training", self.train), ("test", self.test)):
            if data is None or len(data) == 0:
                continue
            targets = data.targets
            if targets.dim() != 1 or targets.is_floating_point():
                raise DataError(
                    f"{self.name}: {part} targets are no class indices. For regression give kind='regression'."
                )
            if int(targets.min()) < 0 or int(targets.max()) >= self.classes:
                raise DataError(
                    f"{self.name}: {part} targets run from {int(targets.min())} to {int(targets.max())}, and there are "
                    f"{self.classes} classes. Number the classes from 0 (`arrays` does it)."
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The class names; empty for regression."""
        return self.class_names or ()

    @property
    def scale(self) -> float:
        """What integer inputs are divided by."""
        return 255.0 if self.prepare is None else self.prepare.scale

    def targets(self, test: bool = False) -> Tensor:
        """All training or test targets; a ConfigError for regression."""
        if self.kind == "regression":
            raise ConfigError(f"{self.name} is for regression and has no classes. Use data_incremental or permuted.")
        data = self.test if test else self.train
        return self.train.targets[:0] if data is None else data.targets
