"""Averaged gradient episodic memory (A-GEM) with exemplars that are chosen when an experience ends."""

from typing import Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count
from holdfast.operations import GradientProjection, RememberExemplars


@published(
    paper="Chaudhry et al., ICLR 2019, as run by van de Ven, Tuytelaars and Tolias, Nature Machine Intelligence 2022"
)
def agem_exemplars(
    per_class: Count | None = 100,
    capacity: Count | None = None,
    size: Count = 128,
    selection: Literal["random", "herding", "closest"] = "random",
    per_experience: Count | list[int] | None = None,
    per_layer: bool = False,
) -> Method:
    r"""A step may not raise the loss on a reference batch of past experiences.

    $$ g \leftarrow g - \min\Big(0, \frac{g^\top g_{\text{ref}}}{g_{\text{ref}}^\top g_{\text{ref}}}\Big)
       g_{\text{ref}} $$

    Args:
        per_class: samples kept of each class of each experience; None where `capacity` is given.
        capacity: samples in all, shared by the classes seen.
        size: samples in the reference batch.
        selection: which samples of a class are kept.
        per_experience: samples of each experience, one number or one for each, instead of the other two.
        per_layer: project each parameter tensor on its own.

    Differences: the memory holds past experiences only, as in the paper; it is a random sample of each class
    instead of a ring.
    """
    return Method(
        GradientProjection(size=size, per_layer=per_layer),
        RememberExemplars(
            capacity=capacity,
            per_class=None if capacity is not None or per_experience is not None else per_class,
            selection=selection,
            by="experience",
            per_experience=per_experience,
        ),
    )
