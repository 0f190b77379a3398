"""What the units of layers contribute to the outputs of the right classes, by gradients, paths and ablation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.core.tree import Tree, tree_map, tree_rows
from holdfast.operations._parts.layers import Layer

Attribution = Literal[
    "gradient_activation",
    "gradcam",
    "internal_influence",
    "conductance",
    "integrated_gradients",
    "gradient_shap",
    "deeplift",
    "deeplift_shap",
    "lrp",
    "feature_ablation",
]
ATTRIBUTIONS: tuple[str, ...] = get_args(Attribution)
"""The names that `attribute` knows."""

UNITWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid),
    *(nn.Softplus, nn.Hardtanh, nn.Hardswish),
)
RESTING = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
)
"""What is in evaluation in forwards that only ask."""
SMALLEST = 1e-6
ROWS = 1024
"""Rows in one forward of an ablation."""


def attribute(
    kind: str, layers: Mapping[str, Layer], step: Step, learner: Services, points: int, generator: torch.Generator
) -> dict[str, Tensor]:
    r"""What each unit of some layers contributed in a step: the batch's mean of |attribution|, `[units]` by layer.

    With F the output of a row's class, h what the layer writes, x the inputs and all baselines zero:

    `gradient_activation`: h dF/dh; `gradcam`: the mean of dF/dh over a map times the mean of h;
    `internal_influence`: the mean of dF/dh on the path a x, 0 < a < 1; `conductance`: the sum of dF/dh times the change
    of h on that path; `integrated_gradients`: h - h(0) times the mean of dF/dh on the straight path between the two,
    layer by layer; `gradient_shap`: (h - h(0)) dF/dh at draws of a; `deeplift`: h - h(0) times the gradient with the
    slope between x and baseline in the place of each activation's derivative (the rescale rule), `deeplift_shap` the
    same with other rows of the batch as baselines; `lrp`: h times the gradient with output over input as that slope
    (the epsilon rule); `feature_ablation`: how far F moves where the unit's output is zero.

    Statistics of normalisation stay as they are, and dropout rests.

    Args:
        kind: one of `ATTRIBUTIONS`.
        layers: by name.
        step: whose inputs, targets and task are asked.
        learner: its model.
        points: on a path, or draws.
        generator: of draws.

    Source: Kokhlikyan et al. 2020, "Captum: a unified and generic model interpretability library for PyTorch", and the
    papers named there; `lrp`, `deeplift` as modified gradients: Ancona et al. 2018, "Towards better understanding of
    gradient-based attribution methods for deep neural networks", table 1.
    """
    asked = _Asked(layers, step, learner)
    with asked.at_rest(), torch.enable_grad():
        inputs = step.inputs
        if kind == "feature_ablation":
            return {name: asked.ablated(name) for name in layers}
        if kind in ("gradient_activation", "gradcam"):
            outputs, slopes = asked.gradients(inputs)
            if kind == "gradcam":
                outputs = {name: _over_map(value, layers[name]) for name, value in outputs.items()}
                slopes = {name: _over_map(value, layers[name]) for name, value in slopes.items()}
            shares = {name: outputs[name] * slopes[name] for name in layers}
        elif kind == "internal_influence":
            walk = [asked.gradients(_scaled(inputs, (k + 0.5) / points))[1] for k in range(points)]
            shares = {name: torch.stack([one[name] for one in walk]).mean(0) for name in layers}
        elif kind == "conductance":
            path = [asked.gradients(_scaled(inputs, k / points)) for k in range(points + 1)]
            shares = {
                name: sum_of((after[0][name] - before[0][name]) * after[1][name] for before, after in pairwise(path))
                for name in layers
            }
        elif kind == "integrated_gradients":
            outputs, zero = asked.outputs(inputs), asked.outputs(_scaled(inputs, 0.0))
            shares = {name: asked.along(name, zero[name], outputs[name], points) for name in layers}
        elif kind == "gradient_shap":
            outputs, zero = asked.outputs(inputs), asked.outputs(_scaled(inputs, 0.0))
            drawn = learner.decide(lambda: torch.rand(points, generator=generator), learner.device)
            slopes_at = [asked.gradients(_scaled(inputs, share))[1] for share in drawn]
            mean = {name: torch.stack([one[name] for one in slopes_at]).mean(0) for name in layers}
            shares = {name: (outputs[name] - zero[name]) * mean[name] for name in layers}
        else:
            shares = asked.rescaled(inputs, _baseline(kind, inputs, learner, generator))
    return {name: _by_unit(value.abs(), layers[name]) for name, value in shares.items()}


def sum_of(values: Any) -> Tensor:
    """The sum of some tensors."""
    return torch.stack(list(values)).sum(0)


class _Asked:
    """Forwards of a step's rows, with what layers write and how the outputs depend on it."""

    def __init__(self, layers: Mapping[str, Layer], step: Step, learner: Services) -> None:
        self.layers = layers
        self.step = step
        self.learner = learner

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Normalisation and dropout in evaluation; the model itself stays in training, which opens its gates softly."""
        model = self.learner.model
        modules: list[Any] = list(model.modules())
        moved = [module for module in modules if isinstance(module, RESTING) and module.training]
        inside = [module for module in modules if getattr(module, "inplace", False)]
        for module in moved:
            module.training = False
        for module in inside:  # would overwrite what the layer wrote
            module.inplace = False
        try:
            yield
        finally:
            for module in moved:
                module.training = True
            for module in inside:
                module.inplace = True

    def right(self, inputs: Tree, times: int = 1) -> Tensor:
        """The output of each row's class, `[rows]`."""
        task = self.step.task
        outputs = self.learner(inputs, task.repeat(times) if isinstance(task, Tensor) else task)
        if outputs.dim() != 2 or self.step.targets.is_floating_point():
            return outputs.flatten(1).sum(1)
        return outputs.gather(1, self.step.targets.repeat(times).view(-1, 1)).squeeze(1)

    def outputs(self, inputs: Tree) -> dict[str, Tensor]:
        """What each layer writes."""
        with torch.no_grad():
            return self._watched(inputs)[0]

    def _watched(self, inputs: Tree) -> tuple[dict[str, Tensor], Tensor]:
        seen: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for name, layer in self.layers.items():
                stack.enter_context(hooked(layer.module, lambda output, name=name: seen.setdefault(name, output)))  # type: ignore[misc]
            return seen, self.right(inputs)

    def gradients(self, inputs: Tree) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What each layer writes, and the gradient of the right outputs by it."""
        seen, right = self._watched(inputs)
        slopes = torch.autograd.grad(right.sum(), list(seen.values()), allow_unused=True)
        pairs = list(zip(seen.items(), slopes))
        return (
            {name: value.detach() for (name, value), _ in pairs},
            {name: torch.zeros_like(value) if slope is None else slope for (name, value), slope in pairs},
        )

    def along(self, name: str, start: Tensor, end: Tensor, points: int) -> Tensor:
        """`end - start` times the mean gradient of the right outputs on the way between what a layer could write."""
        total = torch.zeros_like(end)
        for k in range(points):
            between = torch.lerp(start, end, (k + 0.5) / points).requires_grad_()
            with hooked(self.layers[name].module, lambda _, between=between: between):  # type: ignore[misc]
                total += torch.autograd.grad(self.right(self.step.inputs).sum(), between)[0]
        return (end - start) * total / points

    def ablated(self, name: str) -> Tensor:
        """How far the right outputs move where one unit is zero, `[units]`."""
        layer = self.layers[name]
        with torch.no_grad():
            before = self.right(self.step.inputs)
            moved, rows = [], len(before)
            many = max(1, ROWS // rows)
            for first in range(0, layer.units, many):
                units = range(first, min(first + many, layer.units))
                with hooked(layer.module, lambda output, units=units: _without(output, units, layer)):  # type: ignore[misc]
                    after = self.right(_repeated(self.step.inputs, len(units)), len(units))
                moved.append((after.view(len(units), rows) - before).abs().mean(1))
        return torch.cat(moved)

    def rescaled(self, inputs: Tree, baseline: Tree | None) -> dict[str, Tensor]:
        """What layers write (beyond the baseline's) times the gradient with slopes for derivatives of activations."""
        zero: dict[str, Tensor] | None = None
        pairs: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
        acts = [module for module in self.learner.model.modules() if isinstance(module, UNITWISE)]

        def note(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            pairs.setdefault(module, []).append((arguments[0].detach(), output.detach()))

        def sloped(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
            value = arguments[0]
            nothing = (torch.zeros_like(value), torch.zeros_like(output))
            inside, outside = nothing if baseline is None else pairs[module].pop(0)
            run = value.detach() - inside
            near = run.abs() < SMALLEST
            slope = torch.where(near, torch.zeros_like(run), (output.detach() - outside) / run.where(~near, run + 1))
            return output.detach() + slope * (value - value.detach())

        if baseline is not None:
            with ExitStack() as stack, torch.no_grad():
                for module in acts:
                    stack.enter_context(_removed(module.register_forward_hook(note)))
                zero = self._watched(baseline)[0]
        with ExitStack() as stack:
            for module in acts:
                stack.enter_context(_removed(module.register_forward_hook(sloped)))
            outputs, slopes = self.gradients(inputs)
        if zero is not None:
            outputs = {name: value - zero[name] for name, value in outputs.items()}
        return {name: outputs[name] * slopes[name] for name in self.layers}


@contextmanager
def hooked(module: nn.Module, replace: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """What the module writes goes through `replace`, before every other hook on it."""

    def hook(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        return replace(output)

    with _removed(module.register_forward_hook(hook, prepend=True)):
        yield


@contextmanager
def _removed(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _scaled(inputs: Tree, share: float | Tensor) -> Tree:
    return tree_map(lambda x: x * share if x.is_floating_point() else x, inputs)


def _repeated(inputs: Tree, times: int) -> Tree:
    return tree_map(lambda x: x.repeat(times, *[1] * (x.dim() - 1)), inputs)


def _baseline(kind: str, inputs: Tree, learner: Services, generator: torch.Generator) -> Tree | None:
    """The inputs that contributions are counted from: zeros, or other rows of the batch."""
    if kind == "lrp":
        return None
    if kind == "deeplift":
        return _scaled(inputs, 0.0)
    rows = tree_rows(inputs)
    other = learner.decide(lambda: torch.randperm(rows, generator=generator), learner.device)
    return tree_map(lambda x: x[other], inputs)


def _units_last(value: Tensor, layer: Layer) -> Tensor:
    return value if isinstance(layer.module, nn.Linear) else value.movedim(1, -1)


def _by_unit(value: Tensor, layer: Layer) -> Tensor:
    """The mean over rows and places, `[units]`."""
    return _units_last(value, layer).flatten(0, -2).mean(0)


def _over_map(value: Tensor, layer: Layer) -> Tensor:
    """The mean over places in each row, `[rows, units]`."""
    last = _units_last(value, layer)
    return last.flatten(1, -2).mean(1) if last.dim() > 2 else last


def _without(output: Tensor, units: Sequence[int], layer: Layer) -> Tensor:
    """Some rows with one unit zero after the other, for rows that are repeated once for each."""
    rows = len(output) // len(units)
    last = _units_last(output, layer).clone()
    for index, unit in enumerate(units):
        last[index * rows : (index + 1) * rows, ..., unit] = 0
    return last if isinstance(layer.module, nn.Linear) else last.movedim(-1, 1)
