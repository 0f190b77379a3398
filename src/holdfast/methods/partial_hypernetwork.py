"""Partial hypernetworks: a stem that is frozen after the first experience, and generated weights above it."""

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count, Size, Strength
from holdfast.operations import FreezeBelow, OutputRegularisation
from holdfast.operations.infer_task import inference


@published(paper="Hemati et al., Partial hypernetworks for continual learning, CoLLAs 2023")
def partial_hypernetwork(
    strength: Strength = 0.5,
    tasks: Count | None = 20,
    second_order: bool = False,
    freeze: bool = True,
    after: Size = 1,
    log_conflict: bool = False,
    infer_task: bool = False,
) -> Method:
    r"""The generator keeps the weights of earlier tasks, seen from one step ahead; the stem learns from the first task.

    $$ L = L_{\text{task}} + \frac{\beta}{|S|} \sum_{k \in S}
       \big\lVert H(k; \theta^*) - H(k; \theta - \eta \nabla_\theta L_{\text{task}}) \big\rVert_2^2 $$

    Args:
        strength: beta, the papers' `coef_hnet_replay`; 0 trains without regulariser.
        tasks: how many earlier tasks at each step, drawn at random (`hnet_reg_ntasks`); None takes all.
        second_order: whether the gradient goes through the step ahead.
        freeze: whether the stem is frozen after the first experience.
        after: the number of experiences that it learns from; 0 freezes it as it was loaded (`start_from`).
        log_conflict: also log the cosine between the gradients of both terms.
        infer_task: whether evaluation finds each sample's task by itself (`operations.InferTask`).

    The model is a `hypernetwork` with a cut. Differences: see `operations.OutputRegularisation` and
    `models.hypernetwork`.
    """
    term = OutputRegularisation(
        strength=strength, tasks=tasks, lookahead="sgd", second_order=second_order, log_conflict=log_conflict
    )
    return Method(*([FreezeBelow(after=after)] if freeze else []), term, *inference(infer_task))
