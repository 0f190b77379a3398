"""Replay of random exemplars that join the training data."""

from typing import Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count
from holdfast.operations import MergedReplay, RememberExemplars


@published(
    paper="the exemplar baseline of class-incremental learning, for instance in Rebuffi et al., iCaRL, CVPR 2017"
)
def exemplar_replay(
    capacity: Count | None = None,
    per_class: Count | None = 10,
    selection: Literal["random", "herding", "closest"] = "random",
    repeat: Count = 1,
    per_experience: Count | list[int] | None = None,
) -> Method:
    r"""A few samples per class, drawn without replacement when an experience ends, join the next one's data.

    $$ D_t \leftarrow D_t \cup M, \qquad |M^{(y)}| = \text{per class} $$

    Args:
        capacity: exemplars in all, shared by the classes seen; None where `per_class` is given.
        per_class: exemplars of each class; None where `capacity` is given.
        selection: which samples of a class are kept.
        repeat: copies of the memory that join.
        per_experience: samples of each experience, one number or one for each, instead of the other two.

    Differences: none; CLMixer's version draws with replacement.
    """
    return Method(
        RememberExemplars(
            capacity=capacity,
            per_class=None if capacity is not None or per_experience is not None else per_class,
            selection=selection,
            by="experience",
            per_experience=per_experience,
        ),
        MergedReplay(repeat=repeat),
    )
