"""What every training shares: settings in one dataclass, state that is copied only where it is needed, no circles."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
import torch

import holdfast
from holdfast import Continual, methods
from holdfast.core.engine import Engine
from holdfast.core.errors import UsageError
from holdfast.core.experience import Data, Experience
from holdfast.core.method import Method
from holdfast.core.operation import Operation
from holdfast.core.step import Now
from holdfast.training import Trainer
from holdfast.training.session import Position
from holdfast.training.settings import ExperienceSettings, Settings
from holdfast.training.update import Update

SERVICES = ["method", "record", "progress", "checkpoints"]


def test_the_arguments_of_the_trainer_are_its_settings_and_what_it_reports_to() -> None:
    arguments = inspect.signature(Trainer).parameters
    settings = [one.name for one in dataclasses.fields(Settings) if one.init]
    assert sorted(arguments) == sorted([*settings, *SERVICES])
    assert [name for name, one in arguments.items() if one.kind is not one.KEYWORD_ONLY] == ["method"]
    for name in (*settings, *SERVICES):
        assert f"    {name}: " in str(Trainer.__doc__), f"{name} is not in the docstring"


def test_settings_are_taken_as_they_are_and_are_attributes_by_their_names() -> None:
    settings = Settings(epochs=3, batch_size=8, optimizer={"name": "Adam", "lr": 0.1})
    trainer = Trainer(
        methods.er(), **{one.name: getattr(settings, one.name) for one in dataclasses.fields(Settings) if one.init}
    )
    assert trainer.settings == settings
    assert (trainer.epochs, trainer.batch_size) == (3, 8)


def test_what_changes_in_an_experience_is_a_setting_of_the_whole_run_too() -> None:
    changeable = {one.name for one in dataclasses.fields(ExperienceSettings)}
    assert changeable - {"augment"} < {one.name for one in dataclasses.fields(Settings)}


@pytest.mark.parametrize(("name", "copies"), [("er", 0), ("ewc", 0), ("lwf", 0), ("joint", 3), ("exemplar_replay", 3)])
def test_state_is_copied_at_a_boundary_only_where_the_data_may_be_replaced(
    toy: Any, monkeypatch: pytest.MonkeyPatch, name: str, copies: int
) -> None:
    taken: list[int] = []
    state = Engine.state

    def counted(self: Engine, *args: Any, **kwargs: Any) -> Any:
        taken.append(self.index)
        return state(self, *args, **kwargs)

    monkeypatch.setattr(Engine, "state", counted)
    stream = toy.stream()
    toy.train(getattr(methods, name)(), toy.model(stream), stream)
    assert len(taken) == copies
    taken.clear()
    toy.wrap(getattr(methods, name)(), toy.model(stream), stream, lambda p: torch.optim.SGD(p, lr=0.1))
    assert len(taken) == copies


def test_other_data_from_begin_that_was_not_declared_is_refused(toy: Any) -> None:
    class Half(Operation):
        def begin(self, experience: Experience, learner: Any) -> Data:
            return experience.train.subset(torch.arange(2))

    stream = toy.stream()
    with pytest.raises(UsageError, match=r'needs = frozenset\(\{"replacement"\}\)'):
        toy.train(Method(Half()), toy.model(stream), stream)


def test_a_position_is_saved_without_what_it_has_not_and_loads_older_and_newer_ones() -> None:
    position = Position(experience=2, phase="training", step=7)
    assert "order" not in position.state()
    assert Position.load(position.state()) == position
    assert Position.load({"experience": 1, "phase": "before", "clock": 2.0, "something newer": 1}).clock == 2.0


def test_one_step_of_the_engine_and_an_update_is_a_loop_of_ones_own(toy: Any) -> None:
    from holdfast.core.learner import Learner
    from holdfast.core.needs import NEEDS

    class Mover:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

        def move(self) -> None:
            self.optimizer.step()

    stream = toy.stream()
    nets = [toy.model(stream), toy.model(stream)]
    batches = toy.batches(stream, 0, 6)
    engine = Engine(methods.der_plus_plus(), Learner(nets[0], seed=1), NEEDS)
    engine.begin(stream[0])
    update = Update(engine, Mover(torch.optim.SGD(nets[0].parameters(), lr=0.1)))
    for batch in batches:
        engine.step(batch, Now(engine.index), update)
    optimizer = torch.optim.SGD(nets[1].parameters(), lr=0.1)
    cl = Continual(nets[1], methods.der_plus_plus(), optimizer, seed=1)
    cl.begin(stream[0])
    for batch in batches:
        loss = torch.nn.functional.cross_entropy(nets[1](batch.inputs), batch.targets)
        optimizer.zero_grad()
        cl.backward(loss, batch.targets, inputs=batch.inputs)
        optimizer.step()
    assert toy.equal(*nets)


def test_no_module_of_the_training_imports_another_in_a_circle() -> None:
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("holdfast")
    modules = {name for name in graph.modules if name.startswith("holdfast.training.")}
    above: dict[str, set[str]] = {name: graph.find_modules_directly_imported_by(name) & modules for name in modules}
    while True:
        bottom = {name for name, needed in above.items() if not needed}
        if not bottom:
            break
        above = {name: needed - bottom for name, needed in above.items() if name not in bottom}
    assert not above, f"they import each other: {sorted(above)}"


def test_boundaries_and_sources_have_names_to_be_found_by() -> None:
    assert holdfast.boundaries.Every is holdfast.Every
    assert holdfast.sources.Arrays.__name__ == "Arrays"
