"""Separate networks: the upper bound of task-incremental learning."""

from holdfast.core.method import Method, published
from holdfast.operations import SeparateNetworks
from holdfast.operations.infer_task import inference


@published(paper="van de Ven, Tuytelaars and Tolias, Three types of incremental learning, Nature MI 2022")
def separate_networks(infer_task: bool = False) -> Method:
    r"""A fresh network for each task, kept for it: nothing is forgotten and nothing is shared.

    $$ f_t(x) = h_t(\phi_{\theta_t}(x)) $$

    Args:
        infer_task: whether evaluation finds each sample's task by itself (`operations.InferTask`).

    Differences: each network has the size of the model that was given; the paper makes them smaller, so that all
    together have the size of the other methods' one.
    """
    return Method(SeparateNetworks(), *inference(infer_task))
