"""Sources of files: what is read is what stands there, a piece at a time, and reading goes on where it was."""

from __future__ import annotations

import gzip
import itertools
import json
import subprocess
import sys
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from holdfast import streams
from holdfast.core.errors import ConfigError, DataError
from holdfast.core.source import Source
from holdfast.sources import Csv, Folder, Parquet, Replay
from holdfast.streams import datasets


def table(path: Path, rows: int = 3000, words: bool = True) -> Path:
    generator = np.random.default_rng(0)
    numbers = generator.normal(size=(rows, 2))
    lines = ["a,day,b,label"]
    for number, (a, b) in enumerate(numbers.tolist()):
        day = ("mon", "tue")[number % 2] if words else str(number % 2)
        lines.append(f"{a!r},{day},{b!r},{('up', 'down', 'same')[number % 3]}")
    text = "\n".join(lines) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def rows_of(source: Source) -> tuple[torch.Tensor, torch.Tensor]:
    parts = [(batch.inputs, batch.targets) for batch in source.batches()]
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])  # type: ignore[misc]


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_a_text_file_gives_each_row_once_in_its_order(tmp_path: Path, name: str) -> None:
    source = Csv(str(table(tmp_path / name)), batch_size=100)
    assert source.input_shape == (4,)
    assert source.classes == 3
    x, y = rows_of(source)
    assert x.shape == (3000, 4)
    assert y[:6].tolist() == [2, 0, 1, 2, 0, 1]  # in the order of their names: down, same, up
    raw = np.random.default_rng(0).normal(size=(3000, 2))
    mean, deviation = raw[:1000].mean(0), raw[:1000].std(0)
    np.testing.assert_allclose(x[:, [0, 3]].numpy(), (raw - mean) / deviation, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("taken", [0, 1, 40, 93])
def test_a_text_file_is_read_on_from_a_position(tmp_path: Path, taken: int) -> None:
    path = str(table(tmp_path / "t.csv"))
    source = Csv(path, batch_size=32)
    whole = [batch.targets.tolist() for batch in Csv(path, batch_size=32).batches()]
    begun = [batch.targets.tolist() for batch in itertools.islice(source.batches(), taken)]
    other = Csv(path, batch_size=32)
    other.seek(json.loads(json.dumps(source.position())))
    assert begun + [batch.targets.tolist() for batch in other.batches()] == whole


def test_a_row_that_does_not_fit_is_told_with_its_line(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", rows=1500)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, "1.0,mon,word,up"]) + "\n")
    with pytest.raises(DataError, match=r"line 1502.*'b' is 'word'"):
        rows_of(Csv(str(path)))
    path.write_text("\n".join([*lines, "1.0,mon,2.0"]) + "\n")
    with pytest.raises(DataError, match="line 1502: 3 values for 4 columns"):
        rows_of(Csv(str(path), classes=["up", "down", "same"]))
    path.write_text("\n".join([*lines, "1.0,mon,2.0,sideways"]) + "\n")
    with pytest.raises(DataError, match="line 1502: unknown label 'sideways'"):
        rows_of(Csv(str(path), classes=["up", "down", "same"]))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "nan,1.0,2.0,up",
            r"line 2: column 'a' is 'nan'.*Fill them in before, or leave the column out with drop=\['a'\]",
        ),
        ("a,day,b,label", r"line 2: column 'a' is 'a'.*names of columns: a file with another header is another source"),
        ("word,1.0,2.0,up", r"line 2: column 'a' is 'word'.*first="),
        ("1.0,2.0,up", "line 2: 3 values for 4 columns"),
        ("1.0,2.0\r3.0,up,down", "line 2: this is no line of a table"),
        (f"1.0,2.0,{'3' * 140000},up", "line 2: this is no line of a table"),
    ],
)
def test_a_wrong_row_in_the_middle_is_told_with_advice_that_a_source_can_follow(
    tmp_path: Path, line: str, words: str
) -> None:
    path = table(tmp_path / "t.csv", rows=40, words=False)
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([head, *lines, line, *lines]) + "\n", newline="")
    with pytest.raises(DataError, match=words.replace("line 2", "line 42")):
        rows_of(Csv(str(path), classes=["up", "down", "same"], first=30, batch_size=8))


