"""Continual Learning Arena's keys of a configuration, and what each means here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from holdfast.compat.flags import Changes
from holdfast.config.words import nearest, shown
from holdfast.core.errors import ConfigError

LOGGERS = {
    "csv": None, "tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "comet": "comet",
}  # fmt: skip
"""Arena's logger -> ours; CSV files are in every run folder."""

ALGORITHMS = {
    "Finetuning": "finetune", "Fix": "fix", "Random": "random", "Independent": "separate_networks",
    "LwF": "lwf", "EWC": "ewc", "DER": "der", "DERpp": "der_plus_plus", "CBP": "continual_backprop",
    "HAT": "hat", "AdaHAT": "adahat", "FGAdaHAT": "fg_adahat", "WSN": "wsn", "JointLearning": "joint",
}  # fmt: skip
PARADIGMS = {"TIL": "task", "CIL": "class", "DIL": "domain"}
ALWAYS = ("model_checkpoint", "model_summary", "rich_progress_bar", "lr_monitor", "default", "none")
"""Callbacks whose work every run does."""

RENAMED = {
    ("global_seed",): ("seed",),
    ("expr_name",): ("experiment_name",),
    ("data", "batch_size"): ("trainer", "batch_size"),
    ("data", "validation_percentage"): ("stream", "validation"),
}
"""Arena's key -> ours, where the value means the same."""

SENTENCES = {
    "data.num_workers": "a data set has its own. Write stream.dataset.workers=4 where it reads files.",
    "data.pin_memory": "batches are gathered where they are needed. Leave it out.",
    "data.root": "each data set says where its files are. Write stream.dataset.path=DIR, or set HOLDFAST_DATA.",
    "data.data_dir": "each data set says where its files are. Write stream.dataset.path=DIR, or set HOLDFAST_DATA.",
    "cl_dataset": "a stream is made of a data set. Write stream=permuted_mnist, or `holdfast list streams`.",
    "backbone": "backbone and head are one model here. Write model=mlp, or `holdfast list models`.",
    "metrics": "every measure is in metrics.json. `holdfast list metrics` shows them.",
    "lightning_loggers": "the run folder has CSV files. Write loggers=[tensorboard] for another one.",
    "output_dir": "a run goes where --out says, or folders.run. Write --out DIR.",
    **dict.fromkeys(
        ("cul_algorithm", "unlearning_requests", "unlearnable_age"), "unlearning is not built. Leave it out."
    ),
    "misc": "the composed configuration is in config.json. `holdfast config` shows it as a tree.",
}
"""Arena's key -> what does the same here."""


def change(path: Sequence[str], value: Any) -> Changes | None:
    """What a change of one of Arena's keys changes here; None if it is not a key of Arena.

    Args:
        path: of the key.
        value: of it.

    Raises:
        ConfigError: for a key that has no meaning here, with what does the same.

    Example:
        >>> change(("data", "batch_size"), 64), change(("test",), False)
        ({('trainer', 'batch_size'): 64}, {('trainer', 'evaluate'): 'none'})
    """
    key, where = ".".join(path), tuple(path)
    if where in RENAMED:
        return {RENAMED[where]: value}
    if key == "extras.enforce_tags":
        return {}  # of a single run: only a multirun is asked, see `enforced`
    if path[0] == "callbacks":
        return callbacks(path[1:], value)
    if path[0] in ("data", *SENTENCES) and (key in SENTENCES or path[0] in SENTENCES):
        raise ConfigError(f"{key}: {SENTENCES.get(key) or SENTENCES[path[0]]}")
    if len(path) != 1:
        return None
    changes = {
        "logger": logger, "train": train, "test": test, "ckpt_path": ckpt_path, "train_tasks": train_tasks,
        "eval_after_tasks": eval_after_tasks, "cl_paradigm": cl_paradigm, "cl_algorithm": cl_algorithm,
        "pipeline": pipeline,
    }  # fmt: skip
    return changes[key](value) if key in changes else None


