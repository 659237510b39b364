"""The command line as a shell sees it: help, JSON, exit codes, Ctrl-C, a reader that left."""

import json
import os
import signal
import subprocess
import sys
from collections import namedtuple
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esad_med.base.store import SampleStore
from esad_med.cli import doctor
from esad_med.cli.progress import ProgressBar
from esad_med.method.detector import Detector

FEW_VIEWS = "test_time_augmentation=1"
COMMANDS = ("tile", "import", "train", "score", "evaluate", "screen", "demo", "view", "doctor")

# A shell that runs tests in the background hands down an ignored Ctrl-C.
MAIN = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from esad_med.cli import main; main()"
)


def start(*arguments, **options):
    """Start `esad-med` in a process of its own."""
    command = [sys.executable, "-c", MAIN, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, encoding="utf-8", env=environment, **options
    )


def test_help_names_every_command_and_needs_neither_torch_nor_monai():
    code = (
        "import sys\n"
        "from esad_med.cli import main\n"
        "try:\n    main(['--help'])\n"
        "finally:\n    print(sorted({'torch', 'monai', 'openslide'} & set(sys.modules)))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
    for name in COMMANDS:
        assert f"  {name} " in found.stdout


def test_threads_let_go_of_a_core_early_unless_the_user_has_said_how(run_command, monkeypatch):
    for policy, expected in (({}, "10000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)):
        for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in policy.items():
            monkeypatch.setenv(name, value)
        assert run_command("--version").code == 0
        assert os.environ.get("GOMP_SPINCOUNT") == expected


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, run_command):
    outcome = run_command(name, "--help")
    assert outcome.code == 0
    assert f"{name} [OPTIONS]" in outcome.out
    assert "--json" in outcome.out


@pytest.mark.parametrize(
    "arguments",
    [(), ("frob",), ("tile",), ("tile", "--frob"), ("train", "s"), ("train", "s", "--seed", "x")],
)
def test_misuse_ends_with_2(arguments, run_command):
    assert run_command(*arguments).code == 2


def test_options_that_do_not_apply_are_refused(composed, run_command, tmp_path):
    (tmp_path / "cells.txt").touch()
    grid = run_command("tile", composed, "--dry-run", "--cells", tmp_path / "cells.txt")
    dpa = run_command("tile", composed, "--protocol", "dpa", "--dry-run")
    assert (grid.code, dpa.code) == (2, 2)
    assert run_command("tile", composed, "--protocol", "rings", "--dry-run").code == 2
    assert "--out" in run_command("tile", composed).err


@pytest.fixture
def json_commands(composed, store, trained, tmp_path):
    """A command line for every command that ends in seconds, and a key of its JSON."""
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "t.png")
    (tmp_path / "t.csv").write_text("path,label\nt.png,0\n")
    (tmp_path / "s.csv").write_text(
        "sample_id,case_id,truth,score\na,x,0,1\nb,x,1,2\nc,y,0,1\nd,,,3\n"
    )
    slide = composed / "normal_1.tif"
    table = ("--table", tmp_path / "t.csv", "--stain", "none", "--mpp", 1)
    small = ("--width", 0.03125, "--epochs", 1, "--set", "members=1", "--set", FEW_VIEWS)
    use = ("--detector", trained, "--out")
    return {
        "tile": ("tiles", "tile", slide, "--out", tmp_path / "tile"),
        "dry run": ("tiles", "tile", slide, "--dry-run"),
        "import": ("samples", "import", tmp_path, *table, "--out", tmp_path / "import"),
        "train": ("held-out AUC", "train", store, "--out", tmp_path / "train", *small),
        "score": ("samples", "score", store, *use, tmp_path / "score.csv"),
        "evaluate": ("measures", "evaluate", tmp_path / "s.csv"),
        "screen": ("slides", "screen", slide, *use, tmp_path / "screen"),
        "doctor": ("checks", "doctor"),
    }


@pytest.mark.parametrize(
    "name", ["tile", "dry run", "import", "train", "score", "evaluate", "screen", "doctor"]
)
def test_json_is_the_only_thing_on_stdout(name, json_commands, run_command):
    key, *arguments = json_commands[name]
    outcome = run_command(*arguments, "--json")
    assert outcome.code == 0, outcome.err

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    assert key in json.loads(outcome.out, parse_constant=refuse)


def leftovers(folder):
    return [p.name for p in folder.rglob("*") if p.name.endswith((".partial", ".old"))]


def interrupt_after_first_slide(*arguments):
    """Send Ctrl-C when the first of several slides is done; the exit code and stderr."""
    process = start(*arguments, stdout=subprocess.PIPE)
    try:
        lines = [process.stderr.readline()]
        assert "normal_1" in lines[0]
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, lines[0] + rest


def test_ctrl_c_during_tile_keeps_finished_slides_and_the_rerun_works(
    composed, run_command, tmp_path
):
    command = ("tile", composed / "manifest.csv", "--out", tmp_path / "store", "--stain", "none")
    code, said = interrupt_after_first_slide(*command)
    assert code == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == [".store.unfinished"]
    assert run_command(*command).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert SampleStore(tmp_path / "store").rows["case_id"].nunique() == 4
    counts = json.loads((tmp_path / "store" / "run.json").read_text())["counts"]
    assert counts["slides kept"] >= 1
    assert counts["slides kept"] + counts["slides tiled"] == 4


def test_ctrl_c_during_screen_keeps_finished_slides(composed, trained, run_command, tmp_path):
    out = tmp_path / "out"
    command = ("screen", composed / "manifest.csv", "--detector", trained, "--out", out)
    code, said = interrupt_after_first_slide(*command)
    assert code == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    assert not leftovers(tmp_path)
    done = [path.parent.name for path in out.glob("*/slide.json")]
    assert "normal_1" in done
    assert len(done) < 4
    assert not (out / "slides.csv").exists()
    before = (out / "normal_1" / "scores.csv").stat().st_mtime_ns
    assert run_command(*command).code == 0
    assert (out / "normal_1" / "scores.csv").stat().st_mtime_ns == before
    assert len(list(out.glob("*/slide.json"))) == 4


def test_ctrl_c_during_train_is_resumed_to_the_same_weights(
    store, run_command, tmp_path, monkeypatch
):
    small = ("--width", 0.03125, "--epochs", 2, "--set", "members=2", "--set", FEW_VIEWS)
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert run_command("train", store, "--out", whole, *small).code == 0

    def interrupt(bar, label, done, total):
        if done == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProgressBar, "__call__", interrupt)
        outcome = run_command("train", store, "--out", torn, *small)
    assert outcome.code == 130
    assert "interrupted" in outcome.err
    assert run_command("score", store, "--detector", torn, "--out", tmp_path / "s.csv").code == 4
    assert run_command("train", store, "--out", torn, *small, "--resume").code == 0
    assert Detector.load(torn).digest == Detector.load(whole).digest


