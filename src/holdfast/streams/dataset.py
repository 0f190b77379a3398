"""A data set: training and test data with what a stream must know of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from holdfast.core.errors import ConfigError, DataError
from holdfast.core.experience import Data
from holdfast.streams.prepare import Prepare

if TYPE_CHECKING:
    from holdfast.streams.datasets.encoding import Encoding


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
