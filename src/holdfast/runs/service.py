"""What an opened run offers to whoever has its model in use: `check`, `update`, `rollback` and its versions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.runs.folder import current

if TYPE_CHECKING:
    from holdfast.runs.labelled import Data
    from holdfast.runs.verdict import Verdict


class Service:
    """Base of `Run`: the same as `holdfast check | update | rollback`."""

    path: Path

    def check(
        self, data: Data = (), *, max_drop: float = 0.03, max_class_drop: float | None = None, task: int | None = None
    ) -> Verdict:
        """What was kept and lost of each experience and class since it was learned (see `runs.check.check`).

        Args:
            data: new data with labels to measure on too: files, a data frame, or arrays `(inputs, labels)`.
            max_drop: accuracy, 0..1, that an experience may lose; of targets that are numbers, what their mean absolute
                error may grow by.
            max_class_drop: the same for each class; None for anything.
            task: of `data`, for a model with a head for each task.

        Returns:
            A verdict: `passed`, `failures`, `experiences`, `classes`, `new`, `shift`, `lines()`, `as_dict()`.

        Raises:
            DataError: where the log does not say how right the model was.
        """
        from holdfast.runs.check import check

        return check(self.path, data, max_drop, max_class_drop, task)

    def update(
        self,
        data: Data,
        *,
        max_drop: float = 0.03,
        max_class_drop: float | None = None,
        test_fraction: float = 0.25,
        task: int | None = None,
    ) -> Verdict:
        """Learn new data with the run's own method and memory, and use the result if it passes (see `runs.update`).

        Args:
            data: with labels: files, a data frame, or arrays `(inputs, labels)`.
            max_drop: accuracy, 0..1, that an earlier experience may lose.
            max_class_drop: the same for each class; None for anything.
            test_fraction: of the new rows that are held out to measure on.
            task: of the data, for a model with a head for each task.

        Returns:
            The verdict; where it did not pass, the model before stays in use.

        Raises:
            ConfigError: for a run that did not finish, or classes that the model has no outputs for.
            DataError: for data without labels, or that do not fit the model.
            Interrupted: if it was stopped; the same call goes on.
        """
        from holdfast.runs.update import update

        limits: dict[str, Any] = {"max_drop": max_drop, "max_class_drop": max_class_drop}
        return update(self.path, data, **limits, test_fraction=test_fraction, task=task)

    def rollback(self, to: int | None = None) -> int:
        """Use an earlier version again: what the one in use was made of, or version `to`; returns its number.

        Raises:
            ConfigError: if there is no such version.
        """
        from holdfast.runs.versions import rollback

        return rollback(self.path, to)

    @property
    def version(self) -> int:
        """The version in use: 0, or the number of an update."""
        return current(self.path)[1]

    @property
    def versions(self) -> list[dict[str, Any]]:
        """Every version with its `base`, `data`, and whether it `passed` and is `in_use`."""
        from holdfast.runs.versions import history

        return history(self.path)
