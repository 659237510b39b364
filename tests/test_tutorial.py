"""The tutorial from its first block to its last, in one folder, as a newcomer types it."""

import json
import re
import shlex
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]


def test_every_block_of_the_tutorial_runs_in_order(run_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    commands = 0
    for block in re.finditer(r"^```python\n(.*?)^```|^ {4}esad-med (.*?)$", text, re.M | re.S):
        code, line = block.groups()
        if code:
            exec(compile(code, "tutorial.md", "exec"), {"__name__": "tutorial"})
            continue
        outcome = run_command(*shlex.split(line))
        assert outcome.code == 0, f"{line}: {outcome.err}"
        commands += 1
    assert commands == text.count("\n    esad-med ")
    slides = pd.read_csv("screened/slides.csv")
    assert set(slides["decision"]) <= {"alarm", "review", "no alarm"}
    assert list(slides["truth"].fillna(0)) == [0, 1]  # without an outline nothing is known
    for page in ("screened/index.html", "audit/audit.html", "triaged/worklist.html"):
        assert Path(page).stat().st_size > 1000
    studies = json.loads(Path("triaged/worklist.json").read_text())["studies"]
    assert len(studies) == 4
    assert {study["decision"] for study in studies} <= {"alarm", "review", "no alarm"}
