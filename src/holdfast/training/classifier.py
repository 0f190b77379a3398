"""A method behind scikit-learn's interface, for code that learns by `partial_fit`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.core.method import Method
from holdfast.models import mlp
from holdfast.operations import JoinedReplay, Remember
from holdfast.streams.data import TensorData
from holdfast.training.optimization import optimizer_factory
from holdfast.training.wrapper import Continual

if TYPE_CHECKING:
    ContinualClassifier: Any

__all__ = ["ContinualClassifier"]


class ClassifierLogic:
    """A neural network that learns continually by `partial_fit`, new classes included, with any method of Holdfast.

    Each call of `partial_fit` is one experience; classes need not be announced. Features of rows `[samples, features]`
    enter as float32; scale them beforehand, for instance by a `StandardScaler`.

    Args:
        method: what is done against forgetting; copied. Default: experience replay from 1000 samples.
        hidden: units of the hidden layers of the default network.
        model: from `(features, seed)` to a network with a growing head instead.
        optimizer: a torch name, or a mapping with `name` and arguments.
        epochs: passes over the data of each call.
        batch_size: samples per step.
        random_state: seed of every random choice.

    Attributes:
        classes_: labels seen so far, sorted.
        n_features_in_: number of features.
        continual_: the wrapper around the network, once trained.

    Example:
        >>> from holdfast.training.classifier import ContinualClassifier
        >>> rng = np.random.default_rng(0)
        >>> model = ContinualClassifier(hidden=(16,), epochs=5, random_state=0)
        >>> for low in (0, 2):
        ...     y = rng.integers(low, low + 2, 200)
        ...     model = model.partial_fit(rng.normal(y[:, None] * 3, 0.5, (200, 2)), y)
        >>> model.classes_.tolist(), model.predict([[0.0, 0.0], [9.0, 9.0]]).tolist()
        ([0, 1, 2, 3], [0, 3])
    """

    def __init__(
        self,
        method: Method | None = None,
        hidden: Sequence[int] = (100,),
        model: Callable[[int, int], nn.Module] | None = None,
        optimizer: str | Mapping[str, Any] = "Adam",
        epochs: int = 20,
        batch_size: int = 32,
        random_state: int = 0,
    ) -> None:
        self.method = method
        self.hidden = hidden
        self.model = model
        self.optimizer = optimizer
        self.epochs = epochs
        self.batch_size = batch_size
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Forget everything and learn from these samples."""
        for name in ("continual_", "classes_", "_labels"):
            self.__dict__.pop(name, None)
        return self._learn(X, y, None, reset=True)

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """Learn from these samples on top of everything before.

        Args:
            X: `[samples, features]`.
            y: `[samples]` labels of any kind, new ones welcome.
            classes: labels to expect, as scikit-learn's own classifiers need it at the first call; may be left out.
        """
        return self._learn(X, y, classes, reset=not hasattr(self, "continual_"))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of each row."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities `[samples, classes]`, in the order of `classes_`."""
        from sklearn.utils.validation import check_is_fitted, validate_data

        check_is_fitted(self, "continual_")
        rows = torch.from_numpy(np.ascontiguousarray(validate_data(self, X, reset=False, dtype=np.float32)))
        outputs = self.continual_.predict(rows)[:, [self._labels.index(label) for label in self.classes_.tolist()]]
        return outputs.double().softmax(1).numpy()

    def learn_one(self, x: Mapping[str, float], y: Any) -> Self:
        """One sample as river's models take it: features by name."""
        return self.partial_fit(np.array([[x[key] for key in sorted(x)]]), np.array([y]))

    def predict_one(self, x: Mapping[str, float]) -> Any:
        """The label of one sample, or None before anything was learnt."""
        if not hasattr(self, "continual_"):
            return None
        return self.predict(np.array([[x[key] for key in sorted(x)]]))[0]

    def _learn(self, X: Any, y: Any, classes: Any, reset: bool) -> Self:
        from sklearn.utils.multiclass import check_classification_targets
        from sklearn.utils.validation import validate_data

        rows, labels = validate_data(self, X, y, reset=reset, dtype=np.float32)
        check_classification_targets(labels)
        if not hasattr(self, "continual_"):
            self._start()
        announced = [] if classes is None else np.asarray(classes).tolist()
        known = set(self._labels)
        self._labels += [label for label in dict.fromkeys([*announced, *labels.tolist()]) if label not in known]
        self.classes_ = np.unique(np.array(self._labels, dtype=np.asarray(self._labels).dtype))
        places = {label: place for place, label in enumerate(self._labels)}
        targets = torch.tensor([places[label] for label in labels.tolist()])
        self._train(TensorData(torch.from_numpy(np.ascontiguousarray(rows)), targets), len(self._labels))
        return self

    def _start(self) -> None:
        features = self.n_features_in_
        make = self.model or (
            lambda count, seed: mlp(
                input_shape=(count,), classes=0, hidden=list(self.hidden), head="growing", seed=seed
            )
        )
        network = make(features, self.random_state)
        method = Method(JoinedReplay(size=32), Remember(capacity=1000)) if self.method is None else self.method.clone()
        optimizer = optimizer_factory(self.optimizer)(list(network.parameters()))
        self.continual_ = Continual(network, method, optimizer, seed=self.random_state)
        self._labels: list[Any] = []

    def _train(self, data: TensorData, classes: int) -> None:
        cl, order = self.continual_, self.continual_.learner.rng("order")
        assert cl.optimizer is not None
        seen = tuple(sorted(set(data.targets.tolist())))
        cl.learner.grow(range(classes))  # for classes that were announced and not seen
        chosen = cl.begin(data, classes=seen, epochs=self.epochs, batch_size=self.batch_size)
        assert chosen is not None
        cl.model.train()
        for _ in range(self.epochs):
            for batch in chosen.batches(torch.randperm(len(chosen), generator=order), self.batch_size):
                assert isinstance(batch.inputs, Tensor)
                loss = cl.loss(cl.model(batch.inputs), batch.targets, batch.inputs)
                cl.optimizer.zero_grad()
                cl.backward(loss, batch.targets, inputs=batch.inputs)
                cl.optimizer.step()
        cl.end()
        cl.model.eval()

    classes_: np.ndarray
    n_features_in_: int
    continual_: Continual


@functools.cache
def _class() -> type:
    from sklearn.base import BaseEstimator, ClassifierMixin

    made = type(
        "ContinualClassifier", (ClassifierLogic, ClassifierMixin, BaseEstimator), {"__doc__": ClassifierLogic.__doc__}
    )
    made.__module__ = __name__
    return made


def __getattr__(name: str) -> Any:
    """The class, made when it is asked for: scikit-learn takes a second to import."""
    if name == "ContinualClassifier":
        return _class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
