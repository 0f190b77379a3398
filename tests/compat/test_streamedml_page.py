"""The table of StreamedML's and InSituML's commands and classes: each row's last column runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from holdfast.cli import app

PAGE = Path(__file__).parents[2] / "docs" / "coming_from_streamedml.md"
TEXT = PAGE.read_text(encoding="utf-8")
BEGIN = "## Every command and class"
TABLE = TEXT.split("<!-- table: run by a test -->")[1].split("<!-- /table -->")[0]
ROWS = [
    [cell.strip() for cell in line.split(" | ")]
    for line in TABLE.splitlines()
    if line.startswith("| `") or "` |" in line
]
THEIRS = """
ContinualLearner estimate_fisher ewc_loss calculate_ref_gradients overwrite_grad overwrite_grad_layerwise EpisodicMemory
add_data_for_task add_data_e_field get_data_for_reference_gradient EpisodicMemoryDataset DeviceDataLoader MLP
AutoEncoder2D AutoEncoder3D split_gpus save_checkpoint MeshDimensionDataset CIFAR100Coarse SubDataset EfieldDataset
ModelTrainer ReplayTrainer plot_reconstructed_data plot_reconstructed_data_taskwise plot_heatmap_df PlotHelper
is_distributed maybe_initialize
maybe_ddp_wrap create_distributed_sampler StreamReader StreamBuffer AsyncStreamBuffer generate_toy8 td_gen td_arrays
TimeDependentTensorDataset ExperienceReplay TrainBatchBuffer StreamLoader RandomLoader DummyOpenPMDProducer VAE INN MMD
"""


@pytest.fixture(scope="module")
def prelude() -> dict[str, Any]:
    """The names that the lines above the table make."""
    block = re.search(r"```python\n(.*?)```", TEXT[TEXT.index(BEGIN) :], re.DOTALL)
    assert block
    names: dict[str, Any] = {}
    exec(block[1], names)
    return names


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where commands run, one after another."""
    return tmp_path_factory.mktemp("commands")


@pytest.mark.parametrize("name", THEIRS.split())
def test_each_of_their_names_has_a_row(name: str) -> None:
    assert any(re.search(rf"`[^`]*\b{name}\b", row[0]) for row in ROWS)


def test_every_row_has_a_line_that_runs() -> None:
    assert len(ROWS) > 50
    assert all(re.fullmatch(r"`[^`]+` \|", row[-1]) for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[re.sub(r"\W+", "_", row[0]).strip("_")[:50] for row in ROWS])
def test_the_line_of_a_row_runs(row: list[str], prelude: dict[str, Any], folder: Path, monkeypatch: Any) -> None:
    line = row[-1].removesuffix(" |").strip("`")
    monkeypatch.chdir(folder)
    if not line.startswith("holdfast "):
        exec(line, dict(prelude))
        return
    words = line.split()[1:]
    if words[0] == "show" and not (folder / words[1]).exists():
        made = next(row[-1] for row in ROWS if f"--out {words[1]}" in row[-1])
        assert CliRunner().invoke(app, made.removesuffix(" |").strip("`").split()[1:]).exit_code == 0
    if "--out" in words and (folder / words[-1]).exists():
        return  # made for a row before
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
