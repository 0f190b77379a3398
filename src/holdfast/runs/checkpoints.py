"""Checkpoints of a run: written beside the last one and renamed over it, loaded without running any code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast.core.errors import ConfigError
from holdfast.runs.experience_folders import keep_experience
from holdfast.runs.tensors import FORMAT, LAST, load_tensors, save_tensors


class CheckpointFolder:
    """Keeps the newest state of a run.

    Args:
        folder: made if it does not exist.
        every_seconds: seconds between checkpoints within an experience; None for none by time.
        every_steps: steps between checkpoints within an experience; None for none by steps.
        lines: how many lines the log has now; kept with the state, so that a resumed log knows what to drop.
        config: of the run; kept with the state, so that the file alone can be evaluated.
    """

    def __init__(
        self,
        folder: Path,
        every_seconds: float | None = 30.0,
        every_steps: int | None = None,
        lines: Callable[[], int] = lambda: 0,
        config: dict[str, Any] | None = None,
    ) -> None:
        if (every_seconds is not None and every_seconds <= 0) or (every_steps is not None and every_steps < 1):
            raise ConfigError(
                f"checkpoints got every_seconds={every_seconds}, every_steps={every_steps}. Give positive numbers, or"
                " null."
            )
        self.folder = folder
        self.every_seconds = every_seconds
        self.every_steps = every_steps
        self._lines = lines
        self._config = config
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.part"):
            leftover.unlink()

    def due(self, seconds: float, steps: int) -> bool:
        """Whether so many seconds or steps after the last checkpoint another one is due."""
        late = self.every_seconds is not None and seconds >= self.every_seconds
        return late or (self.every_steps is not None and steps >= self.every_steps)

    def save(self, state: dict[str, Any]) -> None:
        """Keep `state` as the newest, safe against a kill at any moment."""
        content = {"format": FORMAT, "lines": self._lines(), "config": self._config, "state": state}
        if ((self._config or {}).get("folders") or {}).get("experiences"):
            keep_experience(self.folder.parent, content)
        save_tensors(self.folder / LAST, content)

    def load(self) -> dict[str, Any] | None:
        """The newest state with the number of log lines it goes with, or None if there is none yet."""
        path = self.folder / LAST
        return load_tensors(path) if path.exists() else None
