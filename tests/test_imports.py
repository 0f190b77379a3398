"""What importing costs, and that everything public says what its arguments are."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import holdfast

SOURCE = str(Path(holdfast.__file__).parents[1])
OPTIONAL = ["lightning", "torchvision", "torchmetrics", "optuna", "timm", "pandas", "sklearn", "matplotlib"]
NAMESPACES = ["holdfast", "holdfast.methods", "holdfast.operations", "holdfast.models", "holdfast.streams"]
NAMESPACES += ["holdfast.streams.datasets", "holdfast.metrics", "holdfast.memory", "holdfast.training"]


def _python(code: str) -> str:
    env = {**os.environ, "PYTHONPATH": SOURCE}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_holdfast_and_its_parts_imports_no_optional_library() -> None:
    code = (
        "import sys, holdfast; first = sorted(sys.modules);"
        "from holdfast import Trainer, Continual, methods, operations, models, streams, datasets, metrics;"
        f"print([name for name in {OPTIONAL} if name in sys.modules], 'torch' in first)"
    )
    assert _python(code) == "[] False"


def test_help_answers_without_importing_torch() -> None:
    code = (
        "import sys, runpy; sys.argv = ['holdfast', '--help']\n"
        "try:\n    runpy.run_module('holdfast', run_name='__main__')\n"
        "except SystemExit as done:\n    print('exit', done.code, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    assert _python(code).splitlines()[-1] == "exit 0 False False"


def _public(namespace: str) -> dict[str, Any]:
    module = importlib.import_module(namespace)
    found = {name: getattr(module, name) for name in module.__all__}
    return {name: value for name, value in found.items() if callable(value) and not inspect.ismodule(value)}


CALLABLES = {
    f"{namespace.removeprefix('holdfast.')}.{name}": value
    for namespace in NAMESPACES
    for name, value in _public(namespace).items()
}


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_every_exported_name_exists_and_is_listed_once(namespace: str) -> None:
    module = importlib.import_module(namespace)
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)
    assert set(module.__all__) <= set(dir(module))


def _undocumented(value: Any) -> list[str]:
    text = inspect.getdoc(value) or ""
    faults = [] if re.match(r".{10,}", text) else ["no first sentence"]
    if not inspect.isclass(value) and not inspect.isfunction(value):
        return faults
    if inspect.isclass(value) and (value.__init__ is object.__init__ or inspect.isabstract(value)):
        return faults
    listed = set(re.findall(r"^ +\*{0,2}(\w+)(?: \([^)]*\))?: ", text, re.MULTILINE))  # under Args or Attributes
    for name, parameter in inspect.signature(value).parameters.items():
        if name in ("args", "kwargs") and parameter.annotation is parameter.empty:
            continue  # a protocol's
        faults += [] if name in listed else [f"{name} is not in Args"]
        faults += [] if parameter.annotation is not parameter.empty else [f"{name} has no type"]
    return faults


def test_every_public_callable_says_what_it_is_and_what_each_argument_means() -> None:
    assert len(CALLABLES) > 250
    assert {name: faults for name, value in CALLABLES.items() if (faults := _undocumented(value))} == {}


@pytest.mark.parametrize("kind", ["methods", "operations", "streams", "datasets", "models"])
def test_every_argument_that_a_configuration_can_give_is_explained_in_one_line(kind: str) -> None:
    from holdfast.config.kinds import names
    from holdfast.config.show import describe

    for name in names(kind):
        about = describe(kind, name)
        assert len(about.summary) > 10, name
        for parameter in about.parameters:
            assert parameter.doc, f"{kind} {name}: {parameter.name}"


def test_an_unknown_attribute_is_an_ordinary_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Trianer'"):
        holdfast.Trianer  # noqa: B018
