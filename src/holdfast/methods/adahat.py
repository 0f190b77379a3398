"""Adaptive hard attention to the task (AdaHAT)."""

from typing import Annotated, Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import Positive, Range, Strength
from holdfast.operations import UnitAttention
from holdfast.operations.infer_task import inference


@published(paper="Wang et al., AdaHAT: adaptive hard attention to the task in task-incremental learning, 2025")
def adahat(
    strength: Strength = 0.75,
    s_max: Annotated[float, Range(1, low_open=True)] = 400.0,
    intensity: Positive = 1e-6,
    epsilon: Positive = 0.1,
    infer_task: bool = False,
    mode: Literal["adapt", "adapt_without_counts", "adapt_without_sparsity"] = "adapt",
    sparsity: Literal["original", "cross"] = "original",
    initial: Literal["normal", "uniform", "positive", "negative", "last"] = "normal",
) -> Method:
    r"""HAT that lets used weights move a little: less the more tasks use them, more once the network is full.

    $$ g_{l,ij} \leftarrow \frac{r_l}{\min(M_{l,i}, M_{l-1,j}) + r_l} g_{l,ij}, \qquad
       r_l = \frac{\alpha}{\epsilon + R_l} $$

    M counts the earlier tasks that use a unit, R_l is the layer's sparsity term. It forgets, a little.

    Args:
        strength: the weight c of the sparsity term.
        s_max: the largest s of the annealing within each epoch.
        intensity: alpha.
        epsilon: above 0.
        infer_task: whether evaluation finds each sample's task by itself (`operations.InferTask`).
        mode: `adapt` is AdaHAT. The two others are the paper's ablations: the number of earlier tasks in the place of M
            (`adapt_without_counts`), and 0 in the place of R_l in the rate (`adapt_without_sparsity`).
        sparsity: `original`, or `cross`, which also rewards units that earlier tasks use.
        initial: where embeddings start in each task: N(0, 1), U(-1, 1), U(0, 1), U(-1, 0), or the last task's end.

    Differences: the rate scales the optimiser's step and not only the gradient, which Adam would undo. See
    `operations.UnitAttention`.
    """
    gates = UnitAttention(
        strength=strength,
        s_max=s_max,
        mode=mode,
        intensity=intensity,
        epsilon=epsilon,
        sparsity=sparsity,
        initial=initial,
    )
    return Method(gates, *inference(infer_task))
