"""The callback in Lightning's trainer: the weights of our own, and everything Lightning does alongside."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast import Continual, Every, methods
from holdfast.core.errors import ConfigError, UsageError
from holdfast.streams.data import TensorData

lightning = pytest.importorskip("lightning.pytorch")

from holdfast.lightning import ContinualCallback, StreamDataModule  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Module(lightning.LightningModule):
    """Somebody's module: nothing in it knows of Holdfast, but for methods that bring their own loss."""

    def __init__(self, net: nn.Module, lr: float = 0.05, callback: Any = None, **options: Any) -> None:
        super().__init__()
        self.net = net
        self.lr, self.options, self.callback = lr, options, callback

    def forward(self, x: Any) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Any:
        outputs = self(batch[0])
        loss = (
            F.cross_entropy(outputs, batch[1])
            if self.callback is None
            else self.callback.loss(outputs, batch[1], batch[0])
        )
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]), add_dataloader_idx=False)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, **self.options)


class Manual(Module):
    """The same, moving the optimiser itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
        optimizer.step()


def trainer(*callbacks: Any, epochs: int = 1, **options: Any) -> Any:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    warnings.simplefilter("ignore")
    settings = {"accelerator": "cpu", "devices": 1, "max_epochs": epochs, "num_sanity_val_steps": 0, **quiet, **options}
    return lightning.Trainer(callbacks=list(callbacks), **settings)


def equal(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Every method ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", methods.__all__)
def test_one_fit_over_a_stream_gives_the_weights_of_our_trainer(name: str, toy: Any) -> None:
    make = getattr(methods, name)
    stream = toy.stream_for(make())
    head = "task" if "task" in make().needs else "growing"
    model = toy.model_for(make())
    ours, theirs = model(stream, head), model(stream, head)
    try:
        toy.train(make(), ours, stream, epochs=2)
    except ConfigError:  # it refuses a head that grows
        ours, theirs = model(stream), model(stream)
        toy.train(make(), ours, stream, epochs=2)
    callback = ContinualCallback(make(), seed=3)
    data = StreamDataModule(stream, batch_size=4, epochs=2)
    trainer(callback, epochs=6).fit(Module(theirs, callback=callback), datamodule=data)
    assert equal(ours, theirs)


@pytest.mark.parametrize("name", ["er", "der_plus_plus", "agem", "ewc", "si", "lwf"])
def test_one_fit_per_experience_gives_the_weights_of_our_trainer(name: str, toy: Any) -> None:
    stream = toy.stream()
    ours, theirs = toy.model(stream, "growing"), toy.model(stream, "growing")
    toy.train(getattr(methods, name)(), ours, stream, epochs=2)
    callback = ContinualCallback(getattr(methods, name)(), seed=3)
    data, module = StreamDataModule(stream, batch_size=4), Module(theirs)
    for index in range(3):
        data.experience = index
        trainer(callback, epochs=2).fit(module, datamodule=data)
    assert equal(ours, theirs)


# An existing module and its own loaders --------------------------------------------------------------------


def loaders(count: int = 3, rows: int = 24, batch: int = 4) -> list[Any]:
    found = []
    for task in range(count):
        generator = torch.Generator().manual_seed(task)
        x = torch.randn(rows, 5, generator=generator)
        data = torch.utils.data.TensorDataset(x, torch.randint(0, 2, (rows,), generator=generator) + 2 * task)
        found.append(torch.utils.data.DataLoader(data, batch_size=batch))
    return found


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6))


def by_wrapper(name: str, clip: float | None = None, accumulate: int = 1, dtype: Any = None) -> nn.Module:
    """The same arithmetic in a loop of one's own."""
    model = net()
    cl = Continual(model, getattr(methods, name)(), torch.optim.SGD(model.parameters(), lr=0.05), accumulate=accumulate)
    for loader in loaders():
        optimizer = cl.optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

        cl.begin(TensorData(*loader.dataset.tensors))
        for number, (x, y) in enumerate(loader):
            if number % accumulate == 0:
                optimizer.zero_grad()
            with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                loss = F.cross_entropy(model(x), y)
            cl.backward(loss, y, inputs=x)
            if number % accumulate == accumulate - 1:
                if clip is not None:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
        cl.end()
    return model


NAMES = ["er", "der_plus_plus", "agem", "ewc", "si", "lwf"]


@pytest.mark.parametrize("kind", ["automatic", "manual"])
@pytest.mark.parametrize("name", NAMES)
def test_with_its_own_loaders_and_clipping_it_learns_what_the_wrapper_learns(name: str, kind: str) -> None:
    model = net()
    callback = ContinualCallback(getattr(methods, name)())
    module = Module(model) if kind == "automatic" else Manual(model)
    for loader in loaders():
        trainer(callback, gradient_clip_val=0.5 if kind == "automatic" else None).fit(module, loader)
    assert equal(model, by_wrapper(name, clip=0.5))


