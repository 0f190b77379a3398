"""Fine-grained adaptive hard attention to the task (FG-AdaHAT)."""

from typing import Annotated, Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import Positive, Range, Strength
from holdfast.operations import UnitImportance
from holdfast.operations.infer_task import inference
from holdfast.operations.unit_importance import Importance, Summing


@published(paper="Wang et al., FG-AdaHAT: fine-grained AdaHAT, in Continual Learning Arena, 2025")
def fg_adahat(
    strength: Strength = 0.75,
    s_max: Annotated[float, Range(1, low_open=True)] = 400.0,
    importance: Importance = "input_gradient",
    intensity: Positive = 1.5e-7,
    infer_task: bool = False,
    aggregate: Literal["min", "max", "mean"] = "min",
    summing: Summing = "latest",
    rate: Positive = 2.0,
    schedule: Literal["task", "sparsity", "counts"] = "task",
    points: Annotated[int, Range(1)] = 8,
) -> Method:
    r"""AdaHAT that lets a used weight move the less, the more its two units mattered to earlier tasks.

    $$ g_{l,ij} \leftarrow \frac{\alpha}{c_l^t \min(I_{l,i}^{<t}, I_{l-1,j}^{<t}) + \alpha} \, g_{l,ij}, \qquad
       c_l^t = (t + b_L) (R_l + b_R) $$

    I sums, over earlier tasks, how much a unit was worth in their steps. It forgets, a little.

    Args:
        strength: the weight of the sparsity term.
        s_max: the largest s of the annealing within each epoch.
        importance: what a unit is worth in a step, one of 23 kinds; see `operations.UnitImportance`.
        intensity: alpha.
        infer_task: whether evaluation finds each sample's task by itself (`operations.InferTask`).
        aggregate: of the importance of the two units that a weight joins.
        summing: how the tasks' importances add up.
        rate: of `linear`, `exponential` and `logarithmic` summing.
        schedule: the factor c: as above, without $t + b_L$ (`sparsity`), or with the number of earlier tasks that use
            both units in the place of t (`counts`).
        points: on a path or draws, for importances that are attributions.

    Differences: the rate scales the optimiser's step and not only the gradient. See `operations.UnitImportance`.
    """
    gates = UnitImportance(
        strength=strength,
        s_max=s_max,
        importance=importance,
        aggregate=aggregate,
        intensity=intensity,
        summing=summing,
        rate=rate,
        schedule=schedule,
        points=points,
    )
    return Method(gates, *inference(infer_task))
