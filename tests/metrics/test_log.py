import json

import pytest
from fake_run import events, write_log

from holdfast.core.errors import DataError
from holdfast.metrics import read_log


def test_a_half_written_last_line_is_ignored(tmp_path):
    lines = events()
    whole = json.dumps(lines[-1])
    for length in range(1, len(whole)):
        path = write_log(tmp_path / "log.jsonl", lines[:-1], tail=whole[:length])
        assert read_log(path) == lines[:-1]


def test_a_whole_last_line_counts_even_when_its_line_end_was_not_written(tmp_path):
    lines = events()
    path = write_log(tmp_path / "log.jsonl", lines[:-1], tail=json.dumps(lines[-1]))
    assert read_log(path) == lines


def test_a_last_line_cut_inside_a_letter_is_ignored(tmp_path):
    path = write_log(tmp_path / "log.jsonl", events())
    with path.open("ab") as stream:
        stream.write('{"event": "train", "note": "é'.encode()[:-1])
    assert read_log(path) == events()


def test_damage_elsewhere_names_file_and_line(tmp_path):
    path = write_log(tmp_path / "log.jsonl", events())
    lines = path.read_text().splitlines()
    lines[3] = lines[3][:10]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"log\.jsonl, line 4 is damaged"):
        read_log(path)


def test_a_line_that_is_no_event_is_damage(tmp_path):
    path = write_log(tmp_path / "log.jsonl", events())
    path.write_text("[1, 2]\n" + path.read_text())
    with pytest.raises(DataError, match="line 1 is damaged"):
        read_log(path)


def test_a_missing_log_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match=r"log\.jsonl"):
        read_log(tmp_path / "log.jsonl")


def steps(found):
    return [event["step"] for event in found if event["event"] == "train"]


def train(step):
    return {"event": "train", "step": step}


def test_events_superseded_by_a_resume_are_dropped():
    log = [{"event": "start"}, train(1), train(2), train(3), {"event": "resume", "keep": 2}, train(20), train(30)]
    assert steps(read_log(log)) == [1, 20, 30]


def test_lines_are_counted_from_the_start_of_the_file_when_a_run_is_resumed_twice():
    log = [
        {"event": "start"},  # 0
        train(1),  # 1
        train(2),  # 2
        {"event": "resume", "keep": 2},  # 3
        train(20),  # 4
        train(30),  # 5
        {"event": "resume", "keep": 5},  # 6: keeps 0, 1, 4
        train(300),
    ]
    assert steps(read_log(log)) == [1, 20, 300]


def test_a_second_resume_from_the_same_checkpoint_drops_the_first_continuation():
    log = [
        {"event": "start"},
        train(1),
        {"event": "resume", "keep": 1},
        train(2),
        {"event": "resume", "keep": 1},
        train(3),
    ]
    assert steps(read_log(log)) == [3]


def test_reading_what_was_read_changes_nothing():
    log = [{"event": "start"}, train(1), train(2), {"event": "resume", "keep": 2}, train(3)]
    once = read_log(log)
    assert read_log(once) == once
    assert all(event["event"] != "resume" for event in once)


def test_a_half_written_line_that_a_resume_superseded_is_no_damage(tmp_path):
    path = write_log(tmp_path / "log.jsonl", [{"event": "start"}, train(1)], tail='{"event": "tra\n')
    with path.open("a") as stream:
        stream.write('{"event": "resume", "keep": 2}\n{"event": "train", "step": 2}\n')
    assert steps(read_log(path)) == [1, 2]


@pytest.mark.parametrize("keep", [-1, 3, "1", None, True])
def test_a_resume_that_keeps_lines_that_are_not_there_is_an_error(keep):
    with pytest.raises(DataError, match="line 3"):
        read_log([{"event": "start"}, train(1), {"event": "resume", "keep": keep}])


def test_a_folder_stands_for_its_log_and_reading_never_changes_it(tmp_path):
    path = write_log(tmp_path / "log.jsonl", events(), tail='{"event": "tr')
    kept, moment = path.read_bytes(), path.stat().st_mtime_ns
    assert read_log(tmp_path) == events()
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (kept, moment)
    assert [child.name for child in tmp_path.iterdir()] == ["log.jsonl"]
