"""Hard attention to the task (HAT)."""

from typing import Annotated

from holdfast.core.method import Method, published
from holdfast.core.ranges import Range, Strength
from holdfast.operations import UnitAttention
from holdfast.operations.infer_task import inference


@published(paper="Serra et al., Overcoming catastrophic forgetting with hard attention to the task, ICML 2018")
def hat(
    strength: Strength = 0.75, s_max: Annotated[float, Range(1, low_open=True)] = 400.0, infer_task: bool = False
) -> Method:
    r"""A learnt gate per task and unit; weights between units that earlier tasks use do not move.

    $$ h_l \leftarrow \sigma(s \, e_l^t) \odot h_l, \qquad
       g_{l,ij} \leftarrow \big[1 - \min(a_{l,i}^{<t}, a_{l-1,j}^{<t})\big] g_{l,ij}, \qquad
       L' = L + c R(a^t, a^{<t}) $$

    Args:
        strength: c, the weight of the sparsity term.
        s_max: the largest s of the annealing within each epoch.
        infer_task: whether evaluation finds each sample's task by itself (`operations.InferTask`).

    Differences: gates at test are 0 or 1; weights are put back after the optimiser moved, so that momentum, weight
    decay and Adam forget nothing; biases of used units are kept too. See `operations.UnitAttention`.
    """
    return Method(UnitAttention(strength=strength, s_max=s_max), *inference(infer_task))
