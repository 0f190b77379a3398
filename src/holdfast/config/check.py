"""Checking a whole job before anything is loaded: every fault at once, each in a sentence with its path."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from holdfast.config import schema
from holdfast.config.blocks import refuse
from holdfast.config.cross import cross_checks
from holdfast.config.messages import sentences


def check_job(config: dict[str, Any], source: str = "") -> Any:
    """The validated pydantic job of a completed configuration.

    Raises:
        ConfigError: with everything that is wrong.
    """
    try:
        job = schema.job_model().model_validate(config)
    except ValidationError as error:
        refuse(sentences(error.errors(include_url=False), config), source)
        raise
    refuse(cross_checks(job), source)
    return job
