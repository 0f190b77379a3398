"""What estimators share: a network that learns call by call, its parameters, its samples and its copies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.compat.components import (
    KINDS,
    InputError,
    ParameterError,
    Spec,
    changed,
    is_method,
    join_groups,
    method_of,
    nested,
    network_of,
    optimizer_of,
)
from holdfast.core.errors import needs_extra
from holdfast.core.method import Method
from holdfast.core.operation import acts_at
from holdfast.operations import AsymmetricCrossEntropy, GenerativeClassifier, StreamingLDA, TrainOnMemory
from holdfast.operations._parts.scores import ClosedFormClassifier
from holdfast.streams.data import TensorData
from holdfast.training.wrapper import Continual

EXPERIENCES = frozenset({"boundaries", "data", "stream", "progress", "replacement", "task"})
"""Needs of methods that learn from experiences, and not from samples alone."""

CHECKED = 50
"""Samples between two looks at the weights, where samples come one at a time."""

ROWS = 4096
"""Samples of one forward in a prediction."""

UNWEIGHTED = (AsymmetricCrossEntropy, ClosedFormClassifier, GenerativeClassifier, StreamingLDA, TrainOnMemory)
"""Operations that learn by another loss than that of the current samples, and would leave out their weights."""

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
CHANNELS = (1, 3, 4)
"""How many channels an image may have, to tell where they stand."""


class EstimatorLogic:
    """What classifier and regressor share: a network that learns from each call of `partial_fit` as an experience."""

    lacking: ClassVar[Mapping[str, str]] = {
        "task": "needs task labels, which scikit-learn's interface does not have",
        "stream": "needs the data of every experience at once, and `partial_fit` brings one after the other",
    }
    criterion: ClassVar[Callable[..., Tensor]]
    shape_in_: tuple[int, ...]
    n_features_in_: int
    continual_: Continual

    def __init__(
        self,
        method: Method | Spec | None = None,
        hidden: Sequence[int] = (100,),
        model: nn.Module | Callable[..., nn.Module] | Spec | None = None,
        optimizer: Spec | Callable[..., torch.optim.Optimizer] = "Adam",
        epochs: int = 20,
        batch_size: int = 32,
        random_state: Any = 0,
    ) -> None:
        self.method = method
        self.hidden = hidden
        self.model = model
        self.optimizer = optimizer
        self.epochs = epochs
        self.batch_size = batch_size
        self.random_state = random_state
        if is_method(method):  # refused here, not after the data was gathered; other values are refused by `fit`
            method_of(method, self.lacking)

    # Parameters ------------------------------------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name; with `deep` the arguments of method, model and optimiser too (`method__capacity`)."""
        parameters: dict[str, Any] = super().get_params(deep=deep)  # type: ignore[misc]
        if deep:
            for key in KINDS:
                parameters |= nested(key, getattr(self, key))
        return parameters

    def set_params(self, **params: Any) -> Self:
        """Change parameters by name, nested ones (`method__capacity=500`, `optimizer__lr=0.01`) included."""
        plain = {name: value for name, value in params.items() if name.split("__")[0] not in KINDS or "__" not in name}
        super().set_params(**plain)  # type: ignore[misc]
        for key in KINDS:
            mine = {name.removeprefix(f"{key}__"): params[name] for name in params if name.startswith(f"{key}__")}
            if mine:
                setattr(self, key, changed(key, getattr(self, key), mine))
        return self

    # Learning --------------------------------------------------------------------------------------------

    def _start(self, shape: tuple[int, ...], outputs: int) -> None:
        """A new network with its method and optimiser."""
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < 1:
                raise ParameterError(f"{name} is {value!r}. Give a whole number of 1 or more.")
        method = method_of(self.method, self.lacking)
        network = network_of(self.model, shape, outputs, self.hidden, self._seed)
        optimizer = optimizer_of(self.optimizer, network)
        self.continual_ = Continual(network, method, optimizer, criterion=type(self).criterion, seed=self._seed)
        self._norms = [module for module in network.modules() if isinstance(module, NORMS)]
        self.shape_in_ = shape

    def _first(self, shape: tuple[int, ...], outputs: int) -> None:
        """Start anew, with a seed of `random_state`."""
        from sklearn.utils import check_random_state

        whole = isinstance(self.random_state, int | np.integer)
        self._seed = int(self.random_state if whole else check_random_state(self.random_state).randint(2**31 - 1))
        self._start(shape, outputs)

    def _rows(self, X: Any, values: np.ndarray) -> Tensor:
        """Checked samples as float32 tensors: images with their channels first, bytes as 0 to 1."""
        rows = torch.from_numpy(np.ascontiguousarray(values))
        if rows.dim() > 2:
            if getattr(X, "dtype", None) == np.uint8:
                rows = rows / 255
            if rows.dim() == 3:
                rows = rows.unsqueeze(1)
            elif rows.dim() == 4 and rows.shape[1] not in CHANNELS and rows.shape[3] in CHANNELS:
                rows = rows.permute(0, 3, 1, 2).contiguous()
        expected = getattr(self, "shape_in_", None)
        if expected is not None and tuple(rows.shape[1:]) != expected:
            raise InputError(
                f"X has samples of shape {tuple(rows.shape[1:])}, and {type(self).__name__} was trained on {expected}."
                " Give samples of the same shape."
            )
        return rows

    def _train(self, rows: Tensor, targets: Tensor, classes: Sequence[int], weight: np.ndarray | None) -> None:
        """One experience: `epochs` passes over the samples."""
        cl, order = self.continual_, self.continual_.learner.rng("order")
        optimizer = cl.optimizer
        assert optimizer is not None
        weights = None if weight is None else torch.from_numpy(weight).to(torch.float32)
        data = TensorData(rows, targets)
        chosen = cl.begin(data, classes=tuple(classes), epochs=self.epochs, batch_size=self.batch_size)
        assert chosen is not None
        cl.model.train()
        norms = [module for module in cl.model.modules() if isinstance(module, NORMS)]
        for norm in norms if len(chosen) == 1 else ():
            norm.eval()  # a single sample has no statistics
        for _ in range(self.epochs):
            for part in batches(torch.randperm(len(chosen), generator=order), self.batch_size, bool(norms)):
                batch = chosen.gather(part)
                assert isinstance(batch.inputs, Tensor)
                outputs = cl.model(batch.inputs)
                if weights is None:
                    loss = cl.loss(outputs, batch.targets, batch.inputs)
                else:
                    each = type(self).criterion(outputs, batch.targets, reduction="none")
                    loss = (each.reshape(len(part), -1).mean(1) * weights[part]).mean()
                optimizer.zero_grad()
                cl.backward(loss, batch.targets, inputs=batch.inputs)
                optimizer.step()
        cl.end()
        cl.model.eval()
        self._switched: nn.Module | None = None  # a boundary may have brought modules and parameters along
        join_groups(optimizer)
        self._check_finite()

    def _train_one(self, row: Tensor, target: Tensor) -> None:
        """`epochs` steps on one sample, within no experience: for methods that ask for none."""
        step = self.continual_.step
        self._switch(True)
        for norm in self._norms:
            norm.eval()  # a single sample has no statistics
        for _ in range(self.epochs):
            step(row, target)
        self._switch(False)
        self._ones = getattr(self, "_ones", 0) + 1
        if self._ones % CHECKED == 1:
            self._check_finite()

    def _switch(self, training: bool) -> None:
        """Training or eval mode, without a walk through the modules, which takes as long as a small layer."""
        if getattr(self, "_switched", None) is not (model := self.continual_.model):
            self._switched, modules = model, list(model.modules())
            plain = all(type(module).train is nn.Module.train for module in modules)
            self._plain = [vars(module) for module in modules] if plain else None
        if self._plain is None:
            model.train(training)
            return
        for values in self._plain:
            values["training"] = training

    @property
    def _takes_ones(self) -> bool:
        """Whether the method learns a sample at a time as it learns experiences."""
        return not EXPERIENCES & set(self.continual_.method.needs)

    def _check_finite(self) -> None:
        if not all(bool(p.isfinite().all()) for p in self.continual_.model.parameters()):
            raise ParameterError(
                "training diverged: the weights are not finite any more. Scale the features (StandardScaler), lower the"
                " learning rate (optimizer__lr), or the strength of the method's penalty."
            )

    def _weights(self, sample_weight: Any, rows: int) -> np.ndarray | None:
        """Weights `[rows]` as given, or None where all are alike."""
        if sample_weight is None:
            return None
        weight = np.asarray(sample_weight, dtype=np.float64)
        weight = np.full(rows, float(weight)) if weight.ndim == 0 else weight
        if weight.shape != (rows,) or not np.isfinite(weight).all() or (weight < 0).any():
            raise InputError(
                f"sample_weight has shape {weight.shape} for {rows} samples, or values that are negative or not finite."
                " Give a weight of 0 or more for each sample."
            )
        if not weight.any():
            raise InputError("sample_weight is zero for every sample. Give some of them a weight above 0.")
        if (weight == weight[0]).all():
            return None
        method = method_of(self.method, self.lacking)
        brings_loss = any(acts_at(op, "criterion") or isinstance(op, UNWEIGHTED) for op in method)
        if brings_loss or {"criterion", "replacement"} & set(method.needs):
            raise ParameterError(
                f"the method {method.name!r} brings its own loss or data, and takes no sample_weight."
                " Leave it out, or choose another method, for instance 'er'."
            )
        return weight

    def _outputs(self, X: Any) -> Tensor:
        """Outputs of the network for samples, as the method predicts, `[samples, outputs]`."""
        from sklearn.utils.validation import check_is_fitted, validate_data

        check_is_fitted(self, "continual_")
        return self._outputs_of(self._rows(X, validate_data(self, X, reset=False, dtype=np.float32, allow_nd=True)))

    def _outputs_of(self, rows: Tensor) -> Tensor:
        return torch.cat([self.continual_.predict(part) for part in rows.split(ROWS)])

    # River -----------------------------------------------------------------------------------------------

    def as_river(self) -> Any:
        """This estimator as a model of river's, for its `evaluate.progressive_val_score`, pipelines and metrics.

        Both are one: what the model of river learns, this estimator has learnt.

        Raises:
            ImportError: where river is not installed.
        """
        try:
            from river import base
        except ImportError as error:
            raise needs_extra("a model of river", "river", "stream") from error
        estimator = self
        kind = base.Classifier if hasattr(self, "predict_proba_one") else base.Regressor

        class Continual(kind):  # type: ignore[misc, valid-type]
            _multiclass = True

            def learn_one(self, x: Mapping[str, float], y: Any) -> None:
                estimator.learn_one(x, y)  # type: ignore[attr-defined]

            def predict_one(self, x: Mapping[str, float]) -> Any:
                return estimator.predict_one(x)  # type: ignore[attr-defined]

            def predict_proba_one(self, x: Mapping[str, float]) -> dict[Any, float]:
                return estimator.predict_proba_one(x)  # type: ignore[attr-defined, no-any-return]

        Continual.__name__ = type(self).__name__
        return Continual()

    def _row_of(self, x: Mapping[str, float]) -> Tensor:
        """One sample `[1, features]` from features by name, in the order of the first sample."""
        names = getattr(self, "river_features_", None)
        if names is None:
            names = getattr(self, "feature_names_in_", None)
        if names is not None and len(names) == len(x):
            try:
                row = [x[name] for name in names]
                if math.isfinite(sum(row)):
                    return torch.tensor([row], dtype=torch.float32)
            except (KeyError, TypeError, ValueError):
                pass  # told below
        if names is None and not hasattr(self, "continual_"):
            names = self.river_features_ = sorted(x)
        if names is None or set(names) != set(x):
            expected = [] if names is None else list(names)
            lost, new = sorted(set(expected) - set(x)), sorted(set(x) - set(expected))
            raise InputError(
                f"a sample has {', '.join(map(repr, new)) or 'nothing'} that {type(self).__name__} was not trained on,"
                f" and lacks {', '.join(map(repr, lost)) or 'nothing'}. Give the features {expected}, each by its name."
            )
        try:
            values = np.array([[float(x[name]) for name in names]], dtype=np.float32)
        except (TypeError, ValueError):
            wrong = next(name for name in names if not isinstance(x[name], int | float | np.number))
            raise InputError(f"the feature {wrong!r} is {x[wrong]!r}, not a number. Encode it first.") from None
        if not np.isfinite(values).all():
            raise InputError(f"a sample has a value that is missing or not finite: {dict(x)}. Fill it in first.")
        return torch.from_numpy(values)

    # Copies ----------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Plain values: what trains is written down, and built again where it is read."""
        state: dict[str, Any] = dict(super().__getstate__())  # type: ignore[call-overload]
        cl = state.pop("continual_", None)
        for name in ("_norms", "_switched", "_plain"):
            state.pop(name, None)
        if cl is not None:
            state["saved_"] = {"continual": cl.state_dict(), "optimizer": cl.optimizer.state_dict()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Go on where the copy was made."""
        saved = state.pop("saved_", None)
        super().__setstate__(state)  # type: ignore[misc]
        if saved is not None:
            self._start(self.shape_in_, self._width())
            self.continual_.load_state_dict(saved["continual"])  # grows the head, and tells the optimiser
            if len(saved["optimizer"]["param_groups"]) == 1:
                join_groups(self.continual_.optimizer)
            self.continual_.optimizer.load_state_dict(saved["optimizer"])  # type: ignore[union-attr]
            self.continual_.model.eval()

    def _width(self) -> int:
        """Outputs that the network has from the start; 0 where they come with the classes."""
        return 0


def batches(order: Tensor, size: int, joined: bool) -> list[Tensor]:
    """`order` in parts of `size`; where `joined`, a last part of a single one belongs to the one before.

    Example:
        >>> [len(part) for part in batches(torch.arange(9), 4, joined=False)]
        [4, 4, 1]
        >>> [len(part) for part in batches(torch.arange(9), 4, joined=True)]
        [4, 5]
    """
    parts = list(order.split(size))
    if joined and len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts
