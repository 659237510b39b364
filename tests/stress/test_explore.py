"""Files that cannot be written to their end: the exit code is right, nothing truncated stands.

The kernel refuses to let a file grow beyond a limit, wherever the write comes from; each limit meets
a command at another of its files. Then the limit is lifted and the same command goes on.
"""

import json
import resource
from functools import partial
from pathlib import Path

import pytest
from commands import contents, leftovers, run, start

TIMES = ("run.json", "journal.jsonl", "metrics.csv")  # hold times, or an order


@pytest.fixture
def commands(composed, store, trained, nih, xray_detectors, quick_settings, tmp_path):
    """What is run, by name; the last argument will be the folder or file to make."""
    few = [argument for setting in quick_settings for argument in ("--set", setting)]
    key = ("--key", tmp_path / "key")
    detector = ("--detector", xray_detectors["PA"], "--set", "eligibility.missing_view=PA")
    return {
        "tile": ("tile", composed / "normal_1.tif", "--png", "--hdf5", "--out"),
        "screen": ("screen", composed / "tumor_2.tif", "--detector", trained, "--out"),
        "triage": ("triage", nih / "images_001", *detector, *key, "--out"),
        "xray": ("xray", nih, "--table", nih / "table.csv", "--view", "PA", "--out"),
        "train": ("train", store, *few, "--resume", "--out"),
        "score": ("score", store, "--detector", trained, "--out"),
    }


@pytest.mark.parametrize("name", ["tile","screen","triage","xray","train","score"])
def test_explore(commands, name, tmp_path):
    out = tmp_path / ("out.csv" if name == "score" else "out")
    code, o, err, seconds = run(*commands[name], out)
    print(name, code, err[-500:], seconds)
    for f in sorted(tmp_path.rglob("*")):
        if f.is_file(): print(f.stat().st_size, f.relative_to(tmp_path))
    import shutil
    for limit in (20, 150, 1000, 5000,20000,60000,200000,700000, 1300000):
        o2 = tmp_path / f"l{limit}" / out.name
        o2.parent.mkdir()
        def lim():
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with start(*commands[name], o2, preexec_fn=lim) as p:
            oo, ee = p.communicate()
        print(limit, p.returncode, ee[-300:].strip().replace(str(tmp_path),""), [f.name for f in o2.parent.iterdir()])
