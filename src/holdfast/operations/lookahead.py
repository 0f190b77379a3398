"""Lookahead: how far the optimiser would move each parameter if it stepped by a gradient now."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.errors import UsageError
from holdfast.core.services import Services


def planned_moves(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]
) -> list[Tensor]:
    r"""The move of each parameter in the optimiser's next step, if `gradients` were its gradients; nothing changes.

    SGD with momentum (and Nesterov's), Adam and AdamW, with weight decay, are written out, so that moves have a graph
    where gradients have one. Other optimisers step on copies; then there is no graph.

    Args:
        optimizer: whose state and settings are read.
        parameters: that it moves.
        gradients: one for each; where they have a graph, so have the moves.

    Raises:
        UsageError: for gradients with a graph under another optimiser, or a parameter that the optimiser does not move.

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> adam = torch.optim.Adam([weight], lr=0.1)
        >>> [round(value, 4) for value in planned_moves(adam, [weight], [torch.tensor([2.0, -3.0])])[0].tolist()]
        [-0.1, 0.1]
    """
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    adam = isinstance(optimizer, torch.optim.Adam)  # AdamW is one, too
    if any(id(parameter) not in groups for parameter in parameters):
        raise UsageError("lookahead was asked for a parameter that the optimiser does not move.")
    if not (adam or isinstance(optimizer, torch.optim.SGD)) or any(group.get("amsgrad") for group in groups.values()):
        if any(gradient.requires_grad for gradient in gradients):
            raise UsageError(
                f"lookahead of second order cannot go through a step of {type(optimizer).__name__}. Write "
                "second_order=False or lookahead='sgd', or take SGD, Adam or AdamW without amsgrad."
            )
        return _rehearsed(optimizer, parameters, gradients)
    moves = []
    for parameter, gradient in zip(parameters, gradients):
        group, state = groups[id(parameter)], optimizer.state.get(parameter, {})
        if group.get("maximize"):
            gradient = -gradient
        value = parameter.detach()
        decoupled = isinstance(optimizer, torch.optim.AdamW) or bool(group.get("decoupled_weight_decay"))
        if group["weight_decay"] and not decoupled:
            gradient = gradient + group["weight_decay"] * value
        move = _adam(group, state, gradient) if adam else _sgd(group, state, gradient)
        if group["weight_decay"] and decoupled:
            move = move - group["lr"] * group["weight_decay"] * value
        moves.append(move)
    return moves


def descend(values: Sequence[Tensor], gradients: Sequence[Tensor], rate: float | Tensor) -> None:
    """`values -= rate * gradients` in place; the rate is a tensor where a step is recorded that decides it.

    Example:
        >>> weight = torch.ones(2)
        >>> descend([weight], [torch.tensor([1.0, 2.0])], 0.5)
        >>> weight.tolist()
        [0.5, 0.0]
    """
    with torch.no_grad():
        if isinstance(rate, Tensor):  # the same with as many roundings
            for value, gradient in zip(values, gradients):
                value.addcmul_(gradient, -rate)
        else:
            torch._foreach_add_([*values], [*gradients], alpha=-rate)


def step_on(loss: Tensor, learner: Services, operation: str) -> None:
    """One step of gradient descent on `loss`, at the optimiser's rate; the gradients that are there stay.

    Raises:
        UsageError: the loop has no learning rate.
    """
    rate = learner.decide(lambda: learner.trainable.rate)
    if rate is None:
        raise UsageError(f"{operation} makes steps of the learning rate, and this loop has none. Pass optimizer=...")
    descend(learner.parameters(), learner.grad(loss), rate)


def _sgd(group: dict[str, Any], state: dict[str, Any], gradient: Tensor) -> Tensor:
    direction = gradient
    if group["momentum"]:
        buffer = state.get("momentum_buffer")
        # the first step has no average yet, and takes the gradient undamped
        average = gradient if buffer is None else group["momentum"] * buffer + (1 - group["dampening"]) * gradient
        direction = gradient + group["momentum"] * average if group["nesterov"] else average
    return -group["lr"] * direction


def _adam(group: dict[str, Any], state: dict[str, Any], gradient: Tensor) -> Tensor:
    first, second = group["betas"]
    steps = torch.as_tensor(state.get("step", 0.0), dtype=torch.float64) + 1
    mean, square = (1 - first) * gradient, (1 - second) * gradient.square()
    if "exp_avg" in state:
        mean, square = mean + first * state["exp_avg"], square + second * state["exp_avg_sq"]
    unbiased = mean / (1 - first**steps)
    # The root of zero has no derivative, and a parameter without a gradient so far moves by nothing.
    spread = (square / (1 - second**steps) + torch.finfo(square.dtype).tiny).sqrt() + group["eps"]
    return -group["lr"] * unbiased / spread


def _rehearsed(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]
) -> list[Tensor]:
    """What a step of a copy of the optimiser does to copies of the parameters."""
    twins = {id(parameter): nn.Parameter(parameter.detach().clone()) for parameter in parameters}
    rehearsal = copy.copy(optimizer)
    rehearsal.param_groups = [
        {**group, "params": [twins[id(parameter)] for parameter in group["params"] if id(parameter) in twins]}
        for group in optimizer.param_groups
    ]
    rehearsal.state = defaultdict(dict)
    for parameter, gradient in zip(parameters, gradients):
        twins[id(parameter)].grad = gradient.detach()
        rehearsal.state[twins[id(parameter)]] = copy.deepcopy(optimizer.state.get(parameter, {}))
    type(optimizer).step(rehearsal)
    return [twins[id(parameter)].detach() - parameter.detach() for parameter in parameters]