@pytest.mark.parametrize("name", NAMES)
def test_accumulated_batches_learn_what_the_wrapper_learns(name: str) -> None:
    model = net()
    callback = ContinualCallback(getattr(methods, name)())
    for loader in loaders():
        trainer(callback, accumulate_grad_batches=2).fit(Module(model), loader)
    for a, b in zip(model.parameters(), by_wrapper(name, accumulate=2).parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_bf16_mixed_learns_what_the_wrapper_learns_in_autocast(name: str) -> None:
    model = net()
    callback = ContinualCallback(getattr(methods, name)())
    for loader in loaders():
        trainer(callback, precision="bf16-mixed").fit(Module(model), loader)
    assert equal(model, by_wrapper(name, dtype=torch.bfloat16))


def test_a_boundary_inside_one_fit() -> None:
    model = net()
    callback = ContinualCallback(methods.ewc_online(), boundary=Every(steps=3, window=12))
    trainer(callback).fit(Module(model), loaders()[0])
    assert callback.cl.learner.experience == 1
    assert callback.method.operations[0].anchor


def test_a_module_of_several_networks_is_used_whole_or_by_name() -> None:
    class Two(Module):
        def __init__(self) -> None:
            super().__init__(nn.Linear(5, 8))
            self.top = nn.Linear(8, 6)

        def forward(self, x: Any) -> Any:
            return self.top(self.net(x).relu())

    def fresh() -> Two:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Two()

    module = fresh()
    callback = ContinualCallback(methods.lwf())
    for loader in loaders(2):
        trainer(callback).fit(module, loader)
    assert callback.cl.model is module
    assert len(callback.cl.learner.parameters()) == 4
    exported = callback.export()
    x = torch.randn(3, 5)
    with torch.no_grad():
        assert torch.equal(exported(x), callback.predict(x))


# Lightning's own things ------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["fixed", "growing"])
@pytest.mark.parametrize("name", ["er", "der_plus_plus", "ewc", "si", "lwf", "cumulative"])
def test_resumed_from_lightnings_checkpoint_it_ends_with_equal_weights(
    name: str, head: str, toy: Any, tmp_path: Path
) -> None:
    stream = toy.stream()
    make = getattr(methods, name)
    options = {"momentum": 0.9}

    def fit(keep: bool, resume: Path | None = None) -> nn.Module:
        model = toy.model(stream, head)
        callbacks = [ContinualCallback(make(), seed=3)]
        if keep:
            callbacks.append(lightning.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1))
        data = StreamDataModule(stream, batch_size=4, epochs=2)
        trainer(*callbacks, epochs=6, enable_checkpointing=keep).fit(
            Module(model, **options), datamodule=data, ckpt_path=resume
        )
        return model

    whole = fit(keep=True)
    for epoch in (1, 2):  # at the end of an experience, and in its middle
        assert equal(whole, fit(keep=False, resume=tmp_path / f"epoch={epoch}.ckpt"))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", ["er", "ewc", "lwf", "agem", "cumulative"])
def test_resumed_within_an_epoch_it_ends_with_equal_weights(
    name: str, accumulate: int, toy: Any, tmp_path: Path
) -> None:
    stream = toy.stream()

    def fit(*others: Any, resume: Path | None = None) -> nn.Module:
        model = toy.model(stream, "growing")
        callback = ContinualCallback(getattr(methods, name)(), seed=3)
        settings = {"epochs": 6, "accumulate_grad_batches": accumulate, "enable_checkpointing": bool(others)}
        data = StreamDataModule(stream, batch_size=4, epochs=2)
        trainer(callback, *others, **settings).fit(Module(model, momentum=0.9), datamodule=data, ckpt_path=resume)
        return model

    whole = fit(lightning.callbacks.ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1))
    steps = sorted(int(path.stem.split("=")[1]) for path in tmp_path.glob("*.ckpt"))
    ends = 10 // accumulate + accumulate - 1  # of the first experience
    assert ends in steps
    for step in {steps[1], ends, ends + 1, steps[-2]}:
        assert equal(whole, fit(resume=tmp_path / f"step={step}.ckpt")), f"resumed after step {step}"


def test_manual_optimisation_over_several_batches_learns_what_the_wrapper_learns() -> None:
    class Slow(Manual):
        def training_step(self, batch: Any, index: int) -> None:
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            if index % 2:
                self.optimizers().step()
                self.optimizers().zero_grad()

    for name in NAMES:
        model = net()
        callback = ContinualCallback(getattr(methods, name)(), accumulate=2)
        for loader in loaders():
            trainer(callback).fit(Slow(model), loader)
        assert callback.cl.engine.index == 9
        assert equal(model, by_wrapper(name, accumulate=2)), name


