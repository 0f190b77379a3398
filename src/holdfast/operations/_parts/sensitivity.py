"""How much each parameter moves the outputs: the mean magnitude of the gradient of their squared norm."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError
from holdfast.core.experience import Data, tree_map
from holdfast.core.inspect import eval_mode
from holdfast.core.ranks import mean_over_ranks
from holdfast.core.services import Services
from holdfast.operations._parts.functional_model import gradients_of
from holdfast.operations._parts.layer_gradients import Diagonal
from holdfast.operations._parts.per_sample import PerSample

Over = Literal["sample", "batch"]


def sensitivity(
    learner: Services,
    data: Data,
    over: Over = "sample",
    *,
    samples: int | None = None,
    batch_size: int = 128,
    generator: torch.Generator | None = None,
    closed_form: bool | None = None,
) -> Diagonal:
    r"""Sensitivity of the outputs' squared norm to each parameter, by parameter name; needs no labels.

    $$ \Omega_i = \frac{1}{N} \sum_{n=1}^{N} \Big| \partial_{\theta_i} \lVert f_\theta(x_n) \rVert_2^2 \Big| $$

    Args:
        learner: the model; put into eval mode for the pass.
        data: over which the mean is taken.
        over: `sample` as in the formula; `batch`: the magnitude of the gradient of each batch's mean, which is smaller
            and what several implementations compute.
        samples: use this many samples, drawn without replacement; default: all.
        batch_size: samples per forward. It changes the result of `batch` only.
        generator: for the choice of samples.
        closed_form: True, False, or None to use the closed form where the model allows it.

    Returns:
        One real tensor per trainable parameter, shaped like it.

    Outputs of classes that were not seen yet are left out. With a layer's inputs a and output gradients d of each
    sample, the sum over samples for a linear layer is the product |d|^T |a|: one matrix product, no gradient per
    sample. Models without that form take other ways (`operations.per_sample`), down to one backward a sample.

    Source: Aljundi et al. 2018, "Memory aware synapses: learning what (not) to forget", eq. 2 and 3.
    """
    if over not in ("sample", "batch"):
        raise ConfigError(f"sensitivity over {over!r} is unknown. Choose sample or batch.")
    order = torch.arange(len(data))
    if samples is not None and samples < len(data):
        order = torch.randperm(len(data), generator=generator)[:samples]
    if over != "batch":  # which depends on who is in a batch with whom
        order = learner.share.rows(order)
    named = learner.named_parameters()
    total = {name: torch.zeros_like(p).abs() for name, p in named.items()}
    with eval_mode(learner.model):
        measured = None if over == "batch" else PerSample(learner, torch.abs, closed_form)
        for batch in data.batches(order, batch_size):
            inputs = tree_map(lambda leaf: leaf.to(learner.device), batch.inputs)
            if measured is None:
                norm = _squared_norm(learner(inputs, batch.task), learner)
                part = {name: value.abs() for name, value in zip(named, gradients_of(norm, list(named.values())))}
            else:
                rows = torch.zeros(len(batch.targets), device=learner.device)  # no labels are needed
                part = measured.summed(
                    inputs,
                    rows,
                    batch.task,
                    lambda outputs, _: _squared_norm(outputs, learner),
                    lambda _, targets: ((targets, None),),
                )
                measured.warn(len(order))
            for name, value in part.items():
                total[name] += value
    return mean_over_ranks(total, len(order))


def _squared_norm(outputs: Tensor, learner: Services) -> Tensor:
    """The squared norm of the outputs of seen classes, summed over rows; masked outputs have no gradient."""
    seen = learner.classes
    if outputs.dim() == 2 and 0 < seen.shape[0] <= outputs.shape[1]:
        outputs = outputs[:, : seen.shape[0]] * seen
    return outputs.square().sum()
