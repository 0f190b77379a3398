"""An entry for Hydra's own launchers and sweepers: `python -m holdfast.compat.hydra_main -m method=er,ewc`.

Hydra parses the command line, makes the folders and starts the jobs, on SLURM or elsewhere; what each job is, is
composed and checked as by `holdfast run`. A job returns its average accuracy, which is what Hydra's sweepers maximise.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from holdfast.compat.dialects import DIALECTS
from holdfast.config import plugins
from holdfast.config.build import resolve
from holdfast.config.compose import compose
from holdfast.config.overrides import PACKAGE_DIR, Library
from holdfast.config.read import default
from holdfast.core.errors import ConfigError

JOB = "holdfast_job"
OBJECTIVE = "average_accuracy"


def register() -> None:
    """Make the default job known to Hydra, with every group of the package to choose from."""
    whole = resolve(default())  # with every default, so that Hydra knows every key
    job = {key: value for key, value in whole.items() if not isinstance(value, dict)}
    blocks = {key: value for key, value in whole.items() if isinstance(value, dict)}
    groups = sorted({group.split("/")[0] for group in Library().groups()})
    choices: list[Any] = ["_self_", *({group: None} for group in groups)]
    ConfigStore.instance().store(JOB, {"defaults": choices, **job, **blocks})


def job(config: DictConfig) -> float | None:
    """Run one job that Hydra started, in the folder that Hydra made for it.

    Returns:
        The average accuracy in the family that counts for the paradigm.
    """
    from holdfast.metrics.log import read_json
    from holdfast.runs.run import run

    about = HydraConfig.get()
    config_folders = [
        source.path
        for source in about.runtime.config_sources
        if source.schema == "file" and source.path and Path(source.path) != PACKAGE_DIR
    ]
    composition = compose(
        None, list(about.overrides.task), [one for one in config_folders if Path(one).is_dir()], DIALECTS
    )
    if composition.search is not None:
        raise ConfigError("sweep.params: here Hydra makes the jobs. Write the values as changes, or holdfast run -m.")
    resolved = resolve(composition.config)
    folder = run(resolved, Path(about.runtime.output_dir) / "run", quiet=True, command=" ".join(sys.argv))
    metrics = read_json(folder / "metrics.json")
    objective = metrics.get(f"{metrics.get('headline') or ''}{OBJECTIVE}")
    return None if objective is None else float(objective)


def main() -> None:
    """Entry point of `python -m holdfast.compat.hydra_main`; `--plugin FILE` is taken here, the rest is Hydra's."""
    while "--plugin" in sys.argv[:-1]:
        position = sys.argv.index("--plugin")
        plugins.use(sys.argv[position + 1])
        del sys.argv[position : position + 2]
    register()
    hydra.main(version_base="1.3", config_path=str(PACKAGE_DIR), config_name=JOB)(job)()


if __name__ == "__main__":
    main()
