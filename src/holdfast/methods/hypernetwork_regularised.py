"""Continual learning with hypernetworks: output regularisation of the generator."""

from typing import Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count, Strength
from holdfast.operations import OutputRegularisation
from holdfast.operations.infer_task import inference


@published(paper="von Oswald et al., Continual learning with hypernetworks, ICLR 2020")
def hypernetwork_regularised(
    strength: Strength = 0.01,
    lookahead: Literal["none", "sgd", "optimizer"] = "optimizer",
    tasks: Count | None = None,
    used_outputs: bool = True,
    likelihood: Literal["mean", "sum"] = "mean",
    targets: Literal["recomputed", "cached"] = "recomputed",
    infer_task: bool = False,
    freeze_embeddings: bool = False,
) -> Method:
    r"""The weights that a hypernetwork generates for earlier tasks are kept, so that their networks stay.

    $$ L = L_{\text{task}} + \frac{\beta}{t} \sum_{k < t}
       \big\lVert H(k; \theta^*) - H(k; \theta + \Delta\theta) \big\rVert_2^2 $$

    Args:
        strength: beta.
        lookahead: what Delta theta is: "none", a plain step ("sgd"), or what the optimiser would do.
        tasks: how many earlier tasks at each step, drawn at random; None takes all.
        used_outputs: leave out the weights of output units that a task does not use.
        likelihood: "sum" counts the task's loss as a sum over its training samples.
        targets: "cached" keeps the weights of earlier tasks instead of generating them again at each step.
        infer_task: whether evaluation finds each sample's task by itself (`operations.InferTask`).
        freeze_embeddings: whether the embeddings of earlier tasks stay as they were learned, as in the published code
            of von Oswald et al.; without, they are held by the term alone.

    The model is a `hypernetwork`. Differences: see `operations.OutputRegularisation`.
    """
    term = OutputRegularisation(
        strength=strength,
        tasks=tasks,
        lookahead=lookahead,
        used_outputs=used_outputs,
        likelihood=likelihood,
        targets=targets,
        freeze_embeddings=freeze_embeddings,
    )
    return Method(term, *inference(infer_task))
