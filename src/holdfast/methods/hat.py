"""Hard attention to the task (HAT)."""

from typing import Annotated, Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import Range, Strength
from holdfast.operations import UnitAttention
from holdfast.operations.infer_task import inference


@published(paper="Serra et al., Overcoming catastrophic forgetting with hard attention to the task, ICML 2018")
def hat(
    strength: Strength = 0.75,
    s_max: Annotated[float, Range(1, low_open=True)] = 400.0,
    infer_task: bool = False,
    mode: Literal["block", "random", "constant"] = "block",
    constant: Annotated[float, Range(0, 1)] = 1.0,
    sparsity: Literal["original", "cross"] = "original",
    initial: Literal["normal", "uniform", "positive", "negative", "last"] = "normal",
) -> Method:
    r"""A learnt gate per task and unit; weights between units that earlier tasks use do not move.

    $$ h_l \leftarrow \sigma(s \, e_l^t) \odot h_l, \qquad
       g_{l,ij} \leftarrow \big[1 - \min(a_{l,i}^{<t}, a_{l-1,j}^{<t})\big] g_{l,ij}, \qquad
       L' = L + c R(a^t, a^{<t}) $$

    Args:
        strength: c, the weight of the sparsity term.
        s_max: the largest s of the annealing within each epoch.
        infer_task: whether evaluation finds each sample's task by itself (`operations.InferTask`).
        mode: `block` is HAT. The two others are baselines of the AdaHAT paper, and forget: weights between units in use
            move at rates drawn from U(0, 1) in each step (`random`), or all at one rate (`constant`).
        constant: that rate; 1 constrains nothing.
        sparsity: `original`, or `cross`, which also rewards units that earlier tasks use.
        initial: where embeddings start in each task: N(0, 1), U(-1, 1), U(0, 1), U(-1, 0), or the last task's end.

    Differences: gates at test are 0 or 1; weights are put back after the optimiser moved, so that momentum, weight
    decay and Adam forget nothing; biases of used units are kept too. See `operations.UnitAttention`.
    """
    gates = UnitAttention(
        strength=strength, s_max=s_max, mode=mode, constant=constant, sparsity=sparsity, initial=initial
    )
    return Method(gates, *inference(infer_task))
