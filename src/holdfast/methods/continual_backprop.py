"""Continual backpropagation."""

from holdfast.core.method import Method, published
from holdfast.core.ranges import BelowOne, NonNegative, Size
from holdfast.operations import UnitReplacement


@published(paper="Dohare et al., Loss of plasticity in deep continual learning, Nature 2024")
def continual_backprop(rate: NonNegative = 1e-4, maturity: Size = 100, decay: BelowOne = 0.99) -> Method:
    r"""Now and then the least useful units start again, so that the network stays able to learn.

    $$ u_i \leftarrow \eta \, u_i + (1 - \eta) \, \overline{|h_i|} \sum_k |w_{ki}| $$

    It works against the loss of plasticity, not against forgetting; needs no tasks, and logs `dormant_units`.

    Args:
        rate: rho, the fraction of mature units that is replaced per step.
        maturity: m, steps before a unit can be replaced.
        decay: eta.

    Differences: at most one unit per layer and step; activities are batch means.
    """
    return Method(UnitReplacement(rate=rate, maturity=maturity, decay=decay))
