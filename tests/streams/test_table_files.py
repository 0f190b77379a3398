"""Tables as spreadsheets and programs write them: marks, delimiters, decimal commas, words, dates, gaps, groups."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from holdfast.core.errors import ConfigError, DataError, HoldfastError
from holdfast.streams import grouped, split
from holdfast.streams.datasets import csv, frame, parquet
from holdfast.streams.datasets.columns import dates
from holdfast.streams.datasets.encoding import Encoding
from holdfast.streams.datasets.text import from_lists, read_table


@pytest.fixture
def table(tmp_path):
    def write(text, name="t.csv", encoding="utf-8"):
        (tmp_path / name).write_bytes(text.encode(encoding))
        return str(tmp_path / name)

    return write


def inputs_of(data) -> list[list[float]]:
    return data.gather(torch.arange(len(data))).inputs.tolist()


ROWS = [(1.5, -20.25, "x"), (2.0, 3.5, "y"), (1000.5, 4.0, "x"), (3.25, 5.0, "y")]
WANTED = [[1.5, -20.25], [2.0, 3.5], [1000.5, 4.0], [3.25, 5.0]]


# How files are written


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", " "])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("header", [True, False])
def test_delimiters_and_encodings_are_found_out(table, delimiter, encoding, header):
    names = ["größe", "wert", "label"]
    lines = [delimiter.join(names)] * header + [delimiter.join(map(str, row)) for row in ROWS]
    data = csv(table("\r\n".join(lines) + "\r\n", encoding=encoding), test_fraction=0.0, header=header)
    assert inputs_of(data.train) == WANTED
    assert data.class_names == ("x", "y")
    assert data.table.outputs == (("größe", "wert") if header else ("0", "1"))


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
@pytest.mark.parametrize("thousands", [False, True])
def test_decimal_commas_are_read_where_commas_stand_in_numbers(table, delimiter, thousands):
    def written(value):
        text = f"{value:,}" if thousands else f"{value}"
        return text.replace(",", "_").replace(".", ",").replace("_", ".")

    lines = [delimiter.join([written(a), written(b), c]) for a, b, c in ROWS]
    data = csv(table("\n".join([delimiter.join("abc"), *lines])), test_fraction=0.0)
    assert inputs_of(data.train) == WANTED
    assert data.table.decimal == ","


def test_dots_that_may_be_decimal_or_not_are_refused_and_a_written_mark_decides(table):
    path = table("a;b;label\n1.960;1,5;x\n2.125;2,5;y\n")
    with pytest.raises(DataError, match=r"line 2: other columns have decimal commas, and column 'a' is '1\.960'"):
        csv(path, test_fraction=0.0)
    assert inputs_of(csv(path, test_fraction=0.0, decimal=",").train)[0] == [1960, 1.5]
    with pytest.raises(DataError, match=r"column 'a' is '-0\.161'"):
        csv(table("a;b;label\n-0.161;1,5;x\n2;2,5;y\n"), test_fraction=0.0)
    quoted = table('a,label\n"1,5",x\n"2,5",y\n')
    with pytest.raises(DataError, match="'1,5'"):  # a comma stands between values too: it may group digits
        csv(table('a,label\n"1,5",x\n2,y\n', "other.csv"), test_fraction=0.0)
    assert inputs_of(csv(quoted, test_fraction=0.0, decimal=",").train) == [[1.5], [2.5]]


def test_lines_are_counted_as_an_editor_does(table):
    with pytest.raises(DataError, match=r"t\.csv, line 6: column 'a' is 'oops'"):
        csv(table('a,b,label\n1,"two\nlines",x\n\n2,z,y\noops,z,x\n'), test_fraction=0.0)


def test_the_index_that_pandas_writes_is_no_feature_and_unnamed_columns_have_a_name(table):
    with pytest.warns(UserWarning, match="counts the lines"):
        data = csv(table(",a,label\n0,5,x\n1,6,y\n2,7,x\n"), test_fraction=0.0)
    assert data.table.outputs == ("a",)
    data = csv(table("a,,label,\n5,1,x,\n6,1,y,\n"), target="label", test_fraction=0.0)
    assert data.table.outputs == ("a", "column 2")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a b\n1 2\n\0\n", "not text"),
        ("alone\n1\n2\n", "one column only"),
        ("a,a,label\n1,2,x\n3,4,y\n", "two columns called 'a'"),
        ("a,label\n1_000,x\n2,y\n", "'1_000'"),
        ("a,label\ninf,x\n2,y\n", "'inf'"),
        ("a,label\n1,x\nsmall,y\n", r"line 3: column 'a' is 'small'.*categories=\['a'\]"),
        ("a,label\n01/02/2024,x\n03/04/2024,y\n", "day and month"),
        ("a,label\n,x\n,y\n", r"line 2: column 'a' is ''"),
        ("a,label\n1,x\n2,\n", r"line 3: column 'label' is ''"),
        ("label\n", "no samples"),
        ("a,label\n" + "".join(f"w{n},x\n" for n in range(101)), "101 different words.*drop"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_names_the_place_and_the_remedy(table, text, word):
    with pytest.raises(DataError, match=word):
        csv(table(text), test_fraction=0.0)


# Columns


def test_columns_are_chosen_by_features_or_by_what_is_dropped(table):
    path = table("a,b,id,label\n1,2,77,x\n3,4,78,y\n")
    assert csv(path, drop=["id"], test_fraction=0.0).table.outputs == ("a", "b")
    assert csv(path, features=["b", "a"], test_fraction=0.0).table.outputs == ("b", "a")
    for wrong, said in (
        ({"drop": ["idd"]}, "did you mean 'id'"),
        ({"features": ["label"]}, "'label' is a feature"),
        ({"drop": ["a", "b", "id"]}, "no column left"),
        ({"period": "month"}, "Name it with by="),
    ):
        with pytest.raises(ConfigError, match=said):
            csv(path, **wrong)


def test_words_become_a_feature_each_and_numbers_too_where_it_is_written(table):
    path = table("colour,code,label\nred,1,x\nblue,2,y\nred,1,x\ngreen,3,y\n")
    data = csv(path, test_fraction=0.0)
    assert data.table.outputs == ("colour=blue", "colour=green", "colour=red", "code")
    assert inputs_of(data.train)[1] == [1, 0, 0, 2]
    coded = csv(path, test_fraction=0.0, categories=["code"])
    assert coded.table.outputs[3:] == ("code=1", "code=2", "code=3")


def test_words_that_come_later_are_named_and_zeros(table):
    path = table("colour,label\n" + "red,x\nblue,y\n" * 4 + "green,x\n")
    with pytest.warns(UserWarning, match="'green' of column 'colour'"):
        data = csv(path, test_fraction=0.1, test_at="end")
    assert data.table.outputs == ("colour=blue", "colour=red")
    assert inputs_of(data.test) == [[0, 0]]


@pytest.mark.parametrize(
    ("words", "day"),
    [
        (["2024-01-31", "1969-12-31"], [19753, -1]),
        (["2024/01/31", "1970/01/02"], [19753, 1]),
        (["31.01.2024", "02.01.1970"], [19753, 1]),
        (["31/01/2024", "02/01/1970"], [19753, 1]),
        (["01/31/2024", "01/02/1970"], [19753, 1]),
        (["2024-01", "1970-02"], [19723, 31]),
        (["2024-01-31 12:00", "1970-01-02T06:00:00Z"], [19753.5, 1.25]),
    ],
)
def test_dates_become_days(table, words, day):
    data = csv(table("when,label\n" + "".join(f"{word},{n % 2}\n" for n, word in enumerate(words))), test_fraction=0.0)
    assert inputs_of(data.train) == [[value] for value in day]
    assert data.table.features[0].kind == "date"


def test_words_that_only_look_like_dates_are_none():
    assert dates(np.array(["2024-13-01"], dtype=object)) is None
    assert dates(np.array(["2024-01-01", "soon"], dtype=object)) is None


# Missing values


def test_gaps_are_filled_with_the_mean_of_the_training_lines_or_their_lines_dropped(table):
    text = "a,colour,label\n1,red,x\n3,blue,y\n,red,x\n5,NA,y\n8,red,x\n100,blue,y\n"
    with pytest.raises(DataError, match=r"line 4: column 'a' is ''.*missing='mean'"):
        csv(table(text))
    data = csv(table(text), missing="mean", test_fraction=0.2, test_at="end")
    assert data.table.outputs == ("a", "colour=blue", "colour=red")
    assert inputs_of(data.train)[2] == [pytest.approx((1 + 3 + 5 + 8) / 4), 0, 1]
    assert inputs_of(data.train)[3] == [5, 0.25, 0.75]
    with pytest.warns(UserWarning, match="2 of 6 rows"):
        assert len(csv(table(text), missing="drop", test_fraction=0.0).train) == 4
    with pytest.raises(DataError, match="a have no value"):
        csv(table("a,b,label\n,1,x\n,2,y\n"), missing="mean", test_fraction=0.0)
    with pytest.raises(DataError, match="every row"):
        csv(table("a,b,label\n,1,x\n,2,y\n"), missing="drop", test_fraction=0.0)


# Groups


MONTHS = "day,heat,colour,label\n" + "".join(
    f"2024-{month:02d}-{day:02d},{10 * month + day},{'red' if month < 3 or day % 2 else 'blue'},{'xyz'[day % 3]}\n"
    for month in (2, 1, 3)
    for day in range(1, 9)
)


def test_a_period_of_dates_makes_an_experience_each_in_order_of_time(table):
    with pytest.warns(UserWarning, match="'blue'"):
        data = csv(table(MONTHS), by="day", period="month")
    assert data.table.outputs == ("heat", "colour=red")
    stream = grouped(data)
    assert [experience.name for experience in stream] == ["2024-01", "2024-02", "2024-03"]
    for number, experience in enumerate(stream, start=1):
        assert (len(experience.train), len(experience.test)) == (6, 2)
        for part in (experience.train, experience.test):
            assert all(10 * number < row[0] < 10 * number + 9 for row in inputs_of(part))
    assert stream.classes == 3
    assert stream.class_names == ("x", "y", "z")
    assert stream.description["extra"]["names"] == ["2024-01", "2024-02", "2024-03"]


@pytest.mark.parametrize(
    ("values", "period", "names"),
    [
        ([10, 2, 10, 2], None, ("2", "10")),
        (["late", "early", "late", "early"], None, ("late", "early")),
        (["2024-01-31", "2023-12-01", "2024-01-31", "2024-03-01"], None, ("2023-12-01", "2024-01-31", "2024-03-01")),
        (["2024-01-31", "2023-12-01", "2024-01-31", "2024-03-01"], "year", ("2023", "2024")),
        (["2024-01-31", "2023-12-01", "2024-01-31", "2024-05-01"], "quarter", ("2023 Q4", "2024 Q1", "2024 Q2")),
        (["2024-01-01", "2023-12-31", "2024-01-07", "2024-01-08"], "week", ("2023 W52", "2024 W01", "2024 W02")),
        (["2024-01-01 10:20", "2024-01-01 10:50", "2024-01-01 09:00"], "hour", ("2024-01-01T09", "2024-01-01T10")),
    ],
)
def test_groups_are_the_values_of_a_column_or_its_periods(values, period, names):
    columns = {"heat": np.arange(float(len(values))), "when": values, "label": [0, 1] * (len(values) // 2) + [0] * 9}
    columns["label"] = columns["label"][: len(values)]
    data = frame(columns, "label", by="when", period=period, test_fraction=0.0)
    assert data.group_names == names
    assert [experience.name for experience in grouped(data)] == list(names)
    assert "when" not in data.table.outputs


def test_classes_are_one_class_in_all_groups_and_numbered_as_they_appear(table):
    text = "month,heat,gas\n" + "".join(
        f"{month},{n},{gas}\n" for month, gases in ((1, "TE"), (2, "EA")) for n in range(4) for gas in gases
    )
    stream = grouped(csv(table(text), by="month", target="gas", test_fraction=0.0), paradigm="class")
    assert stream.class_names == ("E", "T", "A")
    assert [experience.classes for experience in stream] == [(0, 1), (0, 2)]
    tasks = grouped(csv(table(text), by="month", target="gas", test_fraction=0.0), paradigm="task")
    assert [experience.task for experience in tasks] == [0, 1]


def test_features_are_standardised_by_all_training_lines_or_those_of_the_first_group(table):
    pooled = csv(table(MONTHS), by="day", period="month", categories=None, drop=["colour"])
    first = csv(table(MONTHS), by="day", period="month", drop=["colour"], standardise="first")
    every = torch.tensor(inputs_of(pooled.train))
    assert pooled.prepare.mean == pytest.approx([float(every.mean())])
    assert first.prepare.mean == pytest.approx([float(every[first.groups == 0].mean())])
    seen = first.prepare(first.train.gather((first.groups == 0).nonzero().flatten()).inputs)
    assert float(seen.mean()) == pytest.approx(0, abs=1e-5)


def test_a_data_set_without_groups_or_dates_is_refused(table):
    path = table("a,b,label\n1,2,x\n3,4,y\n")
    with pytest.raises(ConfigError, match="does not come in groups"):
        grouped(csv(path, test_fraction=0.0))
    with pytest.raises(ConfigError, match="has no dates"):
        csv(path, by="a", period="month")
    with pytest.raises(DataError, match="line 2"):
        csv(table("a,b,label\n,2,x\n3,4,y\n"), by="a")


# Frames, Parquet, and reading again


def test_frames_of_pandas_with_dates_words_and_gaps_are_read_as_their_file_is(table, tmp_path):
    pandas = pytest.importorskip("pandas")
    when = pandas.date_range("2024-01-01", periods=12, freq="10D")
    columns = {"when": when, "flag": [True, False] * 6, "size": pandas.Categorical(list("sml") * 4), "y": [1, 2] * 6}
    made = pandas.DataFrame({**columns, "heat": [1.0, None, 3.0] * 4})
    made.to_csv(tmp_path / "t.csv", index=False)
    one = frame(made, "y", by="when", period="month", missing="mean")
    two = csv(str(tmp_path / "t.csv"), "y", by="when", period="month", missing="mean", categories=["size"])
    assert one.group_names == two.group_names == ("2024-01", "2024-02", "2024-03", "2024-04")
    assert one.table.outputs == ("flag", "size=l", "size=m", "size=s", "heat")
    place = [two.table.outputs.index(name) for name in one.table.outputs[1:]]
    assert [row[1:] for row in inputs_of(one.train)] == [[row[p] for p in place] for row in inputs_of(two.train)]
    with pytest.raises(DataError, match="'heat'"):
        frame(made, "y")


def test_lists_of_a_programs_own_format_are_numbers_words_and_dates():
    import datetime

    raw = from_lists(
        ["n", "w", "d"],
        [[1, None, 2.5], ["a", None, "b"], [datetime.date(2024, 1, 2), None, datetime.date(2024, 1, 3)]],
        "x",
    )
    assert np.isnan(raw.values[0]).tolist() == [False, True, False]
    assert raw.values[1].tolist() == ["a", None, "b"]
    assert str(raw.values[2][2]) == "2024-01-03T00:00:00"


def test_a_parquet_file_is_read_as_its_text_is(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    made = pandas.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "word": list("pqpq"), "y": list("xyxy")})
    made.to_parquet(tmp_path / "t.parquet")
    assert inputs_of(parquet(str(tmp_path / "t.parquet")).train) == inputs_of(frame(made, "y").train)


def test_parquet_without_its_library_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"holdfast\[parquet\]"):
        parquet(str(tmp_path / "t.parquet"))


def test_another_table_is_read_the_same_way_by_the_encoding_that_was_kept(table):
    data = csv(table("a;colour;label\n1,5;red;x\n2,5;blue;y\n;red;x\n"), missing="mean", test_fraction=0.0)
    again = Encoding.from_description(data.table.describe())
    assert again == data.table
    with_gaps = read_table(__import__("pathlib").Path(table("colour;label;a\nred;x;\nlilac;y;4,5\n", "new.csv")))
    assert again.matrix(with_gaps).tolist() == [[2.0, 0.0, 1.0], [4.5, 0.0, 0.0]]
    assert again.unseen(with_gaps) == {"colour": ["lilac"]}


# Anything


def test_random_tables_are_taken_or_refused_with_a_sentence(table):
    rng = np.random.default_rng(0)
    kinds = [["1", "2.5", "-3", "0"], ["red", "ß", '"q"'], ["2024-01-31", "2023-05-06"], ["1", "1", "red", " 7 "]]
    rare = ["", "NA", "1,5", "x;y", "1e400", "inf", "soon", "1.234"]
    refused = []
    for _ in range(200):
        width, height, mark = int(rng.integers(1, 5)), int(rng.integers(0, 12)), str(rng.choice([",", ";", "\t"]))
        pools = [kinds[int(rng.integers(4))] for _ in range(width)]
        body = [[str(rng.choice(rare if rng.random() < 0.02 else pool)) for pool in pools] for _ in range(height)]
        if rng.random() < 0.05 and body:
            body[-1].append("more")
        lines = [[f"c{n}" for n in range(width)], *body]
        text = str(rng.choice(["\n", "\r\n"])).join(mark.join(row) for row in lines)
        options = {
            "missing": str(rng.choice(["refuse", "mean", "drop"])),
            "kind": str(rng.choice(["classification", "regression"])),
        }
        if rng.random() < 0.3:
            options["by"] = "c0"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                data = csv(table(text, encoding=str(rng.choice(["utf-8", "utf-8-sig", "cp1252"]))), **options)
                stream = (
                    grouped(data) if data.groups is not None else split(data, experiences=1) if data.classes else None
                )
            except HoldfastError as error:
                refused.append(str(error))
                continue
        assert bool(data.prepare(data.train.gather(torch.arange(len(data.train))).inputs).isfinite().all())
        assert stream is None or len(stream) >= 1
    assert all(said.endswith(".") for said in refused), [said for said in refused if not said.endswith(".")]
    assert 40 < len(refused) < 175


def test_a_gzipped_table_is_read_as_its_text_is(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress("\ufeffa;label\n1,5;x\n2,5;y\n".encode()))
    assert inputs_of(csv(str(tmp_path / "t.csv.gz"), test_fraction=0.0).train) == [[1.5], [2.5]]


# What is hardly meant


def measured(first: str, word: str, rows: int = 24) -> str:
    """A table whose first column has the words that `word` makes of the number of a row."""
    lines = (f"{eval(word, {'n': n})};{n * n % 7}.5;{'xy'[n // 3 % 2]}" for n in range(rows))
    return "\n".join([f"{first};b;label", *lines])


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("f'{n % 3 + 1}\u202f{100 + n},5'", [1100.5, 2101.5]),
        ('f"{n % 3 + 1}\'{100 + n}"', [1100.0, 2101.0]),
        ("f'{n + 1},000.5'", [1000.5, 2000.5]),
        ("f'{n + 1},000,000'", [1000000.0, 2000000.0]),
        ("f'\u2212{n}.25'", [-0.25, -1.25]),
    ],
)
def test_numbers_with_groups_of_digits_and_a_typographic_minus_are_numbers(table, word, values):
    text = measured("a", word)
    commas = ",5;" in text  # then everywhere
    read = csv(table(text.replace(".5;", ",5;") if commas else text), test_fraction=0.0, standardise=False)
    assert [row[0] for row in inputs_of(read.train)[:2]] == values


@pytest.mark.parametrize(
    "word",
    [
        "f'{n},100'", "f'{n} mm'", "f'{n}.5%'", "f'${n}'", "f'({n}.1)'", "f'{n}.0-'", "f'<{n}'", "f'{n}:15'",
        "f'10:{n:02d} pm'", "f'[{n}, 2]'", "f'2024-01-{n + 1:02d}' if n % 2 else f'{n + 1:02d}/01/2024'",
    ],
)  # fmt: skip
def test_numbers_times_and_dates_that_are_not_read_as_such_are_no_words_without_being_called_so(table, word):
    file = table(measured("a", word))
    with pytest.raises(DataError, match=r"'a' has .*categories=\['a'\]"):
        csv(file, delimiter=";", decimal=".")
    assert csv(file, delimiter=";", decimal=".", categories=["a"], test_fraction=0.0).input_shape == (25,)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("1000 + n", "'a' counts the lines"),
        ("n * n if n % 6 else -9999", "'a' is -9999 in 4 lines"),
        ("f'remark {n} of many'", "'a' has 24 different words in 24 lines"),
        ("['red', 'Red', 'blue'][n % 3]", "the words 'red' and 'Red' of column 'a' differ by case"),
    ],
)
def test_columns_that_are_hardly_measurements_are_named(table, word, said):
    with pytest.warns(UserWarning, match=said):
        csv(table(measured("a", word)), test_fraction=0.0)


def test_labels_that_are_measurements_and_names_that_differ_by_case_are_told(table):
    numbered = measured("a", "n * n % 5").replace("label", "label;c")
    text = "\n".join(f"{line};{n * 1.25}" if n else line for n, line in enumerate(numbered.split("\n")))
    with pytest.raises(DataError, match=r"'c' has 24 different labels in 24 rows.*target=, or write kind='regression'"):
        csv(table(text))
    with pytest.raises(DataError, match=r"the labels are fractions.*categories=\['b'\]"):
        csv(table(text), target="b")
    assert len(csv(table(text), target="b", categories=["b"]).class_names) == 4
    with pytest.warns(UserWarning, match="the classes 'Ok' and 'ok' differ by case"):
        csv(table("a,label\n" + "".join(f"{n % 5},{('ok', 'Ok')[n % 2]}\n" for n in range(24))))
    padded = csv(table("a,label\n" + "".join(f"{n % 5},{('007', '011')[n // 3 % 2]}\n" for n in range(24))))
    assert padded.class_names == ("007", "011")


def test_what_float32_cannot_tell_apart_is_counted_from_its_mean(table):
    seconds = "\n".join(f"{1_700_000_000 + 7 * n * n};{n % 5}.5;{'xy'[n // 3 % 2]}" for n in range(24))
    data = csv(table("t;b;label\n" + seconds), test_fraction=0.0, standardise=False)
    first, last = inputs_of(data.train)[0][0], inputs_of(data.train)[-1][0]
    assert last - first == pytest.approx(7 * 23 * 23, abs=0.01)
    again = Encoding.from_description(data.table.describe())
    raw = read_table(Path(table("t;b;label\n" + seconds)), "auto", True)
    assert torch.equal(again.features_from(again.matrix(raw)), data.train.gather(torch.arange(24)).inputs)
