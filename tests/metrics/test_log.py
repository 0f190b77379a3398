import contextlib
import json

import pytest
from fake_run import events, write_log

from holdfast.core.errors import DataError
from holdfast.metrics import compute, read_log


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


def paths(value, path=()):
    """Where the values of an event are, however deep."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*path, key)
        yield from paths(value[key], (*path, key))


def test_a_value_of_another_kind_is_told_by_its_name_or_does_no_harm(tmp_path):
    about = {"experiences": 2, "classes": 4, "experience_classes": [[0, 1], [2, 3]], "experience_names": ["a", "b"]}
    answers = {"correct": 2, "loss": 0.5, "class_samples": {"0": 4}, "class_correct": {"0": 2}}
    answers["confusion"] = {"0": {"0": 2, "1": 2}}
    lines = [
        {"event": "start", "seed": 0, "parameters": 9, "stream": {"paradigm": "class", "class_names": ["x"], **about}},
        {"event": "train", "experience": 0, "step": 1, "samples": 4, "loss": 1.0, "terms": {"loss": 1.0}},
        *(
            {"event": "evaluate", "after": after, "experience": experience, "split": "test", "samples": 4, **answers}
            for after, experience in ((0, 0), (1, 0), (1, 1))
        ),
        {"event": "experience", "experience": 0, "seconds": 1.0, "memory_bytes": 9, "memory_classes": {"0": 2}},
        {"event": "during", "experience": 1, "step": 1, "old": [0], "samples": [4], "correct": [2]},
        {"event": "end", "seconds": 2.0},
    ]
    wrong = (10**400, -1, "x", None, [], {}, [None], True, {"0": None}, [[]], 2**70, "gone")
    for number in (0, 1, 2, 5, 6, 7):  # one of each kind
        for path in paths(lines[number]):
            for value in wrong if path != ("event",) else ():
                damaged = json.loads(json.dumps(lines))
                inner = damaged[number]
                for key in path[:-1]:
                    inner = inner[key]
                if value == "gone":
                    inner.pop(path[-1])
                else:
                    inner[path[-1]] = value
                with contextlib.suppress(DataError):
                    compute(damaged)
    lines[2]["correct"] = "x"
    with pytest.raises(DataError, match=r"log\.jsonl is damaged: an event `evaluate` holds 'x' as `correct`"):
        read_log(write_log(tmp_path / "log.jsonl", lines))
