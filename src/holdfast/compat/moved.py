"""Modules under the names they had in the release before: they can be imported for one release, with a sentence."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import CodeType, ModuleType
from typing import Any

HERE = "holdfast."

_SAME_PACKAGE = {
    "config": "cross:check defaults:read describe:show files:read folders:words groups:overrides"
    " hints:messages json_schema:show json_types:signatures layers:compose+messages+read load:compose make:job"
    " namespaces:kinds plain:read plain_parts:signatures summary:show sweeps:search tree:show",
    "core": "backward:forward batch:experience digests:randomness task:forward",
    "memory": "by_class:retrieval columns:storage recent:retrieval reservoir:insertion ring:insertion"
    " selection:exemplars uniform:retrieval",
    "metrics": "files:log",
    "models": "classifier:build conv_vae:vae graft:pretrained heads.task:heads.growing reduced:dense"
    " resnet:convolutional",
    "operations": "blocking:_parts.blocking class_scores:_parts.scores closed_form:_parts.scores"
    " fisher:_parts.fisher+_parts.per_sample generative_model:_parts.generative_model"
    " gradient_products:_parts.layer_gradients layer_hooks:_parts.layers layers:_parts.layers"
    " loss_model:_parts.loss_models loss_models:_parts.loss_models mixing:_parts.draws own_criterion:_parts.rows"
    " per_sample:_parts.per_sample+_parts.layer_gradients quadratic:_parts.quadratic"
    " quadratic_program:_parts.quadratic rows:_parts.rows score_masks:_parts.blocking sensitivity:_parts.quadratic"
    " taps:_parts.functional_model",
    "streams": "prepare:dataset union:data",
    "training": "agreement:ranks capture:forwards+update compiling:precision"
    " during:observations early_stopping:loop experiences:phases"
    " fabric:precision given:phases lightning_batches:lightning_callback limits:evaluation"
    " steps:update streaming:endless window:records",
}
"""Package -> its modules that moved within it, `old:new`, with `+` between several new ones."""

_ELSEWHERE = {
    "config.clmixer": "compat.clmixer",
    "config.clmixer_operations": "compat.clmixer_operations",
    "config.flags": "compat.flags",
    "experiments": "runs",
    "experiments.assemble": "runs.assemble",
    "experiments.checkpoints": "runs.folder",
    "experiments.closing": "runs.opened",
    "experiments.compare": "runs.compare runs.opened",
    "experiments.experience_folders": "runs.folder",
    "experiments.find": "runs.result",
    "experiments.folder": "runs.folder metrics.log",
    "experiments.hydra_main": "compat.hydra_main",
    "experiments.journal": "runs.recording",
    "experiments.keys": "runs.assemble",
    "experiments.loggers": "runs.loggers",
    "experiments.model_summary": "runs.recording",
    "experiments.pool": "runs.pool",
    "experiments.predict": "runs.predict",
    "experiments.profiling": "runs.recording",
    "experiments.ray_pool": "runs.pool",
    "experiments.reference_measures": "metrics.references runs.words",
    "experiments.references": "runs.references config.job",
    "experiments.report": "runs.report",
    "experiments.report_data": "runs.result runs.words metrics.references metrics.statistics metrics.log",
    "experiments.report_figures": "runs.figures",
    "experiments.report_plots": "runs.plots runs.drawing",
    "experiments.report_words": "runs.words",
    "experiments.run": "runs.run runs.assemble",
    "experiments.several": "runs.assemble",
    "experiments.statistics": "metrics.statistics",
    "experiments.sweep": "runs.sweep runs.sweep_report",
    "experiments.sweep_report": "runs.sweep_report",
    "experiments.tensors": "runs.folder",
    "experiments.worker": "runs.worker",
    "memory.generators": "core.randomness",
    "operations.exemplar_memory": "memory.memories",
    "operations.experience_memories": "memory.memories",
    "operations.twin": "core.snapshot",
    "streams.task_dict": "compat.synapse",
    "training.advice": "core.needs",
    "training.blocks": "compat.streamedml streams.data",
    "training.classifier": "compat.scikit_learn",
    "training.lightning": "lightning",
    "training.masked": "compat.synapse",
}
"""Module -> those that have its names now, where they are in another package."""

MOVED: dict[str, tuple[str, ...]] = {
    HERE + old: tuple(HERE + one for one in new.split()) for old, new in _ELSEWHERE.items()
} | {
    f"{HERE}{package}.{old}": tuple(f"{HERE}{package}.{one}" for one in new.split("+"))
    for package, pairs in _SAME_PACKAGE.items()
    for old, new in (pair.split(":") for pair in pairs.split())
}
"""Name of a module in the release before -> the modules that have its names now."""


class Moved(ModuleType):
    """A module of before: its names are looked up where they are now."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        new = MOVED[self.__name__]
        for module in map(importlib.import_module, new):
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"{self.__name__} is {' and '.join(new)} now, and there is no {name!r} any more.")

    def __dir__(self) -> list[str]:
        """Every name of the modules that it is now."""
        modules = map(importlib.import_module, MOVED[self.__name__])
        return sorted({name for module in modules for name in dir(module) if not name.startswith("_")})


class Finder:
    """Finds and makes the modules of `MOVED` when somebody imports one, after everything else was asked.

    Not derived from the classes of `importlib.abc`, which take longer to import than all of this.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The specification of a module of before; None for any other."""
        if fullname not in MOVED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=self.is_package(fullname))  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """A module that forwards."""
        return Moved(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Say what to write instead."""
        say(module.__name__)

    def get_code(self, fullname: str) -> CodeType:
        """What `python -m` runs: the module that it is now, as if it had been named itself."""
        text = f"from holdfast.compat import moved\nmoved.say({fullname!r})\n"
        text += f"import runpy\nrunpy.run_module({MOVED[fullname][0]!r}, run_name=__name__, alter_sys=True)"
        return compile(text, f"<{fullname}>", "exec")

    def get_source(self, fullname: str) -> None:
        """None: the code is made here and stands in no file."""

    def is_package(self, fullname: str) -> bool:
        """Whether other modules of before are inside it."""
        return any(one.startswith(f"{fullname}.") for one in MOVED)


def say(old: str) -> None:
    """Warn that a module has another name now."""
    new = MOVED[old]
    warnings.warn(
        f"{old} is {' and '.join(new)} now, and goes with the next release. Write `from {new[0]} import ...`.",
        DeprecationWarning,
        stacklevel=2,
    )


def install() -> None:
    """Let Python ask here after everything else, once."""
    if not any(isinstance(one, Finder) for one in sys.meta_path):
        sys.meta_path.append(Finder())  # type: ignore[arg-type]
