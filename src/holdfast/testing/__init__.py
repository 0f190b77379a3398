"""Checks of what others write: operations, methods, streams, metrics, boundaries and sources keep the promises of ours.

One call checks one thing, on a stream that is learnt in a blink, in some seconds and without pytest:

    from holdfast.testing import check_operation

    check_operation(MyOperation, strength=0.5)

It returns what passed, and raises `CheckError` with a sentence for each check that did not hold. In a test that is all
there is to write. `only=["resume"]` and `skip=["channels_last"]` choose among the checks; the first line of a check's
docstring says what it holds. Something that cannot be made without arguments names those it is to be checked with in
`check_arguments`, a mapping beside its other class attributes (of a function: an attribute of the function).
"""

from holdfast.testing.checking import CheckError
from holdfast.testing.subjects import (
    BOUNDARY_CHECKS,
    METHOD_CHECKS,
    METRIC_CHECKS,
    OPERATION_CHECKS,
    SOURCE_CHECKS,
    STREAM_CHECKS,
    check_boundary,
    check_method,
    check_metric,
    check_operation,
    check_source,
    check_stream,
)

__all__ = [
    "BOUNDARY_CHECKS",
    "METHOD_CHECKS",
    "METRIC_CHECKS",
    "OPERATION_CHECKS",
    "SOURCE_CHECKS",
    "STREAM_CHECKS",
    "CheckError",
    "check_boundary",
    "check_method",
    "check_metric",
    "check_operation",
    "check_source",
    "check_stream",
]
