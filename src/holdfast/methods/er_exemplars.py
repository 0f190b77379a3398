"""Experience replay from exemplars that are chosen when an experience ends."""

from typing import Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count
from holdfast.operations import RememberExemplars, Replay


@published(
    paper="van de Ven, Tuytelaars and Tolias, Three types of incremental learning, Nature Machine Intelligence 2022"
)
def er_exemplars(
    per_class: Count | None = 100,
    capacity: Count | None = None,
    size: Count = 128,
    selection: Literal["random", "herding", "closest"] = "random",
    per_experience: Count | list[int] | None = None,
) -> Method:
    r"""Replay of past experiences only, weighted against the current one by how many there are.

    $$ L = \frac{1}{c} \ell(x, y) + \Big( 1 - \frac{1}{c} \Big) \ell(x', y'), \qquad
       (x', y') \sim M_1 \cup \dots \cup M_{c-1} $$

    Args:
        per_class: samples kept of each class of each experience; None where `capacity` is given.
        capacity: samples in all, shared by the classes seen.
        size: old samples per step.
        selection: which samples of a class are kept.
        per_experience: samples of each experience, one number or one for each, instead of the other two.

    Differences: each step draws from the whole memory without replacement, where the authors' code goes through a
    shuffled memory; with one head per task the tasks share the draw by chance, and not exactly evenly.
    """
    return Method(
        Replay(size=size, average="experiences"),
        RememberExemplars(
            capacity=capacity,
            per_class=None if capacity is not None or per_experience is not None else per_class,
            selection=selection,
            by="experience",
            per_experience=per_experience,
        ),
    )
