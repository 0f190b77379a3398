"""A method behind scikit-learn's and river's interfaces: `ContinualClassifier` and `ContinualRegressor`."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.compat.components import InputError, ParameterError
from holdfast.compat.estimator import EstimatorLogic

if TYPE_CHECKING:
    ContinualClassifier: Any
    ContinualRegressor: Any

__all__ = ["ContinualClassifier", "ContinualRegressor"]


class ClassifierLogic(EstimatorLogic):
    """A neural network that learns continually by `partial_fit`, new classes included, with any method of Holdfast.

    Each call of `partial_fit` is one experience; classes need not be announced. Features of rows `[samples, features]`
    enter as float32; scale them beforehand, for instance by a `StandardScaler`. Images `[samples, height, width]`, or
    with channels first or last, enter as they are, bytes (uint8) as 0 to 1.

    It can be cloned, pickled and copied at any time, and each copy goes on by itself. The arguments of method, model
    and optimiser are parameters of their own in a search: `method__capacity`, `model__hidden`, `optimizer__lr`.

    Args:
        method: what is done against forgetting: a method, its name ("er"), or a mapping with `name` and arguments.
            Default: experience replay from 1000 samples. Methods that need task labels, or all data at once, are
            refused.
        hidden: units of the hidden layers of the default network.
        model: a network instead of the default one: a name of `holdfast.models`, a mapping with `name` and arguments, a
            module, or a callable from `(features, seed)`, of images `(shape, seed)`, to a module. Its head grows with
            the classes, or has outputs for all of them.
        optimizer: a torch name, a mapping with `name` and arguments, or a callable that takes the parameters.
        epochs: passes over the data of each call.
        batch_size: samples per step; under batch norm, a last batch of a single sample joins the one before.
        random_state: seed of every random choice; None for another one at each `fit`.

    Attributes:
        classes_: labels seen or announced so far, sorted.
        n_features_in_: number of features.
        shape_in_: shape of one sample, as the network gets it.
        continual_: the wrapper around the network, once trained.

    Example:
        >>> from holdfast import ContinualClassifier
        >>> rng = np.random.default_rng(0)
        >>> model = ContinualClassifier(hidden=(16,), epochs=5, random_state=0)
        >>> for low in (0, 2):
        ...     y = rng.integers(low, low + 2, 200)
        ...     model = model.partial_fit(rng.normal(y[:, None] * 3, 0.5, (200, 2)), y)
        >>> model.classes_.tolist(), model.predict([[0.0, 0.0], [9.0, 9.0]]).tolist()
        ([0, 1, 2, 3], [0, 3])
    """

    criterion = staticmethod(F.cross_entropy)
    classes_: np.ndarray

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Forget everything and learn from these samples.

        Args:
            X: `[samples, features]`, or images.
            y: `[samples]` labels.
            sample_weight: `[samples]` weights of their losses; of those that are 0 nothing is learnt.
        """
        for name in ("continual_", "classes_", "shape_in_", "river_features_", "_labels"):
            self.__dict__.pop(name, None)
        return self._learn(X, y, None, sample_weight, reset=True)

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Learn from these samples on top of everything before.

        Args:
            X: `[samples, features]`, or images.
            y: `[samples]` labels of any kind, new ones welcome; numbers and words cannot be mixed.
            classes: labels to expect, as scikit-learn's own classifiers need it at the first call; may be left out.
            sample_weight: `[samples]` weights of their losses; of those that are 0 nothing is learnt. What is
                remembered of the others is replayed with a weight of 1.
        """
        return self._learn(X, y, classes, sample_weight, reset=not hasattr(self, "continual_"))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of each sample."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities `[samples, classes]`, in the order of `classes_`; 0 for classes announced and never seen."""
        return self._probabilities(self._outputs(X))

    def learn_one(self, x: Mapping[str, float], y: Any) -> Self:
        """One sample as river's models take it: features by name, the same ones as in the first sample."""
        row = self._row_of(x)
        number = self._number.get(y) if hasattr(self, "continual_") else None
        if number is not None and self._takes_ones:
            self._train_one(row, torch.tensor([number]))
        else:
            self._learn_rows(row, np.array([y]), None, self._classes_with([y], None))
        return self

    def predict_one(self, x: Mapping[str, float]) -> Any:
        """The label of one sample, or None before anything was learnt."""
        if not hasattr(self, "continual_"):
            return None
        outputs = self._one(x).tolist()
        number = self._number
        return max((label for label in self.classes_.tolist() if label in number), key=lambda one: outputs[number[one]])

    def predict_proba_one(self, x: Mapping[str, float]) -> dict[Any, float]:
        """The probability of each label for one sample; empty before anything was learnt."""
        if not hasattr(self, "continual_"):
            return {}
        outputs = self._one(x)
        labels = self.classes_.tolist()
        shares = (
            outputs[[self._number[label] for label in labels if label in self._number]].double().softmax(0).tolist()
        )
        probabilities = dict.fromkeys(labels, 0.0)
        probabilities.update(zip((label for label in labels if label in self._number), shares))
        return probabilities

    def _one(self, x: Mapping[str, float]) -> Tensor:
        """Outputs for one sample; the network is in eval mode between any two calls."""
        with torch.no_grad():
            return self.continual_.engine.predict(self._row_of(x))[0]

    def _learn(self, X: Any, y: Any, classes: Any, sample_weight: Any, reset: bool) -> Self:
        from sklearn.utils.multiclass import check_classification_targets
        from sklearn.utils.validation import validate_data

        values, labels = validate_data(self, X, y, reset=reset, dtype=np.float32, allow_nd=True)
        check_classification_targets(labels)
        rows, weight = self._rows(X, values), self._weights(sample_weight, len(labels))
        if weight is not None:
            counted = weight > 0
            rows, labels, weight = rows[torch.from_numpy(counted)], labels[counted], weight[counted]
            weight = weight / weight.mean()
        self._learn_rows(rows, labels, weight, self._classes_with(labels.tolist(), classes))
        return self

    def _classes_with(self, labels: Iterable[Any], classes: Any) -> np.ndarray:
        """The labels so far and those that come, sorted.

        Raises:
            InputError: where numbers and words meet.
        """
        before = self.classes_.tolist() if hasattr(self, "classes_") else []
        every = [*before, *([] if classes is None else np.asarray(classes).tolist()), *labels]
        kinds = {"numbers" if isinstance(label, bool | int | float | np.number) else "words" for label in every}
        if len(kinds) > 1:
            first = next(label for label in every if isinstance(label, str) != isinstance(every[0], str))
            raise InputError(
                f"the labels were {'words' if isinstance(every[0], str) else 'numbers'} so far (such as {every[0]!r}),"
                f" and now {first!r} came. Give all of them as one kind, for instance y.astype(str)."
            )
        return np.unique(np.array(every))

    def _learn_rows(self, rows: Tensor, labels: np.ndarray, weight: np.ndarray | None, classes: np.ndarray) -> None:
        if not hasattr(self, "continual_"):
            self._first(tuple(rows.shape[1:]), self._width())
            self.n_features_in_ = rows.shape[1] if not hasattr(self, "n_features_in_") else self.n_features_in_
            self._labels: list[Any] = []
            self._number: dict[Any, int] = {}
        seen = set(self._labels)
        new = [label for label in dict.fromkeys(labels.tolist()) if label not in seen]
        head = self.continual_.learner.head
        width = getattr(head, "out_features", None)
        if not hasattr(head, "grow") and isinstance(width, int) and width < len(self._labels) + len(new):
            raise ParameterError(
                f"the model has {width} outputs, and {new} would be more classes than that. Give it a head that grows"
                " (holdfast.models.GrowingHead), or outputs for all classes."
            )
        self.classes_ = classes
        self._labels += new
        self._number = number = {label: index for index, label in enumerate(self._labels)}
        targets = torch.tensor([number[label] for label in labels.tolist()])
        self._train(rows, targets, sorted(set(targets.tolist())), weight)

    def _probabilities(self, outputs: Tensor) -> np.ndarray:
        number = {label: index for index, label in enumerate(self._labels)}
        seen = [column for column, label in enumerate(self.classes_.tolist()) if label in number]
        probabilities = np.zeros((len(outputs), len(self.classes_)))
        columns = [number[label] for label in self.classes_.tolist() if label in number]
        probabilities[:, seen] = outputs[:, columns].double().softmax(1).numpy()
        return probabilities


