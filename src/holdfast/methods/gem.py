"""Gradient episodic memory (GEM)."""

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count, NonNegative
from holdfast.operations import GradientConstraints


@published(paper="Lopez-Paz and Ranzato, Gradient episodic memory for continual learning, NeurIPS 2017")
def gem(per_experience: Count = 256, margin: NonNegative = 0.5) -> Method:
    r"""The step nearest to the gradient that raises the loss on no past experience's memory.

    $$ \min_{\tilde g} \tfrac{1}{2} \lVert g - \tilde g \rVert_2^2 \;\text{ so that }\;
       \langle \tilde g, g_k \rangle \ge 0 \text{ for all } k < t $$

    Args:
        per_experience: samples kept of each experience; the paper shares a total of 5120 among 20 tasks.
        margin: gamma, the memory strength.

    Differences: the margin is a lower bound on the dual variables and 1e-3 is added to its diagonal, as in the
    authors' code.
    """
    return Method(GradientConstraints(per_experience=per_experience, margin=margin))
