"""Nearest class mean over replayed features."""

from typing import Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count
from holdfast.operations import JoinedReplay, NearestClassMean, Remember


@published(paper="Mensink et al., Distance-based image classification, TPAMI 2013; Rebuffi et al., iCaRL, CVPR 2017")
def ncm(
    capacity: Count = 200,
    size: Count = 32,
    metric: Literal["euclidean", "cosine"] = "euclidean",
    policy: Literal["reservoir", "balanced_reservoir", "ring", "first"] = "balanced_reservoir",
) -> Method:
    r"""Experience replay trains the features; the class whose mean over the memory is nearest is predicted.

    $$ \hat y = \arg\min_k \lVert h(x) - \mu_k \rVert_2, \qquad \mu_k = \operatorname{mean}_{(x', k) \in M} h(x') $$

    Args:
        capacity: samples in the memory.
        size: old samples per step.
        metric: how near is measured.
        policy: which samples are kept.

    Differences: a combination of ours, between ER and iCaRL: cross-entropy, a reservoir and features as they are, where
    iCaRL distils, herds and normalises.
    """
    return Method(
        JoinedReplay(size=size),
        Remember(capacity=capacity, policy=policy),
        NearestClassMean(metric=metric, source="memory"),
    )
