"""Learning without forgetting (LwF)."""

from typing import Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import NonNegative, Positive
from holdfast.operations import Distillation


@published(paper="Li and Hoiem, Learning without forgetting, TPAMI 2017")
def lwf(
    temperature: Positive = 2.0,
    weight: NonNegative = 1.0,
    average: Literal["none", "experiences"] = "none",
    scaled: bool = True,
    over: Literal["old", "all"] = "old",
) -> Method:
    r"""On today's inputs the model keeps the outputs for old classes that it gave before this experience.

    $$ L = \ell(x, y) + \lambda_o \, T^2 \Big( - \sum_{c \in \text{old}} p_c \log q_c \Big) $$

    Args:
        temperature: T, which softens both outputs.
        weight: lambda_o.
        average: `experiences` weighs the current data by 1/c and the distillation by 1 - 1/c after c experiences.
        scaled: whether the factor T^2 is there; van de Ven et al. 2022 leave it out.
        over: `all` takes each softmax over all outputs, as van de Ven et al. 2022 do where classes are added.

    Differences: no warm-up of the new outputs alone; T^2 after Hinton et al. 2015.
    """
    return Method(Distillation(temperature=temperature, weight=weight, average=average, scaled=scaled, over=over))