def test_sixteen_bit_precision_on_a_cpu_is_bfloat16_as_lightning_decides() -> None:
    for name in ("er", "ewc", "agem"):
        models = [net(), net()]
        for model, precision in zip(models, ("16-mixed", "bf16-mixed")):
            callback = ContinualCallback(getattr(methods, name)())
            for loader in loaders(2):
                trainer(callback, precision=precision).fit(Module(model), loader)
        assert equal(*models)


class Words(torch.utils.data.Dataset):
    """Mappings, as tokenizers make them."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = (torch.arange(5) * (index + 2)) % 11
        return {"input_ids": ids, "attention_mask": (ids % 3 > 0).float(), "labels": torch.tensor(index % 3)}


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, 3)

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        values = self.embed(input_ids) * attention_mask.unsqueeze(-1)
        return {"logits": self.head(values.sum(1)), "values": values}


@pytest.mark.parametrize("name", ["er", "der_plus_plus", "agem", "ewc"])
def test_a_text_model_is_trained_on_batches_that_are_mappings(name: str) -> None:
    class Reads(Module):
        def training_step(self, batch: Any, index: int) -> Any:
            found = self.net(batch["input_ids"], attention_mask=batch["attention_mask"])
            assert found["values"].shape[0] == len(batch["labels"])
            return F.cross_entropy(found["logits"], batch["labels"])

    weights = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Text()
        callback = ContinualCallback(getattr(methods, name)())
        for _ in range(2):
            trainer(callback).fit(Reads(model), torch.utils.data.DataLoader(Words(), batch_size=4))
        weights.append(model)
    assert equal(*weights)
    assert callback.cl.engine.index == 12
    if name != "ewc":
        assert set(callback.cl.learner.memory.all()["inputs"]) == {"input_ids", "attention_mask"}


def test_early_stopping_checkpoints_and_loggers_work_alongside(tmp_path: Path, toy: Any) -> None:
    stream = toy.stream()
    model = toy.model(stream)
    callback = ContinualCallback(methods.er(capacity=20))
    stop = lightning.callbacks.EarlyStopping("val_loss", patience=1, min_delta=100.0)
    keep = lightning.callbacks.ModelCheckpoint(tmp_path / "kept", monitor="val_loss")
    logger = lightning.loggers.CSVLogger(tmp_path)
    data = StreamDataModule(stream, batch_size=4, experience=0)
    held = torch.utils.data.TensorDataset(torch.randn(4, 5), torch.zeros(4, dtype=torch.int64))
    fitting = trainer(callback, stop, keep, epochs=9, logger=logger, enable_checkpointing=True, log_every_n_steps=1)
    data.val_dataloader = lambda: torch.utils.data.DataLoader(held)
    fitting.fit(Module(model), datamodule=data)
    assert fitting.current_epoch == 2
    assert Path(keep.best_model_path).exists()
    assert "train_loss" in (Path(logger.log_dir) / "metrics.csv").read_text()
    assert callback.cl.experience is None


def test_without_the_callback_the_data_module_prepares_the_batches(toy: Any) -> None:
    stream = toy.stream()
    raw, seen = stream[0].train.gather(torch.arange(4)), []
    stream.prepare = lambda x, training, generator: x + 100
    model = toy.model(stream)
    model.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    trainer().fit(Module(model), datamodule=StreamDataModule(stream, batch_size=4, experience=0))
    assert all((x > 50).all() for x in seen)
    assert len(seen) == -(-len(stream[0].train) // 4)
    assert (raw.inputs < 50).all()


class Tasks(lightning.LightningModule):
    """Somebody's module with a head per task, as Continual Learning Arena's page writes it: labels start at 0 each."""

    def __init__(self, called: bool) -> None:
        super().__init__()
        self.task_id, self.called = 1, called
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.heads = nn.ModuleDict({str(task): nn.Linear(8, 2) for task in (1, 2, 3)})
        self.seen: list[Any] = []

    def forward(self, x: Any, task_id: int) -> Any:
        if self.training:
            self.seen.append((task_id, len(x)))
        return self.heads[str(task_id)](self.backbone(x))

    def _model_step(self, batch: Any, task_id: int) -> Any:
        x, y = batch
        logits = self(x, task_id) if self.called else self.forward(x, task_id)
        return F.cross_entropy(logits, y)

    def training_step(self, batch: Any, index: int) -> Any:
        return self._model_step(batch, task_id=self.task_id)

    def validation_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:
        self.log("loss", self._model_step(batch, self.task_id), add_dataloader_idx=False)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("called", [True, False])
@pytest.mark.parametrize("name", ["er", "der_plus_plus", "agem", "ewc", "lwf", "mas"])
def test_a_module_that_is_called_with_its_task_keeps_the_task_of_what_is_replayed(name: str, called: bool) -> None:
    torch.manual_seed(0)
    module, callback = Tasks(called), ContinualCallback(getattr(methods, name)())
    generator = torch.Generator().manual_seed(0)
    data = {}
    for task in (1, 2, 3):
        x = torch.randn(64, 4, generator=generator)
        data[task] = torch.utils.data.TensorDataset(x, (x[:, task] > 0).long())
    for task in (1, 2, 3):
        module.task_id, module.seen = task, []
        loader = torch.utils.data.DataLoader(data[task], batch_size=16, shuffle=True)
        trainer(callback, epochs=4).fit(module, loader, loader)
        if name in ("er", "der_plus_plus", "agem"):
            assert {kind for kind, _ in module.seen} == set(range(1, task + 1))
        assert "forward" not in vars(module)
    module.eval()
    right = [
        float((module(*data[task].tensors[:1], task).argmax(1) == data[task].tensors[1]).float().mean())
        for task in data
    ]
    assert right[2] > 0.7
    assert sum(right) / 3 > (0.7 if name in ("er", "der_plus_plus") else 0.5)


def test_a_call_with_another_task_than_the_experiences_says_what_to_write() -> None:
    class Other(Tasks):
        def training_step(self, batch: Any, index: int) -> Any:
            return self._model_step(batch, task_id=2)

    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.randn(8, 4), torch.arange(8) % 2), batch_size=4
    )
    with pytest.raises(
        UsageError, match=r"called with task 2, and the experience's task is 1\. Write callback\.task = 2"
    ):
        trainer(ContinualCallback(methods.er())).fit(Other(called=True), loader)


def test_wrong_use_is_refused_with_a_sentence(toy: Any) -> None:
    stream = toy.stream()
    with pytest.raises(ConfigError, match="max_epochs=3"):
        trainer(epochs=2).fit(Module(toy.model(stream)), datamodule=StreamDataModule(stream))
    callback = ContinualCallback(methods.er())
    with pytest.raises(UsageError, match="bound by the first"):
        callback.export()
    loader = loaders()[0]
    trainer(callback).fit(Module(net()), loader)
    with pytest.raises(UsageError, match="another module"):
        trainer(callback).fit(Module(net()), loader)
    with pytest.raises(UsageError, match="which part is the targets"):
        trainer(ContinualCallback(methods.er())).fit(Module(net()), [3, 4])


def test_float16_with_a_scaler_learns_what_the_wrapper_learns_with_it() -> None:
    plugin = lightning.plugins.MixedPrecision
    for name in ("er", "der_plus_plus", "agem", "ewc"):
        model, own = net(), net()
        callback = ContinualCallback(getattr(methods, name)())
        cl = Continual(own, getattr(methods, name)(), torch.optim.SGD(own.parameters(), lr=0.05))
        for loader in loaders():
            scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**8) for _ in range(2)]
            trainer(callback, plugins=[plugin("16-mixed", "cpu", scaler=scalers[0])]).fit(Module(model), loader)
            optimizer = cl.optimizer = torch.optim.SGD(own.parameters(), lr=0.05)
            cl.update.scaler = scalers[1]
            cl.begin(TensorData(*loader.dataset.tensors))
            for x, y in loader:
                with torch.autocast("cpu", dtype=torch.float16):
                    loss = F.cross_entropy(own(x), y)
                optimizer.zero_grad()
                cl.backward(loss, y, inputs=x)
                scalers[1].step(optimizer)
                scalers[1].update()
            cl.end()
        for a, b in zip(model.parameters(), own.parameters()):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


SCRIPT = """
import sys, torch, lightning
from torch import nn
from holdfast import methods
from holdfast.lightning import ContinualCallback

class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6))

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

torch.set_num_threads(1)
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
torch.manual_seed(0)
module = Module()
callback = ContinualCallback(getattr(methods, sys.argv[1])())
for task in range(2):
    y = torch.randint(0, 2, (48,)) + 2 * task
    data = torch.utils.data.TensorDataset(torch.randn(48, 5) - 2 * task, y)
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    ranks = {"strategy": "ddp", "accelerator": "cpu", "devices": 2}
    trainer = lightning.Trainer(max_epochs=2, callbacks=[callback], **ranks, **quiet)
    trainer.fit(module, loader)
held = callback.cl.learner.memory
rows = None if held is None else held.all()
torch.save({"weights": module.state_dict(), "rows": rows}, f"{sys.argv[2]}/{trainer.global_rank}.pt")
"""


@pytest.mark.parametrize("name", ["der_plus_plus", "agem", "ewc"])
def test_two_processes_keep_equal_weights_and_a_memory_each(name: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), name, str(tmp_path)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(one["weights"][key], two["weights"][key]) for key in one["weights"])
    if name != "ewc":
        assert not torch.equal(one["rows"]["inputs"], two["rows"]["inputs"])
