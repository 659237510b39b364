"""Files that cannot be written to their end: the exit code is right, nothing truncated stands.

The kernel lets no file grow beyond a limit, whichever library writes it; each limit meets a command
at another of its files. Then the limit is lifted and the same command goes on.
"""

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import contents, leftovers, run, start

#: Largest file in bytes, by command; the file that meets it is named beside it.
POINTS = {
    "tile": (5_000, 50_000, 300_000),  # a tile's picture, samples.npy, the quality picture
    "screen": (300, 600, 5_000, 100_000),  # config.yaml, run.json, scores.csv, report.html
    "triage": (4_000, 16_000, 25_000, 80_000),  # map.csv, thumbnail, overlay, worklist.html
    "xray": (50_000,),  # samples.npy
    "train": (150, 20_000),  # config.yaml, a checkpoint
    "score": (3_000,),  # the table
}
VARYING = ("run.json", "journal.jsonl", "worklist.html", "worklist.json")  # times, or an order


@pytest.fixture
def commands(composed, store, trained, nih, xray_detectors, quick_settings, tmp_path):
    """What is run, by name; the folder or file to make comes after it."""
    few = [argument for setting in quick_settings for argument in ("--set", setting)]
    detector = ("--detector", xray_detectors["PA"], "--set", "eligibility.missing_view=PA")
    key = ("--key", tmp_path / "key")
    tile = ("tile", composed / "normal_1.tif", "--mpp", 4, "--png", "--hdf5", "--min-tissue", 0.1)
    return {
        "tile": (*tile, "--out"),
        "screen": ("screen", composed / "tumor_2.tif", "--detector", trained, "--out"),
        "triage": ("triage", nih / "images_001", *detector, *key, "--out"),
        "xray": ("xray", nih, "--table", nih / "table.csv", "--view", "PA", "--out"),
        "train": ("train", store, *few, "--resume", "--out"),
        "score": ("score", store, "--detector", trained, "--out"),
    }


def limited(limit: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def results(out: Path) -> dict[str, bytes]:
    """What stands under a final name and is the same in every run."""
    if out.is_file():
        return {"": out.read_bytes()}
    found = contents(out, but=VARYING)
    return {
        name: data
        for name, data in found.items()
        if not any(part.startswith(".") for part in Path(name).parts)
        and not name.startswith(("tensorboard", "checkpoints", "README"))
    }


@pytest.mark.parametrize("name", POINTS)
def test_a_file_cut_off_by_the_disk_never_stands(name, commands, tmp_path, rounds):
    whole = tmp_path / "whole"
    code, _, err, _ = run(*commands[name], whole)
    assert code == 0, err
    expected = results(whole)
    for limit in POINTS[name][-rounds(1, 9) :]:
        out = tmp_path / f"below{limit}" / "out"
        out.parent.mkdir()
        with start(*commands[name], out, preexec_fn=limited(limit)) as process:
            _, err = process.communicate(timeout=300)
        assert process.returncode == 4, (limit, err)
        assert "cannot be written (File too large)" in err
        assert "Traceback" not in err
        standing = results(out) if out.exists() else {}
        assert {path: data for path, data in standing.items() if expected[path] != data} == {}
        code, _, err, _ = run(*commands[name], out)
        assert code == 0, (limit, err)
        assert results(out) == expected
        assert leftovers(out.parent) == []
        print(f"{name}: stopped at {limit} bytes, {len(standing)} files stood, went on to the end")


@pytest.mark.parametrize(
    ("owner", "step", "nth"),
    [
        *((os, "fsync", nth) for nth in (1, 2)),
        *((Path, "replace", nth) for nth in (1, 2)),
        (Path, "rename", 1),
    ],
)
@pytest.mark.parametrize("name", ["tile", "screen"])
def test_a_step_that_the_system_refuses_ends_the_run_and_not_the_results(
    name, owner, step, nth, commands, run_command, tmp_path, monkeypatch
):
    """Permission lost, a disk that fails or fills up, when a file is synced or gets its name."""
    whole, out = tmp_path / "whole", tmp_path / "parent" / "out"
    assert run_command(*commands[name], whole).code == 0
    original, calls = getattr(owner, step), []
    number = (errno.EACCES, errno.EIO, errno.ENOSPC)[(len(step) + nth) % 3]

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) == nth:
            raise OSError(number, os.strerror(number))
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, fail)
        outcome = run_command(*commands[name], out)
    assert outcome.code == 4
    assert f"cannot be written ({os.strerror(number)})" in outcome.err
    standing = results(out) if out.exists() else {}
    assert {path: data for path, data in standing.items() if results(whole)[path] != data} == {}
    assert run_command(*commands[name], out).code == 0
    assert results(out) == results(whole)
    assert leftovers(out.parent) == []