class RegressorLogic(EstimatorLogic):
    """A neural network that learns numbers continually by `partial_fit`, with any method of Holdfast that takes them.

    Each call of `partial_fit` is one experience. Features enter as in `ContinualClassifier`. Targets are learnt as
    multiples of their deviation from the mean, both taken from the first call and kept for all later ones; the loss is
    the mean squared error.

    Args:
        method: what is done against forgetting, as in `ContinualClassifier`; methods that need classes are refused.
        hidden: units of the hidden layers of the default network.
        model: a network instead of the default one, as in `ContinualClassifier`, with an output for each number.
        optimizer: a torch name, a mapping with `name` and arguments, or a callable that takes the parameters.
        epochs: passes over the data of each call.
        batch_size: samples per step; under batch norm, a last batch of a single sample joins the one before.
        random_state: seed of every random choice; None for another one at each `fit`.

    Attributes:
        n_features_in_: number of features.
        n_outputs_: numbers per sample.
        mean_: `[outputs]` mean of the targets of the first call.
        scale_: `[outputs]` their standard deviation; 1 where it is 0.
        shape_in_: shape of one sample, as the network gets it.
        continual_: the wrapper around the network, once trained.

    Example:
        >>> from holdfast import ContinualRegressor
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(300, 2))
        >>> model = ContinualRegressor(method="er", epochs=30, random_state=0).partial_fit(x, 100 + 5 * x[:, 0])
        >>> bool(abs(model.predict([[1.0, 0.0]])[0] - 105) < 1)
        True
    """

    lacking: ClassVar = {**EstimatorLogic.lacking, "classes": "works with class labels, which numbers do not have"}
    criterion = staticmethod(F.mse_loss)
    n_outputs_: int
    mean_: np.ndarray
    scale_: np.ndarray

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn's tools should know: several numbers per sample are welcome."""
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Forget everything and learn from these samples.

        Args:
            X: `[samples, features]`, or images.
            y: `[samples]` or `[samples, outputs]` numbers.
            sample_weight: `[samples]` weights of their losses; of those that are 0 nothing is learnt.
        """
        for name in ("continual_", "mean_", "scale_", "shape_in_", "river_features_"):
            self.__dict__.pop(name, None)
        return self._learn(X, y, sample_weight, reset=True)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn from these samples on top of everything before.

        Args:
            X: `[samples, features]`, or images.
            y: `[samples]` or `[samples, outputs]` numbers.
            sample_weight: `[samples]` weights of their losses; of those that are 0 nothing is learnt.
        """
        return self._learn(X, y, sample_weight, reset=not hasattr(self, "continual_"))

    def predict(self, X: Any) -> np.ndarray:
        """The numbers of each sample, `[samples]` or `[samples, outputs]` as the targets were."""
        return self._numbers(self._outputs(X))

    def learn_one(self, x: Mapping[str, float], y: float) -> Self:
        """One sample as river's models take it: features by name, the same ones as in the first sample."""
        self._learn_rows(self._row_of(x), np.array([float(y)]), None)
        return self

    def predict_one(self, x: Mapping[str, float]) -> float:
        """The number of one sample; 0 before anything was learnt, as river's regressors say."""
        return float(self._numbers(self._outputs_of(self._row_of(x)))[0]) if hasattr(self, "continual_") else 0.0

    def _learn(self, X: Any, y: Any, sample_weight: Any, reset: bool) -> Self:
        from sklearn.utils.validation import validate_data

        values, numbers = validate_data(
            self, X, y, reset=reset, dtype=np.float32, allow_nd=True, y_numeric=True, multi_output=True
        )
        rows, weight = self._rows(X, values), self._weights(sample_weight, len(numbers))
        if weight is not None:
            counted = weight > 0
            rows, numbers, weight = rows[torch.from_numpy(counted)], numbers[counted], weight[counted]
            weight = weight / weight.mean()
        self._learn_rows(rows, np.asarray(numbers, dtype=np.float64), weight)
        return self

    def _learn_rows(self, rows: Tensor, numbers: np.ndarray, weight: np.ndarray | None) -> None:
        table = numbers.reshape(len(numbers), -1)
        if not hasattr(self, "continual_"):
            self.n_outputs_, self._flat = table.shape[1], numbers.ndim == 1
            deviation = table.std(0)
            self.mean_, self.scale_ = table.mean(0), np.where(deviation > 0, deviation, 1.0)
            self._first(tuple(rows.shape[1:]), self._width())
            self.n_features_in_ = rows.shape[1] if not hasattr(self, "n_features_in_") else self.n_features_in_
        if table.shape[1] != self.n_outputs_:
            raise InputError(
                f"y has {table.shape[1]} numbers per sample, and {type(self).__name__} was trained on"
                f" {self.n_outputs_}. Give as many."
            )
        scaled = torch.from_numpy((table - self.mean_) / self.scale_).to(torch.float32)
        self._train(rows, scaled, (), weight)

    def _numbers(self, outputs: Tensor) -> np.ndarray:
        numbers = outputs.reshape(len(outputs), -1).double().numpy() * self.scale_ + self.mean_
        return numbers[:, 0] if self._flat else numbers

    def _width(self) -> int:
        return self.n_outputs_


LOGIC = {
    "ContinualClassifier": (ClassifierLogic, "ClassifierMixin"),
    "ContinualRegressor": (RegressorLogic, "RegressorMixin"),
}


@functools.cache
def _class(name: str) -> type:
    import sklearn.base

    logic, mixin = LOGIC[name]
    bases = (logic, getattr(sklearn.base, mixin), sklearn.base.BaseEstimator)
    made = type(name, bases, {"__doc__": logic.__doc__})
    made.__module__ = __name__
    return made


def __getattr__(name: str) -> Any:
    """The class, made when it is asked for: scikit-learn takes a second to import."""
    if name in LOGIC:
        return _class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
