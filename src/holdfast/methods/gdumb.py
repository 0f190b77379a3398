"""Greedy sampler and dumb learner (GDumb)."""

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count, Positive
from holdfast.operations import TrainOnMemory


@published(
    paper="Prabhu, Torr and Dokania, GDumb: a simple approach that questions our progress in continual learning, "
    "ECCV 2020"
)
def gdumb(capacity: Count = 500, epochs: Count = 31, batch_size: Count = 16, rate: Positive = 0.05) -> Method:
    r"""Keep a class-balanced memory, and train from scratch on it whenever an experience ends.

    $$ \theta_t = \arg\min_\theta \sum_{(x, y) \in M_t} \ell(f_\theta(x), y), \qquad
       |M_t^{(y)}| \approx |M_t| / |Y_t| $$

    Args:
        capacity: samples in the memory.
        epochs: passes over the memory.
        batch_size: samples per step of that training.
        rate: its largest learning rate.

    Differences: 31 epochs instead of 256 with early stopping, no CutMix; the loop's own training has no effect.
    """
    return Method(TrainOnMemory(capacity=capacity, epochs=epochs, batch_size=batch_size, rate=rate))