IN_FILES = (
    *("logger", "callbacks", "train", "test", "ckpt_path", "train_tasks", "eval_after_tasks", "cl_paradigm"),
    *("cl_algorithm", "pipeline", "global_seed", "expr_name", *SENTENCES),
)
"""Arena's keys at the top of a file that no job of ours has."""


def translated(content: Mapping[str, Any]) -> dict[str, Any]:
    """A file's content with Arena's keys under our names.

    Example:
        >>> translated({"test": False, "global_seed": 3})
        {'trainer': {'evaluate': 'none'}, 'seed': 3}
    """
    body = {key: value for key, value in content.items() if key not in IN_FILES}
    for key in (key for key in content if key in IN_FILES):
        for path, value in _leaves(content[key], (key,)):
            for (*blocks, last), new in (change(path, value) or {}).items():
                here = body
                for block in blocks:
                    inner = here.get(block)
                    here[block] = dict(inner) if isinstance(inner, Mapping) else {"name": inner} if inner else {}
                    here = here[block]
                here[last] = new
    return body


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not isinstance(value, Mapping) or not value:
        yield path, value
        return
    for key, part in value.items():
        yield from _leaves(part, (*path, str(key)))


def logger(value: Any) -> Changes:
    """`logger=csv`, `logger=[csv,wandb]`, `logger=many_loggers`, `logger=null`."""
    names = value if isinstance(value, list) else [] if value is None else [value]
    names = ["csv", "tensorboard"] if names == ["many_loggers"] else names
    for name in names:
        if name not in LOGGERS:
            near = nearest(name, LOGGERS)
            advice = f"did you mean {near!r}?" if near else f"choose among {', '.join(LOGGERS)}."
            raise ConfigError(f"logger: got {shown(name)}, which is not a logger here; {advice}")
    loggers = [LOGGERS[name] for name in names if LOGGERS[name] is not None]
    return {("loggers",): loggers} if loggers else {}


def callbacks(path: Sequence[str], value: Any) -> Changes:
    """`callbacks=default`, `callbacks.early_stopping.patience=5`, and what is always done."""
    names = value if isinstance(value, list) else [value]
    if not path and all(name is None or name in ALWAYS for name in names):
        return {}
    if tuple(path) == ("early_stopping", "patience"):
        return {("trainer", "patience"): value}
    if tuple(path) == ("early_stopping", "min_delta"):
        return {("trainer", "min_delta"): value}
    if path and path[0] in ALWAYS:
        raise ConfigError(f"callbacks.{path[0]}: every run does it, with nothing to set. Leave it out.")
    shown_name = ".".join(path) or shown(value)
    raise ConfigError(
        f"callbacks: {shown_name} is not a callback of Holdfast. Early stopping is trainer.patience=5, the best weights"
        " trainer.restore_best=true; checkpoints, a summary and a progress bar are always there."
    )


def train(value: Any) -> Changes:
    """`train=false` asks for evaluation alone, which is a command here."""
    if value is False:
        raise ConfigError("train: got false, and `run` trains. Evaluate a trained model with: holdfast eval RUN.")
    return {}


def test(value: Any) -> Changes:
    """`test=false` leaves evaluation out."""
    return {("trainer", "evaluate"): "none"} if value is False else {}


def ckpt_path(value: Any) -> Changes:
    """`ckpt_path=FILE` is a command here."""
    if value is None:
        return {}
    raise ConfigError(
        f"ckpt_path: got {shown(value)}. Go on with a run by `holdfast resume {value}`, evaluate it by"
        f" `holdfast eval {value}`."
    )


