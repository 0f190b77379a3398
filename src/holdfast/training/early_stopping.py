"""Early stopping: the validation accuracy of each epoch, the best one's weights, and when patience is at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.core.errors import ConfigError
from holdfast.core.experience import Experience
from holdfast.training.evaluation import evaluate
from holdfast.training.limits import limited
from holdfast.training.settings import Settings

if TYPE_CHECKING:
    from holdfast.training.trainer import Trainer


def validated(trainer: Trainer, settings: Settings, experience: Experience) -> str:
    """Measure the epoch on validation data, and keep the best one's weights.

    Args:
        trainer: at the end of an epoch.
        settings: `patience` and `restore_best` of this experience.
        experience: with its validation data.

    Returns:
        `"stop"` when patience is at its end, else `"go on"`.

    Raises:
        ConfigError: where there is no validation data.
    """
    data, size, position = experience.validation, trainer.eval_batch_size, trainer.position
    if data is None or len(data) == 0:
        raise ConfigError(
            "patience and restore_best look at validation data, and this stream has none. "
            "Make the stream with validation=0.1, or leave both out."
        )
    trainer.ranks.average_buffers(trainer.model)
    data = limited(data, trainer.limits["validation"], size, trainer.seed, "validation")
    found = evaluate(trainer.engine, data, experience.classes, experience.task, size, trainer.ranks)
    right = found["correct"] if experience.task is None else found["correct_task"]
    value = -float(found["loss"] or 0.0) if right is None else right / found["samples"]
    best = position.get("best")
    if best is None or value > best["value"]:
        weights = {key: tensor.clone() for key, tensor in trainer.model.state_dict().items()}
        position["best"] = {
            "value": value,
            "epoch": position["epoch"],
            "model": weights if settings.restore_best else {},
        }
    elif settings.patience is not None and position["epoch"] - best["epoch"] >= settings.patience:
        return "stop"
    return "go on"
