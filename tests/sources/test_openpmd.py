"""The reader's contract: the same dictionaries from HDF5, JSON and BP files, from a writer at work, and over SST."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import holdfast
from holdfast.core.errors import ConfigError, DataError
from holdfast.sources import OpenPMD, OpenPMDReader

pytest.importorskip("openpmd_api", reason="openPMD-api is not installed (the extra `stream` brings it)")

WRITER = textwrap.dedent(
    """
    import json, sys
    import numpy as np
    import openpmd_api as io

    def write(path, steps, die_after=None, wait=None, options=None):
        live = path.endswith((".sst", ".bp", ".bp4", ".bp5"))
        told = {"iteration_encoding": "variable_based"} if live and "%" not in path else {}
        engine = {"OpenTimeoutSecs": "20"}
        if path.endswith(".sst"):
            engine |= {"RendezvousReaderCount": "1", "QueueLimit": "1", "QueueFullPolicy": "Block"}
        if live:
            told["adios2"] = {"engine": {"parameters": engine}}
        series = io.Series(path, io.Access.create_linear, json.dumps({**told, **(options or {})}))
        for number in range(steps):
            if number == die_after:
                import os
                os.kill(os.getpid(), 9)
            if wait is not None:
                wait(number)
            iteration = series.snapshots()[10 * number]
            iteration.time = 0.5 * number
            generator = np.random.default_rng(number)
            for axis in "xy":
                component = iteration.meshes["E"][axis]
                values = generator.normal(size=(4, 6))
                component.reset_dataset(io.Dataset(values.dtype, values.shape))
                component.store_chunk(values)
            rho = iteration.meshes["rho"][io.Mesh_Record_Component.SCALAR]
            charge = generator.normal(size=7).astype(np.float32)
            rho.reset_dataset(io.Dataset(charge.dtype, charge.shape))
            rho.store_chunk(charge)
            electrons, count = iteration.particles["e"], 8 + 3 * number
            for record in ("position", "momentum"):
                for axis in "xyz":
                    values = generator.normal(size=count)
                    component = electrons[record][axis]
                    component.reset_dataset(io.Dataset(values.dtype, values.shape))
                    for first in range(0, count, 4):  # as several processes of a simulation would
                        part = values[first : first + 4].copy()
                        component.store_chunk(part, [first], part.shape)
                        series.flush() if not live else None
            weighting = electrons["weighting"][io.Record_Component.SCALAR]
            weighting.reset_dataset(io.Dataset(np.dtype("float32"), [count]))
            weighting.make_constant(2.5)
            iteration.close()
        series.close()

    if __name__ == "__main__":
        arguments = json.loads(sys.argv[1])
        write(**arguments)
    """
)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("writer") / "writer.py"
    path.write_text(WRITER)
    return path


def start(writer: Path, **arguments: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(writer), json.dumps(arguments)], stderr=subprocess.DEVNULL)


def written(writer: Path, path: Path, steps: int = 3) -> str:
    """A file that is complete."""
    process = start(writer, path=str(path), steps=steps)
    assert process.wait(60) == 0
    return str(path)


def plain(value: Any) -> Any:
    """A dictionary of the reader with arrays as lists, to compare."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in sorted(value.items())}
    if hasattr(value, "np_shape"):
        return (np.asarray(value.data).dtype.str, np.asarray(value.data).tolist(), value.np_shape)
    return value


