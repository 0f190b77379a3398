"""A trained model as one file for use without Holdfast, and beside it what its user must know, as JSON."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.engine import Engine
from holdfast.core.errors import ConfigError, HoldfastError, needs_extra, unknown
from holdfast.metrics.log import write_json
from holdfast.runs.assemble import Restored, restore
from holdfast.runs.inputs import outputs

SUFFIXES = {"torch": ".pt2", "onnx": ".onnx", "safetensors": ".safetensors"}
"""Format -> ending of its file."""

CLOSE = 1e-4
"""Largest difference between the outputs of the file and of the run, relative to the largest output."""


class Answers(nn.Module):
    """A trained model with its preprocessing and what its method does to predictions: raw inputs in, outputs out.

    Args:
        engine: of the model and its method.
        task: to answer for; None where tasks are not told.
    """

    def __init__(self, engine: Engine, task: int | None = None) -> None:
        super().__init__()
        self.model = engine.learner.model
        self._engine, self._task = engine, task
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs for raw inputs, `[rows, outputs]`."""
        return self._engine.predict(inputs, self._task)


def export(
    checkpoint: Path | str, to: str = "torch", out: Path | None = None, *, task: int | None = None
) -> tuple[Path, Path]:
    """Write the model of the newest state of a run to one file, without the data that it was trained on.

    Args:
        checkpoint: run folder, checkpoint file or address.
        to: `torch`, a program for `torch.export.load(file).module()`, and `onnx` take raw inputs of any number of rows
            and give what `predict` gives before the softmax; `safetensors` holds the weights alone.
        out: the file to write; None takes the name of the run, in the current folder.
        task: to answer for, for a model with a head per task.

    Returns:
        The file, and the JSON file beside it: format, type and shape of inputs, class names, preprocessing, and for a
        table how its columns become inputs.

    Raises:
        ConfigError: another format, a file that is there already, or a model with a head per task without a task.
        HoldfastError: where the model cannot be written so, with the reason.
    """
    if to not in SUFFIXES:
        raise ConfigError(unknown("format", to, SUFFIXES))
    restored = restore(checkpoint, {"device": "cpu"})
    if task is None and restored.engine.learner.multi_head and to != "safetensors":
        raise ConfigError("this model has a head for each task, and the file answers for one. Write --task 0.")
    path = Path(_stem(restored.path) + SUFFIXES[to]) if out is None else out
    beside = path.with_suffix(".json")
    for one in (path, beside):
        if one.exists():
            raise ConfigError(f"{one} exists already, and nothing is overwritten. Choose another --out.")
    path.parent.mkdir(parents=True, exist_ok=True)
    about = _about(restored, to, task)
    if to == "safetensors":
        _write_weights(restored, path, about)
    else:
        example = _example(restored)
        expected = outputs(restored.engine, example, task)
        try:
            _write_program(Answers(restored.engine, task), example, expected, path, to)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    write_json(beside, about)
    return path, beside


def _stem(checkpoint: Path) -> str:
    folder = checkpoint.resolve().parent
    return (folder.parent if folder.name == "checkpoints" else folder).name or "model"


def _about(restored: Restored, to: str, task: int | None) -> dict[str, Any]:
    card, method = restored.card, restored.engine.method
    acts = restored.engine.acts_at("predict")
    about = {
        "format": to,
        "method": method.name,
        "input": {"type": card.get("dtype") or "float32", "shape": ["rows", *card["input_shape"]]},
        "output": {"shape": ["rows", card["outputs"]], "classes": card["class_names"]},
        "task": task,
        "preprocessing": {"inside": to != "safetensors", "values": card.get("prepare")},
        "table": card["table"],
    }
    if to == "safetensors":
        about["model"] = restored.config["model"]
        if acts:
            about["note"] = f"{method.name} changes the outputs of these weights; the formats torch and onnx do so too."
    return about


def _example(restored: Restored) -> Tensor:
    """Two rows of raw inputs of the right type, not all alike."""
    kind = getattr(torch, restored.card.get("dtype") or "float32")
    shape = (2, *restored.card["input_shape"])
    generator = torch.Generator().manual_seed(0)
    if kind.is_floating_point:
        return torch.rand(shape, generator=generator)
    top = max(1, int(restored.card.get("top") or 1))
    return torch.randint(0, top + 1, shape, generator=generator).to(kind)


def _write_weights(restored: Restored, path: Path, about: dict[str, Any]) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise needs_extra("--format safetensors", "safetensors", "backbones") from error
    tensors = {name: value.contiguous().clone() for name, value in restored.engine.learner.model.state_dict().items()}
    save_file(tensors, path, {"holdfast": json.dumps(about)})


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what torch prints when it fails, as we say so ourselves."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _write_program(answers: Answers, example: Tensor, expected: Tensor, path: Path, to: str) -> None:
    rows = {"inputs": {0: torch.export.Dim("rows", min=1)}}
    with warnings.catch_warnings(), torch.no_grad(), _silent():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(answers, (example,), dynamic_shapes=rows, strict=False)
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            raise HoldfastError(
                f"this model cannot be written as a program: {reason}. Take --format safetensors, and the model's code."
            ) from error
        exported_outputs = program.module()(example)
        if not torch.allclose(
            exported_outputs, expected, atol=CLOSE * float(expected.abs().max().clamp(min=1.0)), rtol=CLOSE
        ):
            raise HoldfastError(
                "the program answers otherwise than the run, so it is not written. Take --format safetensors."
            )
        if to == "torch":
            torch.export.save(program, path)
            return
        try:
            import onnx  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
            import onnxscript  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
        except ImportError as error:
            raise needs_extra("--format onnx", "onnx and onnxscript", "onnx") from error
        torch.onnx.export(program, (), path, input_names=["inputs"], output_names=["outputs"], dynamo=True)
