"""The pages for people who come from another library: every name that their scripts use has a row, and ours all run."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast import Continual, Every, Method, Operation, Trainer, datasets, memory, methods, metrics, models, streams
from holdfast.config.build import resolve
from holdfast.config.compose import compose
from holdfast.operations import Distillation, Remember, Replay

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ["avalanche", "mammoth", "lightning", "transformers"]
NAMES = {
    "avalanche": """
        SplitMNIST n_experiences nc_benchmark ni_benchmark task_labels seed return_task_id fixed_class_order
        PermutedMNIST RotatedMNIST benchmark_with_validation_stream split_online_stream train_stream
        test_stream classes_in_this_experience current_experience task_label n_classes SimpleMLP SimpleCNN
        SlimResNet18 IncrementalClassifier MultiHeadClassifier as_multitask Naive JointTraining Cumulative
        Replay EWC LwF MAS GEM AGEM SynapticIntelligence DER ICaRL GDumb CWRStar AR1 StreamingLDA MIR ER_ACE
        BiC mem_size ewc_lambda ReplayPlugin LwFPlugin ClassBalancedBuffer before_backward SGD
        CrossEntropyLoss train_mb_size train_epochs eval_mb_size device LRSchedulerPlugin
        EarlyStoppingPlugin strategy.train strategy.eval EvaluationPlugin accuracy_metrics loss_metrics
        forgetting_metrics bwt_metrics forward_transfer_metrics confusion_matrix_metrics timing_metrics
        get_all_metrics get_last_metrics InteractiveLogger TextLogger CSVLogger TensorboardLogger
        WandBLogger save_checkpoint
    """,
    "mammoth": """
        seq-mnist seq-cifar10 perm-mnist rot-mnist sgd joint er derpp ewc_on si lwf agem gem gdumb icarl
        buffer_size minibatch_size alpha beta e_lambda gamma lr optimizer optim_wd lr_scheduler
        lr_milestones batch_size n_epochs seed validation device wandb_project debug_mode start_from
        loadcheck forgetting Class-IL Task-IL ContinualModel observe ContinualDataset begin_task end_task
        add_data get_data self.net self.opt self.loss not_aug_inputs
    """,
    "lightning": """
        LightningModule training_step configure_optimizers manual_backward accumulate_grad_batches
        gradient_clip_val precision strategy devices LightningDataModule max_epochs ModelCheckpoint
        ckpt_path EarlyStopping TensorBoardLogger self.log seed_everything predict test to_onnx
    """,
    "transformers": """
        Trainer TrainingArguments gradient_accumulation_steps max_grad_norm bf16 label_smoothing_factor
        optim lr_scheduler_type optimizers compute_loss compute_loss_func DataCollatorWithPadding
        label_names eval_strategy evaluate DataCollatorForLanguageModeling compute_metrics predict
        save_strategy resume_from_checkpoint report_to seed torchrun load_best_model_at_end
        EarlyStoppingCallback save_model Seq2SeqTrainer accelerate
    """,
}
"""What the scripts of each library use."""


def rows(page: str) -> dict[str, str]:
    """What they call it -> what is written here, of every row of a page's tables."""
    lines = (DOCS / f"coming_from_{page}.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.split(" | ")] for line in lines if line.startswith("| ")]
    found = {there.removeprefix("| "): here.removesuffix(" |") for there, here in cells}
    return {there: here for there, here in found.items() if there not in ("---",) and there.lower() != page}


@pytest.mark.parametrize("page", PAGES)
def test_every_name_of_a_script_has_a_row(page: str) -> None:
    there = " ".join(rows(page))
    missing = [name for name in NAMES[page].split() if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", there)]
    assert missing == []


def padded(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"input_ids": torch.stack([item["input_ids"] for item in items])}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a reader has."""
    folder = tmp_path_factory.mktemp("coming")
    dataset = datasets.synthetic(classes=4, samples=10, test_samples=5)
    parts = {"dataset": dataset, "stream": streams.split(dataset, experiences=2), "images": datasets.digits()}
    trainer = Trainer(methods.finetune())
    model = models.mlp(input_shape=(20,), classes=4, hidden=[8], seed=0)
    events = trainer.fit(model, parts["stream"], out=folder / "runs" / "x")
    batches = [(torch.randn(8, 20), torch.randint(0, 2, (8,))) for _ in range(2)]
    data = dict.fromkeys(("train_1", "train_2", "test_1", "test_2", "loader"), batches)
    ours: dict[str, Any] = {
        "Continual": Continual,
        "Method": Method,
        "Operation": Operation,
        "Trainer": Trainer,
        "Every": Every,
        "Remember": Remember,
    }
    ours |= {"holdfast": holdfast, "streams": streams, "models": models, "methods": methods, "metrics": metrics}
    ours |= {
        "Distillation": Distillation,
        "Replay": Replay,
        "torch": torch,
        "nn": nn,
        "memory": memory,
        "datasets": datasets,
    }
    x, y = batches[0]
    return {**ours, **parts, **data, "events": events, "x": x, "y": y, "folder": folder, "inputs": x}


def fresh(page: str, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What a reader has, and what is changed by using it."""
    monkeypatch.chdir(names["folder"])
    model = models.mlp(input_shape=(20,), classes=4, hidden=[8], seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mine = models.mlp(input_shape=(20,), classes=4, hidden=[8], seed=0)
    cl = Continual(mine, methods.er(), torch.optim.SGD(mine.parameters(), lr=0.1))
    cl.learner.memory.add({"inputs": torch.randn(20, 20), "targets": torch.zeros(20, dtype=torch.int64)})
    outputs = mine(names["x"])
    loss = nn.functional.cross_entropy(outputs, names["y"])
    new = {"model": model, "optimizer": optimizer, "cl": cl, "loss": loss, "outputs": outputs, "targets": names["y"]}
    if page == "lightning":
        pytest.importorskip("lightning.pytorch")
        from holdfast.lightning import ContinualCallback, StreamDataModule

        new |= {"ContinualCallback": ContinualCallback, "StreamDataModule": StreamDataModule, "callback": cl}
        cl.bound, cl.task = cl, 0  # what the callback has once it is in use
    if page == "transformers":
        transformers = pytest.importorskip("transformers")
        pytest.importorskip("accelerate")
        from holdfast.transformers import Attached, ContinualMixin, ContinualTrainer

        args = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
        new |= {"transformers": transformers, "ContinualMixin": ContinualMixin, "ContinualTrainer": ContinualTrainer}
        new |= {"Attached": Attached, "args": args, "collate": padded, "rows": [{"input_ids": torch.ones(3)}]}
        trainer = type("Bound", (), {"optimizer": None, "continual": cl})
        new |= {"trainer": trainer, "first": trainer}
        from holdfast.lightning import ContinualCallback

        new["ContinualCallback"] = ContinualCallback
    return {**names, **new}


PROSE = re.compile(
    r"^\w+$|^[\w.]+=|^\w+(_\w+)*\.(pt|md)$|^--|^\"|^for |^\(|^epochs \*|^remembers |^loss\(step, learner\)$"
)
"""What stands in backquotes and is a word or an argument by itself."""


@pytest.mark.parametrize(("page", "there"), [(page, there) for page in PAGES for there in rows(page)])
def test_what_a_row_says_here_runs(
    page: str, there: str, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = rows(page)[there]
    codes = re.findall(r"`([^`]+)`", here)
    assert here
    space, before, ran = fresh(page, names, monkeypatch, tmp_path), "", 0
    for code in codes:
        if code.startswith("holdfast "):
            words = code.split()[1:]
            if words[0] == "run":
                for word in words[1:]:
                    assert "=" in word
                config = compose(None, words[1:]).config
                resolve(config)
            else:
                assert words[0] in ("show", "resume")
            ran += 1
        elif code.startswith("["):
            assert eval(re.sub(r"\[[^\[]*\]$", "", before) + code, space) is not None
        elif not PROSE.match(code) or code in space:
            kind = "eval" if isinstance(ast.parse(code).body[0], ast.Expr) else "exec"
            (eval if kind == "eval" else exec)(compile(code, there, kind), space)
            before, ran = code, ran + 1
    assert ran or any(
        word in here for word in ("as they are", "as it is", "nothing", "not needed", "seed of", "`Trainer`")
    )
