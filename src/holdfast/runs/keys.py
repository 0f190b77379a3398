"""The key of a configuration: equal for runs that must give equal results, so that a finished one can be used again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from holdfast.config import plugins

WITHOUT_EFFECT = (
    *("references", "checkpoint", "folders", "tags", "loggers", "experiment_name", "profiler", "threads", "$schema"),
)
"""Keys of a job that change nothing about what is learned."""


def job_key(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits for a resolved configuration, without what has no effect on its results.

    The plug-in files in use are part of it.

    Args:
        config: resolved, so that a default left out and one written down give the same key.

    Example:
        >>> job_key({"seed": 1, "tags": ["a"]}) == job_key({"tags": [], "seed": 1})
        True
    """
    kept = {key: value for key, value in config.items() if key not in WITHOUT_EFFECT}
    if plugins.used():
        kept["plugins"] = plugins.digests()
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]
