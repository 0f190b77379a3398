"""Synaptic intelligence (SI)."""

from holdfast.core.method import Method, published
from holdfast.core.ranges import Positive, Strength
from holdfast.operations import PathPenalty


@published(paper="Zenke, Poole and Ganguli, Continual learning through synaptic intelligence, ICML 2017")
def si(strength: Strength = 1.0, damping: Positive = 0.1, bounded: bool = True) -> Method:
    r"""A quadratic penalty weighted by what each parameter did for the fall of the loss.

    $$ L = \ell(x, y) + c \sum_i \Omega_i (\theta_i - \theta^*_i)^2, \qquad
       \Omega_i = \sum_k \frac{\omega_{k,i}}{(\Delta_{k,i})^2 + \xi}, \qquad
       \omega_i = - \sum_t g_i(t) \, \Delta\theta_i(t) $$

    Args:
        strength: c.
        damping: xi.
        bounded: whether the pull on a parameter is at most what brings it back to its anchor in one step of SGD, so
            that no strength makes training diverge.

    Differences: g includes the penalty's own gradient, as in van de Ven et al. 2022; the bound is ours, and acts where
    `lr * 2 c Omega` is above 1.
    """
    return Method(PathPenalty(strength=strength, damping=damping, bounded=bounded))