PATHS = {"PYTHONPATH": os.pathsep.join([str(Path(holdfast.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])}
RECORDS = {"meshes": ["E", "rho"], "particles": {"e": ["position", "momentum", "weighting"]}}


@pytest.fixture(scope="module")
def expected(writer: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    path = written(writer, tmp_path_factory.mktemp("truth") / "x_%T.json")
    return [plain(one) for one in OpenPMDReader(path, RECORDS, timeout=30)]


def test_what_was_written_is_read(expected: list[Any]) -> None:
    assert [one["iteration_index"] for one in expected] == [0, 10, 20]
    assert [one["time"] for one in expected] == [0.0, 0.5, 1.0]
    generator = np.random.default_rng(1)
    assert expected[1]["meshes"]["E"]["x"][1] == generator.normal(size=(4, 6)).tolist()
    assert expected[2]["particles"]["e"]["position"]["z"][2] == (14,)
    assert expected[1]["particles"]["e"]["weighting"][1] == [2.5] * 11


@pytest.mark.parametrize("name", ["x_%T.h5", "x_%06T.h5", "x.bp", "x.bp4", "x.bp5"])
def test_every_format_gives_the_same_dictionaries(writer: Path, tmp_path: Path, name: str, expected: list[Any]) -> None:
    path = written(writer, tmp_path / name)
    assert [plain(one) for one in OpenPMDReader(path, RECORDS, timeout=30)] == expected


@pytest.mark.parametrize("name", ["x.bp5", "x.sst"])
def test_a_writer_at_work_gives_the_same_dictionaries(
    writer: Path, tmp_path: Path, name: str, expected: list[Any]
) -> None:
    process = start(writer, path=str(tmp_path / name), steps=3)
    reader = OpenPMDReader(str(tmp_path / name), RECORDS, timeout=40)
    try:
        assert [plain(one) for one in reader] == expected
        assert process.wait(30) == 0
    finally:
        reader.close()
        process.kill()
        process.wait()


@pytest.mark.slow
def test_two_streams_that_are_opened_one_after_the_other_go_in_lock_step(writer: Path, tmp_path: Path) -> None:
    paths = [str(tmp_path / "a.sst"), str(tmp_path / "b.sst")]
    writers = [start(writer, path=path, steps=4) for path in reversed(paths)]
    reader = OpenPMDReader(paths, {"meshes": ["E"]}, timeout=40)
    try:
        assert [one["iteration_index"] for one in reader] == [0, 10, 20, 30]
    finally:
        reader.close()
        for process in writers:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.sst", "x.bp", "x.bp4"])
def test_a_writer_that_is_killed_is_an_error_after_what_it_had_written(writer: Path, tmp_path: Path, name: str) -> None:
    process = start(writer, path=str(tmp_path / name), steps=5, die_after=2)
    with OpenPMD(str(tmp_path / name), ["meshes/E"], follow=True, timeout=20.0) as source:
        got: list[Any] = []
        begun = time.monotonic()
        # The last is said of a writer that was killed before its index was whole, for which ADIOS2 waits, too.
        says = rf"{name} broke off after iteration|no iteration of .*{name} came for 20 sec|{name} cannot be read"
        with pytest.raises(DataError, match=says):
            got.extend(source.position()["piece"]["iteration"] for _ in source.batches())
    assert time.monotonic() - begun < 60
    assert process.wait(30) == -9
    assert got in ([], [0], [0, 10])


READER = textwrap.dedent(
    """
    import sys, time
    from holdfast.sources import OpenPMD
    for number, batch in enumerate(OpenPMD(sys.argv[1], ["meshes/E"], follow=True, timeout=40.0).batches()):
        print(number, flush=True)
        time.sleep(60 * number)
    """
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.sst", "x.bp"])
def test_a_writer_goes_on_to_its_end_where_its_reader_is_killed(writer: Path, tmp_path: Path, name: str) -> None:
    process = start(writer, path=str(tmp_path / name), steps=6)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(tmp_path / name)], stdout=subprocess.PIPE, env={**os.environ, **PATHS}
    )
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline()
        reader.kill()
        reader.wait()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    if name == "x.bp":  # a file has everything for the next reader; a stream had it for the one that was killed
        with OpenPMD(str(tmp_path / name), ["meshes/E"]) as source:
            assert len(list(source.batches())) == 6


@pytest.mark.parametrize("name", ["x.sst", "x.bp"])
def test_a_writer_that_never_comes_is_an_error_after_the_timeout(tmp_path: Path, name: str) -> None:
    reader = OpenPMDReader(str(tmp_path / name), timeout=0.5)
    begun = time.monotonic()
    told = rf"{name} (came|cannot be read)|no iteration of .*{name} came for 0.5 seconds"
    with pytest.raises(DataError, match=told):
        next(iter(reader))
    reader.close()
    assert time.monotonic() - begun < 20


@pytest.mark.slow
def test_a_reader_waits_for_a_file_that_is_still_to_come(writer: Path, tmp_path: Path, expected: list[Any]) -> None:
    reader = OpenPMDReader(str(tmp_path / "x.bp"), RECORDS, timeout=60)
    begun = iter(reader)
    process: list[Any] = []
    later = threading.Timer(1.0, lambda: process.append(start(writer, path=str(tmp_path / "x.bp"), steps=3)))
    later.start()
    assert [plain(one) for one in begun] == expected
    assert process[0].wait(30) == 0
    reader.close()


# What is chosen --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(writer: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(writer, tmp_path_factory.mktemp("recorded") / "x_%T.h5", steps=4)


def test_everything_is_read_where_nothing_is_named(recorded: str) -> None:
    first = next(iter(OpenPMDReader(recorded, timeout=30)))
    assert set(first["meshes"]) == {"E", "rho"}
    assert set(first["particles"]["e"]) == {"position", "momentum", "weighting"}
    data, shape, _ = first["meshes"]["E"]["x"]
    assert data.shape == shape == (4, 6)


def test_records_that_are_not_there_are_told_once_and_left_out(recorded: str) -> None:
    reader = OpenPMDReader(
        recorded, {"meshes": ["E", "B"], "particles": {"e": ["spin"], "i": ["position"]}}, timeout=30
    )
    with pytest.warns(UserWarning, match="it is left out") as warned:
        iterations = list(reader)
    assert iterations[3]["missing"] == ["meshes/B", "particles/e/spin", "particles/i"]
    assert len(warned) == 3
    assert set(iterations[0]["meshes"]) == {"E"}


def test_records_that_are_no_tree_are_refused(recorded: str) -> None:
    with pytest.raises(ConfigError, match="mesh"):
        OpenPMDReader(recorded, {"mesh": ["E"]})
    with pytest.raises(ConfigError, match=r"records\.meshes is 'E'"):
        OpenPMDReader(recorded, {"meshes": "E"})


def test_iterations_outside_the_range_are_not_read(recorded: str) -> None:
    reader = OpenPMDReader(recorded, {"meshes": ["rho"]}, timeout=30, start=10, stop=30)
    assert [one["iteration_index"] for one in reader] == [10, 20]


@pytest.mark.parametrize("distribution", ["blocks", "chunks"])
def test_ranks_share_every_value_between_them(writer: Path, tmp_path: Path, distribution: Any) -> None:
    path = written(writer, tmp_path / "x.bp5")
    whole = [one["particles"]["e"]["position"]["x"].data for one in OpenPMDReader(path, RECORDS, timeout=30)]
    parts: list[list[Any]] = []
    for rank in range(2):
        reader = OpenPMDReader(path, RECORDS, timeout=30, rank=rank, ranks=2, distribution=distribution)
        parts.append([one["particles"]["e"]["position"]["x"].data for one in reader])
    for every, one, other in zip(whole, *parts):
        assert len(one)
        assert len(other)
        np.testing.assert_array_equal(np.sort(every), np.sort(np.concatenate([one, other])))


# As batches ------------------------------------------------------------------------------------------------


def taken(source: OpenPMD, most: int | None = None) -> Iterator[Any]:
    return itertools.islice(source.batches(), most)


def test_particles_are_rows_and_the_inputs_are_learned_where_no_target_is_named(recorded: str) -> None:
    source = OpenPMD(recorded, ["particles/e/position", "particles/e/momentum/x"], standardise=False, batch_size=6)
    batches = list(taken(source))
    assert [len(batch.targets) for batch in batches] == [6, 2, 6, 5, 6, 6, 2, 6, 6, 5]
    assert batches[0].inputs.shape == (6, 4)
    assert torch.equal(batches[0].inputs, batches[0].targets)


def test_fields_are_a_row_for_each_iteration(recorded: str) -> None:
    source = OpenPMD(recorded, ["meshes/E"], targets=["meshes/rho"], batch_size=6)
    batches = list(taken(source))
    assert [tuple(batch.inputs.shape) for batch in batches] == [(1, 2, 4, 6)] * 4
    assert [tuple(batch.targets.shape) for batch in batches] == [(1, 1, 7)] * 4
    assert abs(float(batches[0].inputs.mean())) < 1e-6


def test_clouds_are_as_many_particles_of_each_iteration(recorded: str) -> None:
    source = OpenPMD(recorded, ["particles/e/position"], rows="iterations", points=5)
    assert [tuple(batch.inputs.shape) for batch in taken(source)] == [(1, 5, 3)] * 4
    several = OpenPMD(recorded, ["particles/e/position"], rows="iterations", points=4, clouds=2, batch_size=2)
    assert [tuple(batch.inputs.shape) for batch in taken(several)] == [(2, 4, 3)] * 4
    with pytest.raises(DataError, match="8 particles for 9 points"):
        list(taken(OpenPMD(recorded, ["particles/e/position"], rows="iterations", points=9)))


@pytest.mark.parametrize("most", [1, 4, 7])
def test_a_recording_is_read_on_from_a_position(recorded: str, most: int) -> None:
    def make() -> OpenPMD:
        return OpenPMD(recorded, ["particles/e/position"], batch_size=5)

    whole = [batch.inputs for batch in taken(make())]
    first = make()
    begun = [batch.inputs for batch in taken(first, most)]
    second = make()
    second.seek(json.loads(json.dumps(first.position())))
    rest = [batch.inputs for batch in taken(second)]
    assert all(torch.equal(one, other) for one, other in zip([*begun, *rest], whole, strict=True))
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        (["E"], ConfigError, "'E' is no path of a record"),
        ([], ConfigError, "no record is named"),
        (["meshes/E", "meshes/rho"], DataError, "have the shapes"),
        (["meshes/B"], DataError, "has no meshes/B"),
    ],
)
@pytest.mark.filterwarnings("ignore:iteration")
def test_records_that_make_no_batch_are_refused(recorded: str, inputs: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        next(OpenPMD(recorded, inputs).batches())


def test_a_series_of_a_published_simulation_is_read(request: pytest.FixtureRequest) -> None:
    import os

    folder = Path(os.environ.get("HOLDFAST_DATA", "../shared/data")) / "openpmd" / "fbpic_lwfa_runA"
    if not folder.is_dir():
        pytest.skip("the recording of a laser wakefield is not in HOLDFAST_DATA")
    source = OpenPMD(str(folder / "data%08T.h5"), ["meshes/E/z"], batch_size=1)
    shapes = [tuple(batch.inputs.shape) for batch in taken(source)]
    assert shapes == [(1, 1, 3, 50, 200)] * 6