def train_tasks(value: Any) -> Changes:
    """`train_tasks=3` or `[1,2,3]`: the first experiences of the stream."""
    tasks = list(range(1, value + 1)) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(tasks, list) or not tasks or tasks != list(range(1, len(tasks) + 1)):
        raise ConfigError(
            f"train_tasks: got {shown(value)}, and a run learns the first experiences in order. Write a number, or"
            " choose others by the stream's own classes."
        )
    return {("trainer", "limit_experiences"): len(tasks)}


def eval_after_tasks(value: Any) -> Changes:
    """Evaluation comes after every experience, which has what was asked for in it."""
    numbers = value if isinstance(value, list) else [value]
    if not all(isinstance(one, int) and not isinstance(one, bool) and one > 0 for one in numbers):
        raise ConfigError(f"eval_after_tasks: got {shown(value)}, expected numbers of tasks from 1 on. Leave it out.")
    return {}


def cl_paradigm(value: Any) -> Changes:
    """`TIL`, `CIL` or `DIL`."""
    if value not in PARADIGMS:
        raise ConfigError(f"cl_paradigm: got {shown(value)}, expected TIL, CIL or DIL.")
    return {("stream", "paradigm"): PARADIGMS[value]}


def cl_algorithm(value: Any) -> Changes:
    """One of Arena's algorithms by its class."""
    name = re.sub(r"[^A-Za-z]", "", str(value)).lower()
    folded = {their_name.lower(): ours for their_name, ours in ALGORITHMS.items()}
    if name not in folded:
        near = nearest(value, ALGORITHMS)
        advice = f"did you mean {near!r}?" if near else f"choose one of {', '.join(ALGORITHMS)}."
        ours = "A method that Arena does not have is method=NAME; `holdfast list methods` shows all."
        raise ConfigError(f"cl_algorithm: unknown algorithm {shown(value)}; {advice} {ours}")
    return {("method",): folded[name]}


def pipeline(value: Any) -> Changes:
    """What Arena's commands do."""
    ours = {
        "CL_MAIN_EXPR": "",
        "CL_FULL_EXPR": "Write --references joint,independent,random.",
        "CL_MAIN_EVAL": "Write holdfast eval RUN.",
        "CL_FULL_EVAL": "Write holdfast show RUN; its references are evaluated with it.",
        "CL_REF_JOINT_EXPR": "Write --references joint.",
        "CL_REF_INDEPENDENT_EXPR": "Write --references independent.",
        "CL_REF_RANDOM_EXPR": "Write --references random.",
        "MTL_EXPR": "Write method=joint.",
        "STL_EXPR": "Write stream=split stream.experiences=1.",
    }
    if value not in ours:
        near = nearest(value, ours)
        advice = f"did you mean {near!r}?" if near else f"choose one of {', '.join(ours)}."
        advice = "unlearning is not built." if str(value).upper().startswith("CUL") else advice
        raise ConfigError(f"pipeline: got {shown(value)}; {advice}")
    if ours[value]:
        raise ConfigError(f"pipeline: {value} is another command here. {ours[value]}")
    return {}


def enforced(changes: Sequence[str]) -> list[str]:
    """The changes of a multirun without `extras.enforce_tags`: of true, it asks for tags; of false, none are needed.

    As in Arena, `tags=[]` is refused unless it is false.

    Raises:
        ConfigError: if tags are asked for, and there are none.
    """
    key = "extras.enforce_tags="
    asked = [one.lstrip("+").removeprefix(key).lower() for one in changes if one.lstrip("+").startswith(key)]
    tags = [one.lstrip("+").removeprefix("tags=").strip() for one in changes if one.lstrip("+").startswith("tags=")]
    empty = not tags or tags[-1].replace(" ", "") in ("", "[]", "null")
    if empty and (tags or "true" in asked) and "false" not in asked:
        where = f"tags: got {tags[-1] or 'nothing'}, and" if tags else "extras.enforce_tags:"
        raise ConfigError(f"{where} a multirun needs tags to be found by. Write tags=[first_try].")
    return [one for one in changes if not one.lstrip("+").startswith(key)]
