"""The page `where_to_find.md`: a row for everything the three tools have, and only names that exist."""

import re
from pathlib import Path

import pytest

import holdfast
from holdfast import memory, models
from holdfast.config import kinds
from holdfast.config.build import resolve
from holdfast.config.compose import compose
from holdfast.core.errors import ConfigError

PAGE = Path(__file__).parents[1] / "docs" / "where_to_find.md"
OPERATIONS = """
CrossEntropy MSE WeightedCrossEntropy CrossEntropyProjection RandomMemoryUpdater NCMMemoryUpdater KnowledgeDistillation
PodLoss MIRMemoryUpdater LossApprox LossLandscape Finetune WeightAlign BIC DirichletUncertaintyLoss DirichletKLLoss
DuplicateNetworkBackbone FreezeNetworkBackbone
"""
ALGORITHMS = "Finetuning Fix Random Independent LwF EWC DER DERpp CLPUDERpp CBP HAT AdaHAT FGAdaHAT WSN"
SYNAPSE = """
Synapse(model) backward synapse.rehearsal ER AGEM SI ReservoirBuffer MultiLinear IndexedCrossEntropyLoss
IndexedAccuracyScore TaskDict python
"""
THERE = [f"{name}Operation" for name in OPERATIONS.split()] + ALGORITHMS.split() + SYNAPSE.split()
"""What the tools call each thing they have."""

LINES = PAGE.read_text(encoding="utf-8").splitlines()
CELLS = [[cell.strip() for cell in line.split("|")[1:-1]] for line in LINES if line.startswith("| ")]
ROWS = {there: [there, *rest] for there, *rest in CELLS if there not in ("there", "---")}
NOT_HERE = {"`CLPUDERpp`"}


def names(text):
    """What stands in backquotes."""
    return re.findall(r"`([^`]+)`", text)


def exists(name):
    """Whether one of our names is one: of a namespace, of the package, or a change of a configuration."""
    kind, _, rest = name.partition(".")
    if kind in ("methods", "operations", "streams", "datasets"):
        return rest in kinds.names(kind)
    if kind == "models":
        return rest in kinds.names("models") or hasattr(models, rest)
    if kind == "memory":
        return rest in memory.__all__
    if kind == "holdfast":
        return hasattr(holdfast, rest)
    return None


def has_a_row(name):
    return any(re.search(rf"`{re.escape(name)}\b" if name[-1] != ")" else re.escape(name), there) for there in ROWS)


def test_everything_the_tools_have_has_a_row():
    assert [name for name in THERE if not has_a_row(name)] == []


def test_every_row_says_where_it_is_and_what_differs():
    for there, (_, here, differences) in ROWS.items():
        assert differences, there
        assert here == "not here" if there in NOT_HERE else names(here) or "run_folder" in here, there


OURS = sorted({name for line in LINES for name in names(line) if exists(name) is not None})


def test_most_rows_lead_to_a_name_of_ours():
    assert sum(any(exists(name) is not None for name in names(here)) for _, here, _ in ROWS.values()) > 30


def test_every_name_on_our_side_exists():
    assert [name for name in OURS if not exists(name)] == []


CHANGES = sorted({name for _, here, _ in ROWS.values() for name in names(here) if re.fullmatch(r"[\w.]+=\w+", name)})


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_configuration_on_our_side_is_one(change):
    key, value = change.split("=")
    if "." in key or key in ("experiment", "criterion"):
        more = ["stream.validation=0.1", "stream.paradigm=task"] if "experiment" not in key else []
        assert resolve(compose(None, [*more, change]).config)
        return
    row = next(here for _, here, _ in ROWS.values() if change in names(here))
    operation = next(name for name in names(row) if name.startswith("operations."))
    name = operation.split(".")[1]
    given = {"name": name, key: value} | ({"per_class": 3} if name == "remember_exemplars" else {})
    config = compose(None, []).config | {"method": {"operations": [given]}, "references": []}
    resolve(config)
    with pytest.raises(ConfigError):
        resolve(config | {"method": {"operations": [{**given, key: value + "zzz"}]}})