def test_fractions_are_no_labels_unless_somebody_names_them(tmp_path: Path) -> None:
    path = str(table(tmp_path / "t.csv", rows=40))
    with pytest.raises(DataError, match=r"labels in column 'b' are fractions.*kind=regression"):
        Csv(path, target="b")
    path = tmp_path / "grades.csv"  # type: ignore[assignment]
    Path(path).write_text("a,grade\n" + "\n".join(f"{row},{1 + row % 3 / 2}" for row in range(30)))
    assert Csv(str(path), classes=["1.0", "1.5", "2.0"]).classes == 3


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"path": "none.csv"}, DataError, "there is no file none.csv"),
        ({"target": "labell"}, ConfigError, "did you mean 'label'"),
        ({"drop": ["c"]}, ConfigError, "unknown column 'c'"),
        ({"features": ["label"]}, ConfigError, "no column is left"),
    ],
)
def test_wrong_arguments_of_a_table_are_refused(tmp_path: Path, wrong: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        Csv(**{"path": str(table(tmp_path / "t.csv")), **wrong})


def test_numbers_are_a_target_where_that_is_asked_for(tmp_path: Path) -> None:
    source = Csv(str(table(tmp_path / "t.csv")), target="b", drop=["label"], kind="regression", batch_size=500)
    x, y = rows_of(source)
    assert (x.shape, y.shape, source.classes) == ((3000, 3), (3000, 1), 1)
    np.testing.assert_allclose(y[:, 0].numpy(), np.random.default_rng(0).normal(size=(3000, 2))[:, 1], rtol=1e-5)


def test_a_followed_file_gives_lines_that_come_later_and_never_half_a_line(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", rows=20)
    source = Csv(str(path), classes=["up", "down", "same"], follow=True, timeout=30.0, batch_size=10)
    batches = source.batches()
    assert [len(next(batches).targets) for _ in range(2)] == [10, 10]
    with path.open("a") as file:
        file.write("1.0,mon,2.0,up\n1.0,tue,2.")
    assert len(next(batches).targets) == 1
    with path.open("a") as file:
        file.write("0,down\n")
    assert next(batches).targets.tolist() == [1]
    source.halt()
    assert list(batches) == []


WRITER = """
import sys, time
with open(sys.argv[1], "a") as file:
    file.write("".join(f"{number}.0,mon,{number}.5,up\\n" for number in range(20)) + sys.argv[2])
    file.flush()
    print("there", flush=True)
    time.sleep(600)
"""


def killed(program: str, *arguments: str) -> None:
    """Start a writer, and kill it once it says that it wrote what it is to leave behind."""
    with subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.kill()
    assert process.returncode == -9


@pytest.mark.parametrize("half", ["", "7.0,mon,8."])
@pytest.mark.parametrize("silence", ["end", "raise"])
def test_a_killed_writer_of_a_followed_file_is_an_end_or_an_error_after_every_whole_line(
    tmp_path: Path, half: str, silence: Any
) -> None:
    path = table(tmp_path / "t.csv", rows=20)
    source = Csv(str(path), classes=["up", "down", "same"], follow=True, timeout=0.3, on_silence=silence, batch_size=10)
    batches = source.batches()
    got = [next(batches)]
    killed(WRITER, str(path), half)
    left = "line 42 is only half there (10 bytes)"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if silence == "raise":
            with pytest.raises(DataError, match="no further line came into") as error:
                got.extend(batches)
            assert (left in str(error.value)) == bool(half)
        else:
            got.extend(batches)
            assert [left in str(one.message) for one in said] == [True] * bool(half)
    assert sum(len(batch.targets) for batch in got) == 40


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.write_text("a,day,b,label\n"), "has become shorter, 14 bytes"),
        (lambda path: (path.rename(path.with_suffix(".old")), table(path, rows=30)), "was replaced by another file"),
        (lambda path: path.unlink(), "was removed while it was followed"),
    ],
)
def test_a_followed_file_that_is_cut_replaced_or_removed_is_an_error(tmp_path: Path, change: Any, words: str) -> None:
    path = table(tmp_path / "t.csv", rows=20)
    source = Csv(str(path), classes=["up", "down", "same"], follow=True, timeout=30.0, batch_size=20)
    batches = source.batches()
    assert len(next(batches).targets) == 20
    change(path)
    with pytest.raises(DataError, match=words):
        next(batches)


