"""Fine-grained adaptive hard attention to the task (FG-AdaHAT)."""

from typing import Annotated, Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import Positive, Range, Strength
from holdfast.operations import UnitImportance
from holdfast.operations.infer_task import inference


@published(paper="Wang et al., FG-AdaHAT: fine-grained AdaHAT, in Continual Learning Arena, 2025")
def fg_adahat(
    strength: Strength = 0.75,
    s_max: Annotated[float, Range(1, low_open=True)] = 400.0,
    importance: Literal[
        "input_gradient",
        "output_gradient",
        "input_weight",
        "output_weight",
        "activation",
        "input_contribution",
        "contribution",
        "activation_fisher",
    ] = "input_gradient",
    intensity: Positive = 1.5e-7,
    infer_task: bool = False,
) -> Method:
    r"""AdaHAT that lets a used weight move the less, the more its two units mattered to earlier tasks.

    $$ g_{l,ij} \leftarrow \frac{\alpha}{c_l^t \min(I_{l,i}^{<t}, I_{l-1,j}^{<t}) + \alpha} \, g_{l,ij}, \qquad
       c_l^t = (t + b_L) (R_l + b_R) $$

    I sums, over earlier tasks, how much a unit was worth in their steps. It forgets, a little.

    Args:
        strength: the weight of the sparsity term.
        s_max: the largest s of the annealing within each epoch.
        importance: what a unit is worth in a step; all but the first and `input_weight` need a chain of layers.
        intensity: alpha.
        infer_task: whether evaluation finds each sample's task by itself (`operations.InferTask`).

    Differences: the rate scales the optimiser's step and not only the gradient; importances of Captum are left out.
    """
    gates = UnitImportance(strength=strength, s_max=s_max, importance=importance, intensity=intensity)
    return Method(gates, *inference(infer_task))