def test_a_reader_that_stopped_reading_changes_nothing(composed, tmp_path):
    read, write = os.pipe()
    os.close(read)
    out = tmp_path / "store"
    command = ("tile", composed / "normal_1.tif", "--out", out, "--stain", "none")
    process = start(*command, stdout=write)
    os.close(write)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert said.count("\n") == 1  # the slide's line
    assert len(SampleStore(out)) > 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_under_stdout_is_said(composed):
    with Path("/dev/full").open("w") as full:
        process = start("tile", composed / "normal_1.tif", "--dry-run", stdout=full)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 4
    assert "stdout: cannot be written (No space left on device)" in said
    assert "Traceback" not in said


def statuses(run_command, *options):
    outcome = run_command("doctor", "--json", *options)
    checks = {check["name"]: check for check in json.loads(outcome.out)["checks"]}
    return outcome.code, checks


def test_the_doctor_looks_at_everything(run_command):
    code, checks = statuses(run_command)
    assert code == 0
    for name in ("python", "torch", "monai", "OpenSlide library", "CUDA", "bfloat16", "numba"):
        assert name in checks
    for name in ("extra reference", "extra dicom", "extra cluster", "disk"):
        assert name in checks
    assert all(check["remedy"] for check in checks.values() if check["status"] == "failed")


def test_the_doctor_names_a_remedy_for_what_is_missing(run_command, monkeypatch, tmp_path):
    def not_there(package):
        raise doctor.metadata.PackageNotFoundError(package)

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.metadata, "version", not_there)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(1, 1, 1))
    monkeypatch.setitem(sys.modules, "openslide", None)
    code, checks = statuses(run_command, "--out", tmp_path / "not" / "yet")
    assert code == 4
    assert checks["torch"]["status"] == "failed"
    assert checks["openslide"]["status"] == "failed"
    assert checks["disk"]["status"] == "failed"
    assert checks["extra dicom"]["status"] == "missing"
    assert "'.[dicom]'" in checks["extra dicom"]["remedy"]
    assert checks["numba"]["status"] == "ok"  # one that fails does not hide the others


def test_the_doctor_survives_a_disk_it_may_not_look_at(run_command, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.shutil, "disk_usage", refuse)
    code, checks = statuses(run_command)
    assert code == 4
    assert "Permission denied" in checks["disk"]["found"]


def test_an_operating_system_error_is_no_traceback(run_command, monkeypatch, composed):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "/secret/slide.svs")

    monkeypatch.setattr("pipelines.pathology.open_slide", refuse)
    outcome = run_command("tile", composed / "normal_1.tif", "--dry-run")
    assert outcome.code == 4
    assert "/secret/slide.svs: Permission denied" in outcome.err


def test_names_that_stdout_cannot_show_are_escaped(run_command, monkeypatch, composed):
    printed = []

    def ascii_only(text, **_):
        text.encode("ascii")
        printed.append(text)

    monkeypatch.setattr("builtins.print", ascii_only)
    with suppress(SystemExit):
        from esad_med.cli.app import finish

        finish({}, ["1.0 µm"], as_json=False)
    assert printed == ["1.0 \\xb5m"]
