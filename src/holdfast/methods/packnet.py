"""PackNet: several tasks packed into one network."""

from holdfast.core.method import Method, published
from holdfast.core.ranges import Inside, UpToOne
from holdfast.operations import PrunedWeights
from holdfast.operations.infer_task import inference


@published(paper="Mallya and Lazebnik, PackNet: adding multiple tasks to a single network by iterative pruning, 2018")
def packnet(fraction: Inside = 0.75, at: UpToOne = 0.5, infer_task: bool = False) -> Method:
    r"""Each task trains the free weights, keeps the largest of them for good, and leaves the others to later tasks.

    $$ \hat w_{ij}^t = w_{ij} \, [\text{owner}_{ij} \le t] $$

    Args:
        fraction: the fraction of the free weights of each layer that is pruned.
        at: how far the experience has come, from 0 to 1, when it prunes; the rest of it retrains what was kept.
        infer_task: whether evaluation finds each sample's task by itself (`operations.InferTask`).

    Differences: retraining is the last part of the experience's own training, with the same optimiser; biases and
    normalisation are kept once per task instead of those of the first for all.
    """
    return Method(PrunedWeights(fraction=fraction, at=at), *inference(infer_task))
