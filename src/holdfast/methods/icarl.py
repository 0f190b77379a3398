"""Incremental classifier and representation learning (iCaRL)."""

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count, Positive
from holdfast.operations import BinaryDistillation, MergedReplay, NearestExemplarMean, RememberExemplars


@published(paper="Rebuffi et al., iCaRL: incremental classifier and representation learning, CVPR 2017")
def icarl(capacity: Count | None = 2000, per_class: Count | None = None, temperature: Positive = 1.0) -> Method:
    r"""Exemplars join the data, old outputs are distilled, and the nearest mean of exemplars classifies.

    $$ \hat y = \arg\min_y \lVert \varphi(x) - \mu_y \rVert, \qquad \mu_y \propto \sum_{p \in P_y} \varphi(p), \qquad
       L = \sum_y \text{BCE}(g_y(x), \, q^y \text{ if } y \text{ is old, else } \delta_{y = y_i}) $$

    Args:
        capacity: exemplars in all, shared by the classes seen; None where `per_class` is given.
        per_class: exemplars of each class, whatever their number.
        temperature: divides the old model's logits; 2 in the code of van de Ven et al. 2022.

    Differences: none from the paper in the algorithm; the network, its schedule and weight decay are the caller's.
    """
    capacity = None if per_class is not None else capacity
    return Method(
        RememberExemplars(capacity=capacity, per_class=per_class, selection="herding", by="experience"),
        MergedReplay(),
        BinaryDistillation(temperature=temperature),
        NearestExemplarMean(),
    )
