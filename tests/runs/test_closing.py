"""What a run says when it has ended."""

import json
import re

from holdfast.config.build import resolve
from holdfast.config.compose import load
from holdfast.runs.opened import closing
from holdfast.runs.run import run


def test_the_method_and_its_references_are_said_with_the_numbers_of_the_report(tmp_path):
    changes = ["experiment=digits", "trainer.epochs=1", "seeds=2", "references=[finetune]"]
    folder = run(resolve(load(None, changes)), tmp_path / "run", quiet=True)
    method, reference, report = closing(folder).splitlines()
    assert report == f"report: {folder}/report.html"
    for line, name, place in ((method, "er", folder), (reference, "finetune", folder / "references" / "finetune")):
        assert line.split()[0] == name
        assert line.endswith("(2 seeds)")
        kept = re.search(
            r"kept (\S+) \(\S+, \S+\) %   learned \S+ \(\S+, \S+\) %   forgot \S+ \(\S+, \S+\) points", line
        )
        assert kept is not None, line
        measured = [json.loads(path.read_text())["average_accuracy"] for path in place.glob("seed-*/metrics.json")]
        assert kept[1] == f"{50 * sum(measured):.1f}"
