"""Winning subnetworks (WSN)."""

from holdfast.core.method import Method, published
from holdfast.core.ranges import UpToOne
from holdfast.operations import Subnetworks
from holdfast.operations.infer_task import inference


@published(paper="Kang et al., Forget-free continual learning with winning subnetworks, ICML 2022")
def wsn(fraction: UpToOne = 0.5, infer_task: bool = False) -> Method:
    r"""Each task uses the best-scored weights of every layer; those that earlier tasks use do not move.

    $$ m_t = \big[\,|s| \text{ among the top } c\,\big], \qquad
       \theta \leftarrow \theta - \eta \Big( \frac{\partial L}{\partial \theta} \odot (1 - M_{t-1}) \Big) $$

    Args:
        fraction: c, the fraction of each layer's weights that a task uses.
        infer_task: whether evaluation finds each sample's task by itself (`operations.InferTask`).

    Differences: biases and normalisation are kept once per task; masks are not compressed.
    """
    return Method(Subnetworks(fraction=fraction), *inference(infer_task))
