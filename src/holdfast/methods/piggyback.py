"""Piggyback: tasks as binary masks of one frozen network."""

from holdfast.core.method import Method, published
from holdfast.operations import BinaryMasks
from holdfast.operations.infer_task import inference


@published(paper="Mallya, Davis and Lazebnik, Piggyback: adapting a single network to multiple tasks, ECCV 2018")
def piggyback(threshold: float = 5e-3, initial: float = 1e-2, infer_task: bool = False) -> Method:
    r"""The backbone never moves; each task learns which of its weights to use, and its head.

    $$ \hat W = W \odot [m^r > \tau], \qquad
       \frac{\partial L}{\partial m^r} := \frac{\partial L}{\partial \hat W} \odot W $$

    Args:
        threshold: tau.
        initial: the real-valued masks at the start of each task.
        infer_task: whether evaluation finds each sample's task by itself (`operations.InferTask`).

    Differences: masks and head have one optimiser and learning rate; the paper's backbone is pretrained, here it is
    whatever the model starts with.
    """
    return Method(BinaryMasks(threshold=threshold, initial=initial), *inference(infer_task))
