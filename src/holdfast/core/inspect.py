"""Looking into anybody's model: where its head is, what the head sees, how large it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, UsageError, unknown
from holdfast.core.forward import call
from holdfast.core.tree import Tree


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a layer of `model` in training mode normalises by the batch, and so cannot take a single row."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training for part in model.modules())


def joined(order: Tensor, size: int, least: int = 2) -> list[Tensor]:
    """`order` in parts of `size`, where a last part of fewer than `least` belongs to the one before.

    Example:
        >>> [len(part) for part in joined(torch.arange(9), 4)], [len(part) for part in joined(torch.arange(1), 4)]
        ([4, 5], [1])
    """
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) < least:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def find_head(model: nn.Module, path: str | None = None) -> tuple[str, nn.Module]:
    """The layer that makes outputs of features, in any model.

    In this order: the module at `path`; what `model.head` names, if that is a path (`model.head = "classifier.6"`
    describes a model of another library once for all); `model.head`, or the last linear layer inside it; the last
    linear layer or module that can `grow` in the order of `model.named_modules()`.

    Args:
        model: any module.
        path: dotted name of the head, for models where the rule finds the wrong one.

    Returns:
        Its dotted name and the module itself.

    Raises:
        ConfigError: if `path` names no module, or the model has no linear layer.

    Example:
        >>> find_head(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
        ('2', Linear(in_features=8, out_features=3, bias=True))
    """
    if path is not None:
        modules = dict(model.named_modules())
        if path not in modules:
            raise ConfigError(unknown("module", path, modules, "Give the head as a name of `model.named_modules()`."))
        return path, modules[path]
    head = getattr(model, "head", None)
    if isinstance(head, str):
        return find_head(model, head)
    if isinstance(head, nn.Module) and not isinstance(head, nn.Identity):
        name, inner = _last(head)
        return ("head", head) if inner is None else (f"head.{name}".rstrip("."), inner)
    name, layer = _last(model)
    if layer is None:
        raise ConfigError(
            f"{type(model).__name__} has no attribute `head` and no linear layer. "
            "Name the layer that makes its outputs as a path, such as 'classifier.6'."
        )
    return name, layer


def _last(model: nn.Module) -> tuple[str, nn.Module | None]:
    """Name and module of the last linear layer or head within `model`, itself included."""
    name, layer = "", None
    for candidate, module in model.named_modules():
        if isinstance(module, nn.Linear) or callable(getattr(module, "grow", None)):
            name, layer = candidate, module
    return name, layer


def features_of(model: nn.Module, head: nn.Module, inputs: Tree) -> Tensor:
    """What `head` sees when `model` runs on `inputs`, with its graph: the head's input `[rows, features]`.

    The whole model runs once, with all hooks that are attached to it.

    Args:
        model: any module.
        head: a module inside it, as from `find_head`.
        inputs: a tensor, a tuple of positional arguments or a mapping of keyword arguments.

    Raises:
        UsageError: if the forward never called the head.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> features_of(model, model[2], torch.zeros(5, 4)).shape
        torch.Size([5, 8])
    """
    seen: list[Tensor] = []

    def keep(module: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        seen.append(arguments[0] if arguments else next(iter(named.values())))

    handle = head.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        call(model, inputs)
    finally:
        handle.remove()
    if not seen:
        raise UsageError(
            f"the forward of {type(model).__name__} never called its head ({type(head).__name__}). "
            "Give the right head with `find_head(model, path)`, and the model as it was before `torch.compile`."
        )
    return seen[-1]


def makers_of_outputs(model: nn.Module, inputs: Tree, head: nn.Module | None = None) -> list[str] | None:
    """The names of the linear layers (and of `head`) that a model's outputs are made of, with no other in between.

    The model runs once, in eval mode and on at most two rows; what each of these layers gives is marked, and the marks
    are looked for behind the outputs.

    Args:
        model: any module.
        inputs: prepared.
        head: a layer of another kind that counts, too.

    Returns:
        Names, or None where outputs are not one tensor of numbers, so that this cannot be told.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.LogSoftmax(1))
        >>> makers_of_outputs(model, torch.ones(1, 4))
        ['2']
    """
    marks: list[tuple[str, Tensor]] = []

    def marked(name: str) -> Callable[..., object]:
        def hook(_: nn.Module, __: object, outputs: object) -> object:
            if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
                return None
            marks.append((name, outputs.detach().requires_grad_()))
            return marks[-1][1]

        return hook

    layers = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear) or part is head]
    handles = [part.register_forward_hook(marked(name)) for name, part in layers]  # type: ignore[union-attr]
    few = _few(inputs)
    devices = {value.device for value in model.parameters() if value.device.type == "cuda"}
    try:
        with (
            torch.random.fork_rng(devices=devices),  # a forward that draws in eval mode too changes no run
            torch.inference_mode(False),
            eval_mode(model),
            torch.enable_grad(),
        ):
            outputs = call(model, few)
    except Exception:  # it takes more than these inputs, or more rows: what is wrong shows where it is used
        return None
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        return None
    behind = _leaves(outputs)
    return list(dict.fromkeys(name for name, mark in marks if id(mark) in behind))


def _few(inputs: Tree) -> Tree:
    """Two rows of prepared inputs; arguments that have no row per sample stay as they are."""
    if isinstance(inputs, Tensor):
        return inputs[:2].clone()
    if isinstance(inputs, Mapping):
        rows = next((value.shape[0] for value in inputs.values() if isinstance(value, Tensor) and value.dim()), 0)
        rowed = {n for n, v in inputs.items() if isinstance(v, Tensor) and v.dim() and v.shape[0] == rows}
        return {name: value[:2].clone() if name in rowed else value for name, value in inputs.items()}
    return tuple(value[:2].clone() for value in inputs)


def _leaves(outputs: Tensor) -> set[int]:
    """The ids of all leaves of a graph, the tensor itself included."""
    leaves, seen, waiting = {id(outputs)}, set(), [outputs.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.add(id(variable))
        waiting += [following for following, _ in node.next_functions]
    return leaves


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each module has the mode it had, so that frozen parts stay in eval mode.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(2).eval(), nn.Dropout())
        >>> with eval_mode(model):
        ...     print(model[1].training)
        False
        >>> model[0].training, model[1].training
        (False, True)
    """
    before = [(module, module.training) for module in model.modules()]
    if any(training for _, training in before):
        model.eval()
    try:
        yield
    finally:
        for module, training in before:
            if module.training is not training:  # setting it costs five times as much as looking
                module.training = training


def parameter_count(model: nn.Module) -> int:
    """Number of values in all parameters, those that are shared counted once.

    Args:
        model: any module.
    """
    return sum(parameter.numel() for parameter in model.parameters())


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of all parameters, those that are shared counted once; buffers are left out.

    Args:
        model: any module.
    """
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
