"""Gradients of single samples for any model: by the fastest of four ways that is right for it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, HoldfastError, UsageError
from holdfast.core.experience import Tree, tree_cat, tree_map, tree_rows
from holdfast.core.forward import gradients_of
from holdfast.core.services import Services
from holdfast.operations._parts.functional_model import TOGETHER, FunctionalModel, RowLoss
from holdfast.operations._parts.layer_gradients import (
    Diagonal,
    Magnitude,
    layer_outputs,
    one_call_a_row,
    recorded,
    square,
    summed,
    supported_layers,
)

Way = Literal["closed", "vmapped", "alone", "within"]
"""How gradients of single samples are made; see `PerSample`."""

Labels = Iterable[tuple[Tensor, Tensor | float | None]]
"""Targets `[rows, ...]` to differentiate by, with the factor of each sample's magnitude (None for 1)."""

Draw = Callable[[Tensor, Tensor], Labels]
"""Labels of outputs `[rows, ...]` and targets `[rows, ...]`."""

CHECKED = 4
"""Samples whose gradients are taken one at a time, to see whether a faster way gives the same."""

MANY = 1000
"""Samples with a backward each, from which on a warning says so."""

MOST = 2**28
"""Values of gradients that exist at once before they are summed in parts."""


class PerSample:
    """What of single samples' gradients is summed, by the fastest way that is right for the model.

    1. `closed`: one forward and one backward over the batch; the sums follow layer by layer. For linear layers,
       convolutions and batch norm with statistics, where their rows are samples.
    2. `vmapped`: `vmap(grad)` over the samples, for models that `torch.func` takes.
    3. `alone`: one forward and one backward a sample.
    4. `within`: one backward for each row of a batch's forward, for models that take no sample on its own (batch norm
       without statistics). A sample's gradient then depends on the batch it is in.

    Which one is decided at the first batch, and again where a batch does not fit it: the gradients of a few samples
    are made one backward a sample, and the fastest way that gives the same is taken. Weights that are used twice, rows
    that are not samples, hooks that change a layer's output, and layers that compute otherwise thus cost time, and give
    no wrong number. The check leaves the global random numbers as they were.

    Args:
        learner: its model, which is in eval mode whenever something is asked here.
        magnitude: of a sample's gradient; what is summed over samples.
        closed_form: True to refuse all but the first way, False to leave it out.

    Raises:
        ConfigError: the closed form is asked for, and the model has none, or it would give other numbers.

    Attributes:
        way: the one in use; None before the first batch.
        warned: whether `warn` did.
        layers: those with a closed form, by name, if all trainable parameters are in such layers; else None.
    """

    def __init__(self, learner: Services, magnitude: Magnitude = square, closed_form: bool | None = None) -> None:
        self.learner, self.magnitude, self.closed_form = learner, magnitude, closed_form
        self.layers = None if closed_form is False else supported_layers(learner.model)
        self.way: Way | None = None
        self.warned = False
        self._slow_way: Way = "alone"
        self._shape: tuple[int, ...] | None = None  # of the outputs of one sample
        self._context: tuple[Tree, Any] | None = None
        if self.layers is None:
            self._refuse_without_closed_form("the model has layers without one")

    def warn(self, samples: int) -> None:
        """Say once, after the first batch, that every one of many samples takes a backward of its own."""
        if self.way in ("alone", "within") and samples > MANY and not self.warned:
            self.warned = True
            warnings.warn(
                f"gradients of single samples take one backward each in this model, {samples} in all: it has layers"
                " that neither a closed form nor torch.func.vmap knows. Measure fewer with samples=...",
                stacklevel=2,
            )

    def summed(self, inputs: Tree, targets: Tensor, task: Any, loss: RowLoss, draw: Draw) -> Diagonal:
        """The magnitudes of per-sample gradients, summed over samples and over what `draw` yields.

        Args:
            inputs: raw inputs, `[rows, ...]`, on the learner's device.
            targets: `[rows, ...]`.
            task: the task of all rows, `[rows]` tasks, or None for the current one.
            loss: the sum over rows of each row's own loss.
            draw: the labels that the loss is taken of.
        """
        way = self.choose(inputs, task)
        if way == "closed":
            sums = self._closed(inputs, targets, task, loss, draw)
            if sums is not None:
                return sums
            self._refuse_without_closed_form("a layer is not called once, with a row for each sample")
            way = self.choose(inputs, task, without=("closed",))
        if way == "vmapped":
            try:
                return self._vmapped(inputs, targets, task, loss, draw)
            except HoldfastError:
                raise
            except Exception:  # a criterion, or a later batch, that torch.func cannot take
                way = self.way = self._slow_way
        return self._one_by_one(way, inputs, targets, task, loss, draw)

    def matrix(self, inputs: Tree, targets: Tensor, task: Any, loss: RowLoss) -> Tensor:
        """The gradient of each row's own loss by all trainable parameters, `[rows, values]`; never in closed form.

        Args:
            inputs: raw inputs, `[rows, ...]`, on the learner's device.
            targets: `[rows, ...]`.
            task: the task of all rows, `[rows]` tasks, or None for the current one.
            loss: the sum over rows of each row's own loss.
        """
        rows = targets.shape[0]
        if self.choose(inputs, task, without=("closed",)) == "vmapped":
            try:
                by_name = FunctionalModel(self.learner, inputs, task).gradients(loss, targets)
                return torch.cat([_real(value).reshape(rows, -1) for value in by_name.values()], dim=1)
            except Exception:  # a criterion that torch.func cannot take
                self.way = self._slow_way
        assert self.way is not None
        gradients = self._gradients(self.way, inputs, targets, task, loss, _as_they_are)
        return torch.stack([torch.cat([_real(value).flatten() for value in each]) for each, _ in gradients])

    def outputs(self, inputs: Tree, task: Any) -> Tensor:
        """The model's outputs on raw `inputs`, `[rows, ...]`: also where it squeezes those of a single row."""
        outputs, rows = self.learner(inputs, task), tree_rows(inputs)
        if self._shape is None:
            self._shape = tuple(outputs.shape[1:])
        whole = (rows, *self._shape)
        return outputs.reshape(whole) if rows == 1 and outputs.numel() == torch.Size(whole).numel() else outputs

    # Which way -------------------------------------------------------------------------------------------

    def choose(self, inputs: Tree, task: Any, without: Sequence[Way] = ()) -> Way:
        """The fastest way that gives what one backward a sample gives on a few rows of `inputs`.

        Args:
            inputs: raw inputs, `[rows, ...]`, on the learner's device.
            task: as for `summed`.
            without: ways that may not be chosen.
        """
        if self.way is None or self.way in without:
            device = self.learner.device
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                self.way = self._chosen(inputs, task, without)
        return self.way

    def _chosen(self, inputs: Tree, task: Any, without: Sequence[Way]) -> Way:
        rows = tree_rows(inputs)
        index = torch.linspace(0, rows - 1, min(rows, CHECKED)).round().to(torch.int64)
        few = tree_map(lambda leaf: leaf.index_select(0, index.to(leaf.device)), inputs)
        tasks = task[index.to(task.device)] if isinstance(task, Tensor) else task
        arguments = few, torch.zeros(len(index), device=self.learner.device), tasks, _probe, _as_they_are
        try:
            with torch.no_grad():
                rows_out = self.outputs(few, tasks).shape[0]
            self._slow_way, truth = "alone", self._one_by_one("alone", *arguments)
        except Exception:  # whatever a user's model raises where it takes no single sample
            self._slow_way, truth, rows_out = "within", self._one_by_one("within", *arguments), len(index)
        for way, sums in (("closed", self._closed), ("vmapped", self._vmapped)):
            skipped = way in without or rows_out != len(index) or (way == "closed" and self.layers is None)
            try:
                answer = None if skipped else sums(*arguments)
            except Exception:  # torch.func has no class of error for what it cannot do
                answer = None
            if answer is not None and self._same(answer, truth):
                return way  # type: ignore[return-value]
            if way == "closed" and not skipped:
                self._refuse_without_closed_form("it gives other numbers than one backward a sample")
        return self._slow_way

    def _same(self, diagonal: Diagonal, truth: Diagonal) -> bool:
        """Whether two ways agree, but for rounding."""
        if diagonal.keys() != truth.keys():
            return False
        kinds = {value.dtype for value in truth.values()}
        close, noise = (1e-6, 1e-10) if kinds == {torch.float64} else (1e-3, 1e-5)
        if self.learner.device.type == "cuda":
            close = max(close, 2e-2)  # convolutions round to ten bits there
        if self.learner.autocast is not None or kinds & {torch.float16, torch.bfloat16}:
            close, noise = 0.2, 1e-2
        largest = torch.stack([value.abs().amax().double() for value in truth.values() if value.numel()])
        apart = torch.stack(
            [(diagonal[n] - value).abs().amax().double() for n, value in truth.items() if value.numel()]
        )
        floor = largest.amax() * float(self.magnitude(torch.tensor(noise, dtype=torch.float64)))
        return bool((apart <= close * largest + floor).all())

    def _refuse_without_closed_form(self, why: str) -> None:
        if self.closed_form:
            raise ConfigError(f"the closed form of per-sample gradients was asked for, but {why}. Leave it out.")

    # The four ways ---------------------------------------------------------------------------------------

    def _closed(self, inputs: Tree, targets: Tensor, task: Any, loss: RowLoss, draw: Draw) -> Diagonal | None:
        assert self.layers is not None
        result: Diagonal = {}
        rows = targets.shape[0]
        with recorded(self.layers) as seen, torch.enable_grad():
            outputs = self.outputs(inputs, task)
            if outputs.shape[0] != rows or not one_call_a_row(seen, rows):
                return None
            left = layer_outputs(seen)
            for labels, factor in draw(outputs, targets):
                deltas = torch.autograd.grad(loss(outputs, labels), left, retain_graph=True, allow_unused=True)
                deltas = tuple(torch.zeros_like(out) if d is None else d for d, out in zip(deltas, left))
                if factor is not None:
                    root = factor**0.5 if isinstance(factor, float) else factor.sqrt()
                    shaped = [root if isinstance(root, float) else root.view(-1, *[1] * (d.dim() - 1)) for d in deltas]
                    deltas = tuple(delta * value for delta, value in zip(deltas, shaped))
                _add(result, summed(self.layers, seen, deltas, self.magnitude))
        return result

    def _vmapped(self, inputs: Tree, targets: Tensor, task: Any, loss: RowLoss, draw: Draw) -> Diagonal:
        model = FunctionalModel(self.learner, inputs, task)
        result: Diagonal = {}
        rows = targets.shape[0]
        values = rows * sum(value.numel() for value in model.parameters.values())
        for labels, factor in draw(model.outputs(), targets):
            for part in torch.arange(rows).split(TOGETHER if values > MOST else max(1, rows)):
                chosen = slice(int(part[0]), int(part[-1]) + 1)
                gradients = model.gradients(loss, labels[chosen], chosen)
                sizes = {name: self.magnitude(value) for name, value in gradients.items()}
                if factor is None:
                    _add(result, {name: value.sum(0) for name, value in sizes.items()})
                    continue
                weights = factor[chosen] if isinstance(factor, Tensor) else torch.full((len(part),), factor)
                _add(result, {name: torch.tensordot(weights.to(value), value, 1) for name, value in sizes.items()})
        return result

    def _one_by_one(self, way: Way, inputs: Tree, targets: Tensor, task: Any, loss: RowLoss, draw: Draw) -> Diagonal:
        named = self.learner.named_parameters()
        result = {name: self.magnitude(torch.zeros_like(p)) for name, p in named.items()}
        for gradients, factor in self._gradients(way, inputs, targets, task, loss, draw):
            for value, gradient in zip(result.values(), gradients):
                size = self.magnitude(gradient)
                value += size if factor is None else size * factor
        return result

    def _gradients(
        self, way: Way, inputs: Tree, targets: Tensor, task: Any, loss: RowLoss, draw: Draw
    ) -> Iterator[tuple[list[Tensor], Tensor | float | None]]:
        """The gradients of each sample for each of its labels, with their factor: one backward for each."""
        parameters, rows = self.learner.parameters(), targets.shape[0]
        parts = [slice(row, row + 1) for row in range(rows)]
        if way == "within":
            pieces = torch.arange(rows).tensor_split(-(-rows // TOGETHER))
            parts = [slice(int(piece[0]), int(piece[-1]) + 1) for piece in pieces]
        for part in parts:
            chosen = tree_map(lambda leaf, part=part: leaf[part], inputs)  # type: ignore[misc]
            tasks = task[part] if isinstance(task, Tensor) else task
            rows_here = part.stop - part.start
            with torch.enable_grad():
                outputs = self._outputs_of(way, chosen, tasks, rows_here)
            for labels, factor in draw(outputs, targets[part]):
                for row in range(rows_here):
                    one = slice(row, row + 1)
                    with torch.enable_grad():
                        value = loss(outputs, labels) if way == "alone" else loss(outputs[one], labels[one])
                        gradients = gradients_of(value, parameters)[0]
                    yield gradients, factor[row] if isinstance(factor, Tensor) else factor

    def _outputs_of(self, way: Way, inputs: Tree, tasks: Any, rows: int) -> Tensor:
        """Outputs of one sample alone; or of several within their batch, a single one with the batch before."""
        if way == "alone":
            outputs = self.outputs(inputs, tasks)
            if outputs.shape[1:] != self._shape:
                raise UsageError(f"the model gives outputs of shape {tuple(outputs.shape)} for one sample.")
            return outputs
        if rows > 1:
            self._context = inputs, tasks
        elif self._context is not None:
            joined = tree_cat([inputs, self._context[0]])
            tasks = torch.cat([tasks, self._context[1]]) if isinstance(tasks, Tensor) else tasks
            return self.outputs(joined, tasks)[:1]
        outputs = self.outputs(inputs, tasks)
        if outputs.dim() == 0 or outputs.shape[0] != rows:
            raise UsageError(
                f"gradients of single samples need a row of outputs for each sample: the model gave outputs of shape "
                f"{tuple(outputs.shape)} for {rows} samples, and takes no single one. Return a row for each sample."
            )
        return outputs


def _add(total: Diagonal, part: Diagonal) -> None:
    for name, value in part.items():
        total[name] = total[name] + value if name in total else value


def _real(value: Tensor) -> Tensor:
    return torch.view_as_real(value) if value.is_complex() else value


def _as_they_are(outputs: Tensor, targets: Tensor) -> Labels:
    return ((targets, None),)


def _probe(outputs: Tensor, labels: Tensor) -> Tensor:
    """A linear function of the outputs with a gradient by each of them: no loss, which may have none any more."""
    weights = torch.arange(outputs[0].numel(), device=outputs.device, dtype=torch.float64).mul(2.4).add(1).cos()
    return (outputs * weights.to(outputs.dtype).view(outputs.shape[1:])).sum()
