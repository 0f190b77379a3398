"""Real models of transformers, in its `Trainer`, in Lightning and in the drop-in; what that trainer does alongside."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast import Every, methods
from holdfast.core.errors import ConfigError, DataError, NeedError, UsageError

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[dev]'")
pytest.importorskip("accelerate", reason="accelerate is not installed: pip install -e '.[dev]'")

from holdfast.transformers import Attached, ContinualMixin, ContinualTrainer  # noqa: E402

pytestmark = pytest.mark.slow  # importing both takes several seconds; test_six_loops trains a model of theirs too

METHODS: dict[str, Callable[[], Any]] = {
    "er": lambda: methods.er(capacity=200, size=16),
    "der_plus_plus": lambda: methods.der_plus_plus(capacity=200, size=16),
    "ewc": lambda: methods.ewc(strength=1e4),
    "agem": lambda: methods.agem(capacity=200, size=64),
    "lwf": lambda: methods.lwf(),
}


def classifier(**config: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    settings = {"vocab_size": 20, "num_labels": 4, "max_position_embeddings": 16, **sizes, **dropout, **config}
    return transformers.BertForSequenceClassification(transformers.BertConfig(**settings))


def texts(task: int, rows: int = 48) -> list[dict[str, Any]]:
    """Two classes a task, said by the first token; of other lengths."""
    generator, found = torch.Generator().manual_seed(task), []
    for _ in range(rows):
        label = 2 * task + int(torch.randint(0, 2, (), generator=generator))
        ids = torch.randint(9, 20, (int(torch.randint(3, 8, (), generator=generator)),), generator=generator)
        ids[0] = 1 + label
        found.append({"input_ids": ids, "labels": label})
    return found


def padded(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    ids = nn.utils.rnn.pad_sequence([item["input_ids"] for item in items], batch_first=True)
    mask = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    return mask if "labels" not in items[0] else {**mask, "labels": torch.tensor([item["labels"] for item in items])}


def language_model(**config: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2, "pad_token_id": 0, **config}
    none = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0, "bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **none))


def lines(task: int, rows: int = 48) -> list[dict[str, Any]]:
    """Tokens that count up in steps of one, or of five; of other lengths, without labels of their own."""
    generator, found = torch.Generator().manual_seed(task), []
    for _ in range(rows):
        length, start = torch.randint(5, 9, (2,), generator=generator).tolist()
        found.append({"input_ids": (start + (1 + 4 * task) * torch.arange(length)) % 18 + 1})
    return found


def next_tokens(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    batch = padded(items)
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["input_ids"] == 0, -100)}


def arguments(folder: Path, **changes: Any) -> Any:
    settings = {
        "output_dir": str(folder),
        "num_train_epochs": 10,
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-2,
        "report_to": [],
        "disable_tqdm": True,
        "logging_strategy": "no",
        "save_strategy": "no",
        "use_cpu": True,
        "remove_unused_columns": False,
    }
    return transformers.TrainingArguments(**{**settings, **changes})


def trained(method: Any, folder: Path, kind: str = "classes", made: Any = None, **changes: Any) -> Any:
    """The trainer after two experiences; without a method that of transformers alone."""
    words = kind == "words"
    items, collate = (lines, next_tokens) if words else (texts, padded)
    parts = {"model": language_model() if words else classifier(), "args": arguments(folder, **changes)}
    if made is not None:
        trainer = made(method=method, data_collator=collate, **parts)
    elif method is None:
        trainer = transformers.Trainer(data_collator=collate, **parts)
    else:
        trainer = ContinualTrainer(method=method, data_collator=collate, **parts)
    for task in (0, 1):
        trainer.train_dataset = items(task)
        trainer.train()
    return trainer


def old_loss(trainer: Any, kind: str = "classes") -> float:
    return float(trainer.evaluate((lines if kind == "words" else texts)(0))["eval_loss"])


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.flatten() for value in model.state_dict().values()])


FORGETS: dict[str, float] = {}


# What the methods are worth --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classes", "words"])
@pytest.mark.parametrize("name", METHODS)
def test_in_the_trainer_of_transformers_each_method_keeps_old_knowledge(name: str, kind: str, tmp_path: Path) -> None:
    if kind not in FORGETS:
        FORGETS[kind] = old_loss(trained(None, tmp_path, kind), kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert old_loss(trained(METHODS[name](), tmp_path, kind), kind) < 0.95 * FORGETS[kind]


@pytest.mark.parametrize("name", METHODS)
def test_in_lightning_each_method_keeps_old_knowledge_of_a_model_of_transformers(name: str) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    from holdfast.lightning import ContinualCallback

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = classifier()

        def training_step(self, batch: Any, index: int) -> Any:
            return self.net(**batch).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def after(method: Any) -> float:
        module, callback = Module(), ContinualCallback(method)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        for task in (0, 1):
            loader = torch.utils.data.DataLoader(texts(task), batch_size=16, collate_fn=padded)  # type: ignore[arg-type]
            lightning.Trainer(
                accelerator="cpu", max_epochs=6, enable_model_summary=False, callbacks=[callback], **quiet
            ).fit(module, loader)
        module.eval()
        return float(module.net(**padded(texts(0))).loss.detach())

    if "lightning" not in FORGETS:
        FORGETS["lightning"] = after(methods.finetune())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert after(METHODS[name]()) < 0.95 * FORGETS["lightning"]
    assert not [one for one in told if "backward()" in str(one.message)]


# The loop stays that of transformers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "words", "gradient_accumulation_steps": 3, "per_device_train_batch_size": 6},
        {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1, "label_smoothing_factor": 0.1},
        {"bf16": True, "max_steps": 4},
    ],
    ids=["tokens over batches", "smoothing and clipping", "bf16"],
)
def test_without_a_method_the_weights_are_those_of_the_trainer_alone(changes: Any, tmp_path: Path) -> None:
    theirs = trained(None, tmp_path, num_train_epochs=2, **changes)
    ours = trained(methods.finetune(), tmp_path, num_train_epochs=2, **changes)
    torch.testing.assert_close(weights(ours.model), weights(theirs.model), rtol=1e-5, atol=1e-6)


def test_the_loss_is_known_however_the_model_counts_its_labels(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for kind in ("classes", "words"):
            trainer = trained(METHODS["er"](), tmp_path, kind, num_train_epochs=1, gradient_accumulation_steps=2)
            memory = trainer.continual.bound.learner.memory
            assert memory.seen == len(memory) == 96
            assert "labels" not in memory.all()["inputs"]


def test_old_samples_are_padded_as_the_model_or_the_user_says(tmp_path: Path) -> None:
    short = [{"input_ids": torch.randint(1, 9, (4,))} for _ in range(16)]
    long = [{"input_ids": torch.randint(1, 9, (7,))} for _ in range(16)]
    for known, pad in ((None, None), (None, 0), (0, None)):
        parts = {"args": arguments(tmp_path, num_train_epochs=1), "data_collator": next_tokens}
        model = language_model(pad_token_id=known)
        trainer = ContinualTrainer(model=model, train_dataset=short, method=methods.er(), pad=pad, **parts)
        trainer.train()
        trainer.train_dataset = long
        if known is None and pad is None:
            with pytest.raises(DataError, match="pad=0"):
                trainer.train()
            continue
        trainer.train()
        assert trainer.continual.bound.learner.memory.all()["inputs"]["input_ids"].shape[1] == 7


@pytest.mark.parametrize("name", ["er", "ewc"])
def test_a_training_resumed_from_its_checkpoint_ends_with_equal_weights(name: str, tmp_path: Path) -> None:
    def trainer(folder: Path, continual: Any = None, **changes: Any) -> Any:
        settings = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps"}
        parts = {"args": arguments(folder, **settings, **changes), "data_collator": padded, "eval_steps": 2}
        parts["args"].eval_steps = parts.pop("eval_steps")
        return ContinualTrainer(model=classifier(), method=METHODS[name](), eval_dataset=texts(1), **parts)

    found = []
    for stops in (False, True):
        first = trainer(tmp_path / f"{stops}")
        first.train_dataset = texts(0)
        first.train()
        if stops:
            again = trainer(tmp_path / f"{stops}")
            again.train_dataset = texts(0)
            again.train(resume_from_checkpoint=str(tmp_path / f"{stops}" / "checkpoint-4"))
            first = again
        first.train_dataset = texts(1)
        first.train()
        found.append(weights(first.model))
    assert (tmp_path / "True" / "checkpoint-4" / "holdfast.pt").is_file()
    assert torch.equal(found[0], found[1])
    plain = transformers.Trainer(
        model=classifier(), args=arguments(tmp_path / "plain", save_strategy="epoch", max_steps=3)
    )
    plain.data_collator, plain.train_dataset = padded, texts(0)
    plain.train()
    other = trainer(tmp_path)
    other.train_dataset = texts(0)
    with pytest.raises(UsageError, match="saved without this method"):
        other.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-3"))


def test_a_second_trainer_goes_on_with_the_method_of_the_first(tmp_path: Path) -> None:
    one = trained(METHODS["er"](), tmp_path, num_train_epochs=1)
    attached, model = None, classifier()
    for task in (0, 1):
        chosen = {"method": METHODS["er"]()} if attached is None else {"continual": attached}
        parts = {"args": arguments(tmp_path, num_train_epochs=1), "data_collator": padded, "train_dataset": texts(task)}
        trainer = ContinualTrainer(model=model, **chosen, **parts)
        trainer.train()
        attached = trainer.continual
    assert isinstance(attached, Attached)
    assert len(attached.bound.learner.memory) == len(one.continual.bound.learner.memory) == 96
    other = ContinualTrainer(model=classifier(), continual=attached, args=arguments(tmp_path))
    other.data_collator, other.train_dataset = padded, texts(0)
    with pytest.raises(UsageError, match=r"serves another model"):
        other.train()


class OwnLoss(ContinualTrainer):
    """Somebody's trainer, with a loss of its own."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        loss = F.cross_entropy(outputs.logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss


def test_a_trainer_with_a_loss_of_its_own_and_a_mixin_are_as_good(tmp_path: Path) -> None:
    class Mixed(ContinualMixin, transformers.Trainer):
        pass

    found = [
        weights(trained(METHODS["er"](), tmp_path, made=made, num_train_epochs=2).model) for made in (OwnLoss, Mixed)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("problem", "labels"), [("regression", 1), ("multi_label_classification", 3)])
def test_numbers_and_several_labels_are_learned_by_the_models_own_loss(
    problem: str, labels: int, tmp_path: Path
) -> None:
    rows = [torch.rand(labels).round() for _ in range(48)]
    items = [{**item, "labels": row if labels > 1 else float(row)} for item, row in zip(texts(0), rows)]

    def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = padded([{"input_ids": item["input_ids"]} for item in items])
        return {**batch, "labels": torch.stack([torch.as_tensor(item["labels"]) for item in items]).float()}

    model = classifier(num_labels=labels, problem_type=problem)
    parts = {"args": arguments(tmp_path, num_train_epochs=4), "data_collator": collate, "train_dataset": items}
    trainer = ContinualTrainer(model=model, method=methods.der_plus_plus(size=8), **parts)
    before = trainer.evaluate(items)["eval_loss"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer.train()
    assert trainer.evaluate(items)["eval_loss"] < before


def test_a_method_that_answers_otherwise_does_so_in_evaluations(tmp_path: Path) -> None:
    trainer = trained(methods.ncm(capacity=100), tmp_path, num_train_epochs=2)
    answers = trainer.predict(texts(1)).predictions
    expected = trainer.continual.predict({k: v for k, v in padded(texts(1)).items() if k != "labels"})
    torch.testing.assert_close(torch.as_tensor(answers), expected, rtol=1e-4, atol=1e-4)
    raw = trainer.model(**padded(texts(1))).logits.detach()
    assert not torch.allclose(expected, raw, atol=1e-2)


def test_a_method_with_its_own_loss_and_a_boundary_within_one_training_work(tmp_path: Path) -> None:
    trainer = trained(methods.labels_trick(), tmp_path, num_train_epochs=2, gradient_accumulation_steps=2)
    assert trainer.continual.bound.learner.members == [(0, 1), (2, 3)]
    assert trainer.continual.losses()
    parts = {"args": arguments(tmp_path, num_train_epochs=2), "data_collator": padded, "train_dataset": texts(0)}
    every = ContinualTrainer(model=classifier(), method=methods.si(), boundary=Every(steps=3), **parts)
    every.train()
    assert every.continual.bound.learner.experience == 1


def test_what_cannot_work_is_refused_with_what_to_write(tmp_path: Path) -> None:
    parts = {"args": arguments(tmp_path), "data_collator": padded, "train_dataset": texts(0)}
    with pytest.raises(ConfigError, match=r"method=methods\.er"):
        ContinualTrainer(model=classifier(), **parts)
    with pytest.raises(ConfigError, match=r"er\(capacity=200\)"):
        ContinualTrainer(model=classifier(), method="er", **parts)
    with pytest.raises(NeedError, match="all data at once"):
        ContinualTrainer(model=classifier(), method=methods.joint(), **parts).train()
    once = {**parts, "args": arguments(tmp_path, auto_find_batch_size=True)}
    with pytest.raises(ConfigError, match="per_device_train_batch_size"):
        ContinualTrainer(model=classifier(), method=methods.er(), **once).train()
    with pytest.raises(UsageError, match=r"trainer\.train\(\)"):
        ContinualTrainer(model=classifier(), method=methods.er(), **parts).continual.predict(torch.zeros(1))


RANKS = """
import sys, tempfile
from pathlib import Path
import torch, torch.distributed as dist
sys.path.insert(0, {folder!r})
import test_transformers as here
trainer = here.trained(here.METHODS[sys.argv[1]](), Path(tempfile.mkdtemp()), num_train_epochs=2, ddp_backend="gloo")
found = [torch.empty_like(here.weights(trainer.model)) for _ in range(2)]
dist.all_gather(found, here.weights(trainer.model).detach())
assert trainer.args.world_size == 2 and torch.equal(*found)
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["er", "ewc"])
def test_two_processes_end_with_equal_weights(name: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(RANKS.format(folder=str(Path(__file__).parent)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run([*command, str(script), name], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]


@pytest.mark.slow
def test_half_precision_keeps_old_knowledge_too(tmp_path: Path) -> None:
    assert old_loss(trained(METHODS["er"](), tmp_path, fp16=True, num_train_epochs=4)) < 0.8 * old_loss(
        trained(None, tmp_path, fp16=True, num_train_epochs=4)
    )


@pytest.mark.slow
def test_adapters_keep_old_knowledge_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install peft")
    full, settings = classifier, {"task_type": "SEQ_CLS", "r": 4, "target_modules": ["query", "value"]}
    monkeypatch.setitem(
        globals(), "classifier", lambda **config: peft.get_peft_model(full(**config), peft.LoraConfig(**settings))
    )
    forgets, kept = (trained(method, tmp_path, num_train_epochs=20) for method in (None, METHODS["er"]()))
    assert old_loss(kept) < 0.95 * old_loss(forgets)
    start = dict(full().named_parameters())
    moved = {name for name, value in kept.model.get_base_model().named_parameters() if name in start}
    base = dict(kept.model.get_base_model().named_parameters())
    assert all(torch.equal(base[name], start[name]) for name in moved if not base[name].requires_grad)


@pytest.mark.parametrize(("name", "said"), [("slda", 'space="features"'), ("packnet", r"trainer\.continual\.task")])
def test_a_method_that_lacks_something_here_says_what_to_write(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, UsageError), match=said):
        trained(getattr(methods, name)(), tmp_path, num_train_epochs=1)
