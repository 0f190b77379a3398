"""`holdfast.open`: a run, or the runs of a folder, with what can be asked of them in Python."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import needs_extra
from holdfast.metrics.log import LOG_NAME
from holdfast.runs.compare import row_of
from holdfast.runs.report import write_report
from holdfast.runs.result import METRICS_FILE, Result, Results, found_runs
from holdfast.runs.sweep_report import SWEEP, write_sweep_report

if TYPE_CHECKING:
    import pandas
    from torch import Tensor, nn


class Run(Result):
    """One run of a folder, each of its files read once, when it is first asked for. What is public here stays.

    Beside what is computed of its files (`config`, `log`, `metrics`, `matrix`, `table(key)`, `confusion()`, `state`,
    `seed`, `references`) it can make its report again, and ask the model of its newest checkpoint.

    Args:
        path: its folder.

    Raises:
        DataError: the folder holds no run. A damaged file is told when it is read.
    """

    def report(self) -> Path:
        """Make `plots/*.png` and `report.html` again; returns the path of the page."""
        return write_report(self.path)

    def model(self) -> nn.Module:
        """The trained model at the newest checkpoint, in eval mode, on the device of the run's configuration.

        Raises:
            DataError: without a checkpoint, or for a run whose model was an object of Python's.
        """
        from holdfast.runs.assemble import restore

        return restore(self.path).engine.learner.model.eval()

    def predict(self, inputs: Any, task: int | None = None) -> Tensor:
        """Outputs of the newest checkpoint for raw inputs, as its method wants them, `[rows, ...]` on the CPU.

        Args:
            inputs: a tensor `[rows, ...]` as the stream's data are.
            task: the task label, for a model with a head for each task.

        Raises:
            DataError: without a checkpoint, or for a run whose model was an object of Python's.
        """
        from holdfast.runs.assemble import restore
        from holdfast.runs.predict import outputs

        return outputs(restore(self.path).engine, inputs, task)


class Runs(Results):
    """The seeds of a run, or the jobs of a multirun, as a sequence of `Run`.

    Args:
        path: the folder they lie in.
        runs: in order.
    """

    one = Run

    def frame(self) -> pandas.DataFrame:
        """A table of pandas with a row for each run: folder, state, seed and every measure.

        Raises:
            ImportError: where pandas is not installed, with what to install.
        """
        try:
            import pandas
        except ImportError as error:
            raise needs_extra("a table of runs", "pandas", "tables") from error
        return pandas.DataFrame([row_of(run) for run in self])

    def report(self) -> Path:
        """Make the report of the seeds, or of the multirun, again; returns the path of the page."""
        if (self.path / SWEEP).is_file():
            write_sweep_report(self.path)
            return self.path / "report.html"
        return write_report(self.path)


Run.together = Runs


def open(
    folder: str | os.PathLike[str],
) -> Run | Runs:
    """Open what `holdfast run` or `Trainer.fit(out=...)` left: a run, or a sequence of them.

    Args:
        folder: of a run; of one of several seeds or of a multirun, which gives a sequence.

    Returns:
        A `Run` with `config`, `log`, `metrics`, `matrix`, `state`, `report()`, `model()` and `predict(inputs)`; or
        `Runs`, a sequence of them.

    Raises:
        DataError: the folder holds no run.

    Example:
        >>> import holdfast
        >>> run = holdfast.open("runs/x")                               # doctest: +SKIP
        >>> run.state, run.metrics["average_accuracy"], run.log.arrays("train")["loss"]   # doctest: +SKIP
    """
    path = Path(folder)
    if (path / LOG_NAME).is_file() or (path / METRICS_FILE).is_file():
        return Run(path)
    return Runs(path, [run for place in found_runs([path]) for run in Runs.load(place)])