def test_a_parquet_file_is_read_as_a_text_file_is(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.csv
    import pyarrow.parquet

    text = str(table(tmp_path / "t.csv"))
    pyarrow.parquet.write_table(pa.csv.read_csv(text), tmp_path / "t.parquet", row_group_size=700)
    one, other = Csv(text, batch_size=32), Parquet(str(tmp_path / "t.parquet"), batch_size=32)
    (x, y), (u, v) = rows_of(one), rows_of(other)
    assert torch.equal(y, v)
    torch.testing.assert_close(x, u)
    part = Parquet(str(tmp_path / "t.parquet"), batch_size=32)
    begun = list(itertools.islice(part.batches(), 30))
    again = Parquet(str(tmp_path / "t.parquet"), batch_size=32)
    again.seek(json.loads(json.dumps(part.position())))
    assert torch.equal(torch.cat([batch.targets for batch in [*begun, *again.batches()]]), v)


def test_arrays_are_replayed_in_the_order_of_time(tmp_path: Path) -> None:
    times = np.random.default_rng(1).permutation(50)
    np.savez(tmp_path / "a.npz", x=times[:, None].astype(float), y=times % 3, t=times)
    source = Replay(str(tmp_path / "a.npz"), time="t", batch_size=8)
    x, y = rows_of(source)
    assert x[:, 0].tolist() == list(range(50))
    assert source.classes == 3
    assert y.tolist() == [number % 3 for number in range(50)]
    with pytest.raises(DataError, match="unknown array 'z'"):
        Replay(str(tmp_path / "a.npz"), inputs="z")


# Folders ---------------------------------------------------------------------------------------------------


def put(folder: Path, name: str, first: int, rows: int = 5) -> None:
    """Write a file under another name, then rename it, as a writer should."""
    numbers = np.arange(first, first + rows)
    np.savez(folder / "half.tmp.npz", x=numbers[:, None].astype(np.float32), y=numbers % 4)
    (folder / "half.tmp.npz").rename(folder / name)


def test_a_folder_gives_each_file_once_also_those_that_come_later(tmp_path: Path) -> None:
    put(tmp_path, "0001.npz", 0)
    source = Folder(str(tmp_path), classes=4, timeout=30.0, batch_size=3)
    batches = source.batches()
    got = [next(batches), next(batches)]
    writer = threading.Thread(target=lambda: [put(tmp_path, "0002.npz", 5), (tmp_path / "END").touch()])
    writer.start()
    got += list(batches)
    writer.join()
    assert [batch.inputs[:, 0].tolist() for batch in got] == [[0, 1, 2], [3, 4], [5, 6, 7], [8, 9]]  # type: ignore[call-overload, index]


def test_a_folder_goes_on_at_the_row_where_it_was(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path, f"{number}.npz", 5 * number)
    (tmp_path / "END").touch()
    whole = [batch.inputs[:, 0].tolist() for batch in Folder(str(tmp_path), classes=4, batch_size=2).batches()]  # type: ignore[call-overload, index]
    for taken in (1, 4, len(whole)):
        first = Folder(str(tmp_path), classes=4, batch_size=2)
        begun = [batch.inputs[:, 0].tolist() for batch in itertools.islice(first.batches(), taken)]  # type: ignore[call-overload, index]
        second = Folder(str(tmp_path), classes=4, batch_size=2)
        second.seek(json.loads(json.dumps(first.position())))
        assert begun + [batch.inputs[:, 0].tolist() for batch in second.batches()] == whole  # type: ignore[call-overload, index]


def test_silence_in_a_folder_is_an_error_or_an_end(tmp_path: Path) -> None:
    put(tmp_path, "0.npz", 0)
    with pytest.raises(DataError, match=r"no new file came into .* for 0\.1 seconds.*END"):
        rows_of(Folder(str(tmp_path), classes=4, timeout=0.1))
    assert len(rows_of(Folder(str(tmp_path), classes=4, timeout=0.1, on_silence="end"))[1]) == 5


def test_a_file_that_stays_half_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.npz").write_bytes(b"PK half")
    with pytest.raises(DataError, match=r"0\.npz holds no arrays"):
        rows_of(Folder(str(tmp_path), classes=4, timeout=0.1, on_silence="end"))


@pytest.mark.parametrize("ending", ["npz", "csv", "parquet"])
@pytest.mark.parametrize("half", [False, True])
def test_a_killed_writer_of_a_folder_is_an_error_or_an_end_after_every_whole_file(
    tmp_path: Path, ending: str, half: bool
) -> None:
    """The second file is left half written under its own name, or under the one from which it would be renamed."""
    folder, whole = tmp_path / "folder", tmp_path / f"whole.{ending}"
    folder.mkdir()
    if ending == "npz":
        np.savez(whole, x=np.zeros((30, 4), np.float32), y=np.arange(30) % 3)
    else:
        written(table(tmp_path / "whole.csv", rows=30), ending)
    program = f"""
import os, sys, time
content = open({str(whole)!r}, "rb").read()
for name, bytes_ in (("1.{ending}", content), ("2.{ending}" if {half} else "2.half", content[:-40])):
    with open({str(folder)!r} + "/now.half", "wb") as file:
        file.write(bytes_)
    os.rename({str(folder)!r} + "/now.half", {str(folder)!r} + "/" + name)
print("there", flush=True)
time.sleep(600)
"""
    killed(program)
    settings: Any = {"pattern": f"*.{ending}", "classes": ["up", "down", "same"], "target": "label", "timeout": 0.3}
    for silence in ("raise", "end"):
        source, got = Folder(str(folder), on_silence=silence, batch_size=10, **settings), []
        # A table that breaks off is one with fewer lines, unless the last one has too few values.
        ends = silence == "end" and not half
        with nullcontext() if ends else pytest.raises(DataError, match=rf"2\.{ending}" if half else "no new file came"):
            got.extend(source.batches())
        assert sum(len(batch.targets) for batch in got) == 30


def written(text: Path, ending: str) -> Path:
    """A text file itself, or the same as a Parquet file."""
    if ending == "parquet":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.csv
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.csv.read_csv(text), text.with_suffix(".parquet"), row_group_size=8)
        text.unlink()
    return text.with_suffix(f".{ending}")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables_in_a_folder_have_the_columns_of_the_first(tmp_path: Path, ending: str) -> None:
    written(table(tmp_path / "1.csv", rows=30), ending)
    written(table(tmp_path / "2.csv", rows=20), ending)
    (tmp_path / "END").touch()
    source = Folder(str(tmp_path), f"*.{ending}", target="label", classes=["up", "down", "same"], batch_size=10)
    x, y = rows_of(source)
    assert x.shape == (50, 4)
    assert y[:3].tolist() == [0, 1, 2]
    assert torch.equal(x[:20], x[30:])


def test_experiences_of_a_stream_tell_where_the_data_change() -> None:
    from holdfast.sources import Experiences

    stream = streams.split(datasets.synthetic(classes=4), experiences=2)
    source = Experiences(stream, batch_size=16)
    assert source.drifts == [len(stream[0].train)]
    assert (source.input_shape, source.classes) == (tuple(stream.input_shape), 4)
