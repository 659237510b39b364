"""Identifiers planted in headers, names and metadata: none leaves private/, whatever goes wrong."""

import errno
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tifffile
from identifier_files import (
    FILE,
    FOLDER,
    NEEDLES,
    PLANTED,
    found_in,
    leaks,
    plant_radiographs,
)
from PIL import Image, PngImagePlugin

LOUD = ("--log-level", "debug")


@pytest.fixture
def planted(tmp_path, write_dicom) -> Path:
    plant_radiographs(tmp_path / "in", write_dicom)
    return tmp_path / "in"


@pytest.fixture
def detectors(xray_detectors) -> list[object]:
    return [part for path in xray_detectors.values() for part in ("--detector", path)]


def check(outcome, out: Path, *, code: int) -> None:
    assert outcome.code == code, outcome.err
    assert found_in((outcome.out + outcome.err).encode()) == []
    assert list(leaks(out)) == []


def test_at_least_ten_identifiers_are_planted_and_would_be_found(planted, tmp_path):
    assert len(PLANTED) >= 10
    everything = b"".join(path.read_bytes() for path in planted.rglob("*") if path.is_file())
    assert len(found_in(everything)) > len(NEEDLES) - 6  # slides' and folders' stand elsewhere
    assert len(list(leaks(tmp_path))) > 20


@pytest.mark.parametrize("form", ["text", "json"])
def test_triage_of_good_odd_and_damaged_files(planted, detectors, run_command, tmp_path, form):
    out = tmp_path / "out"
    arguments = (*detectors, "--out", out, "--missing-view", "PA", "--dicom", "--json")
    outcome = run_command("--log-format", form, *LOUD, "triage", planted, *arguments)
    check(outcome, out, code=3)
    summary = json.loads(outcome.out)
    assert len(summary["studies"]) >= 2
    assert len({failure["message"] for failure in summary["failures"]}) >= 12
    assert found_in(b"".join(p.read_bytes() for p in (out / "private").rglob("*.*")))
    again = run_command("--log-format", form, *LOUD, "triage", planted, *arguments)
    check(again, out, code=3)


def test_identifiers_stand_in_the_worklist_alone_when_asked_for(
    planted, detectors, run_command, tmp_path
):
    out = tmp_path / "out"
    arguments = (*detectors, "--out", out, "--identifiers", "--dicom")
    outcome = run_command(*LOUD, "triage", planted, *arguments)
    assert outcome.code == 3
    assert found_in((outcome.out + outcome.err).encode()) == []
    files = {line.partition(":")[0] for line in leaks(out)}
    assert files == {"worklist.csv", "worklist.json", "worklist.html"}
    shown = found_in((out / "worklist.csv").read_bytes())
    assert not {"plname", "19371123", "plhospital", "pldoctor"} & set(shown)  # not among the five


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def broken_disk(path, *_, **__):
    raise OSError(errno.EIO, "Input/output error", str(path))


def interrupt(*_, **__):
    raise KeyboardInterrupt


def defect(*_, **__):
    raise LookupError(" ".join(PLANTED.values()))


FAULTS = {
    "reading": ("pipelines.triage_intake.digest_file", broken_disk, 3),
    "disk, study": ("pipelines.triage_results.write_png", full_disk, 4),
    "disk, tables": ("pipelines.triage_results.write_csv", full_disk, 4),
    "disk, map": ("esad_med.base.identifiers._to_bytes", full_disk, 4),
    "interrupted": ("pipelines.triage_scoring._score_group", interrupt, 130),
    "interrupted early": ("pipelines.triage_intake.judge", interrupt, 130),
    "defect in reading": ("pipelines.triage_intake.judge", defect, 1),
    "defect in scoring": ("pipelines.triage_scoring._score_group", defect, 1),
    "defect in results": ("pipelines.triage_results.describe", defect, 1),
}


@pytest.mark.parametrize("name", FAULTS)
def test_triage_that_fails_on_the_way(
    planted, detectors, run_command, tmp_path, monkeypatch, rounds, name
):
    target, fault, code = FAULTS[name]
    monkeypatch.setattr(target, fault)
    for form in ("json", "text")[: rounds(1, 2)]:
        out = tmp_path / form
        arguments = ("triage", planted, *detectors, "--out", out)
        check(run_command("--log-format", form, *LOUD, *arguments), out, code=code)


def test_a_store_of_radiographs(nih, run_command, tmp_path):
    """Metadata of pictures and the path to them; names and patients of NIH's table are its own."""
    folder = tmp_path / FOLDER
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Patient", "PLTEXT")
    for path in nih.rglob("*.png"):
        target = folder / path.relative_to(nih)
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as picture:
            picture.save(target, pnginfo=notes)
    damaged = sorted(folder.rglob("*.png"))[0]
    damaged.write_bytes(damaged.read_bytes()[:300])
    (folder / "table.csv").write_bytes((nih / "table.csv").read_bytes())
    arguments = (folder, "--table", folder / "table.csv", "--out", tmp_path / "out", "--json")
    check(run_command(*LOUD, "xray", *arguments), tmp_path / "out", code=3)


def label_slide(path: Path, source: Path, *, damage: bool = False, mpp: bool = True) -> None:
    """A composed slide again, with metadata as a scanner writes them."""
    with tifffile.TiffFile(source) as tiff:
        picture = tiff.pages[0].asarray()
    words = "Aperio Image Library v12\r\n|AppMag = 20|MPP = 0.5|Title = PLBARCODE|User = PLNAME"
    tags = [(315, "s", 0, "PLARTIST", True), (316, "s", 0, "PLHOST", True)]
    tags += [(269, "s", 0, "PLBARCODE", True), (285, "s", 0, "PLTEXT", True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(
        path,
        picture,
        tile=(256, 256),
        compression="jpeg",
        photometric="rgb",
        description=words if mpp else words.replace("|MPP = 0.5", ""),
        software="PLTEXT",
        resolution=(20000, 20000) if mpp else None,
        resolutionunit="CENTIMETER" if mpp else None,
        extratags=tags,
        metadata=None,
    )
    if damage:
        content = bytearray(path.read_bytes())
        content[len(content) // 3 : len(content) // 2] = b"\x00" * (
            len(content) // 2 - len(content) // 3
        )
        path.write_bytes(content)


@pytest.fixture
def slides(composed, tmp_path) -> Path:
    folder = tmp_path / FOLDER
    label_slide(folder / "whole.tif", composed / "normal_1.tif")
    label_slide(folder / "torn.tif", composed / "normal_2.tif", damage=True)
    label_slide(folder / "unplaced.tif", composed / "normal_2.tif", mpp=False)
    (folder / "words.svs").write_bytes(b"PLTEXT" * 400)
    white = np.full((600, 600, 3), 255, np.uint8)
    tifffile.imwrite(
        folder / "empty.tif",
        white,
        tile=(256, 256),
        description="PLTEXT",
        metadata=None,
        resolution=(20000, 20000),
        resolutionunit="CENTIMETER",
        photometric="rgb",
    )
    return folder


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("command", ["tile", "screen"])
def test_slides_with_labels_and_metadata(slides, trained, run_command, tmp_path, command, form):
    out = tmp_path / "out"
    extra = ("--png", "--hdf5") if command == "tile" else ("--detector", trained)
    loud = ("--log-format", form, *LOUD)
    outcome = run_command(*loud, command, slides, *extra, "--out", out, "--json")
    check(outcome, out, code=3)
    assert len(json.loads(outcome.out)["failures"]) >= 3


SLIDE_FAULTS = {
    "full disk": ("esad_med.base.runs.os.fsync", full_disk, 4),
    "interrupted": ("pipelines.pathology.fit_slide_stain", interrupt, 130),
    "defect": ("pipelines.pathology.fit_slide_stain", defect, 1),
}


@pytest.mark.parametrize("name", SLIDE_FAULTS)
@pytest.mark.parametrize("command", ["tile", "screen"])
def test_slides_that_fail_on_the_way(
    slides, trained, run_command, tmp_path, monkeypatch, command, name
):
    target, fault, code = SLIDE_FAULTS[name]
    monkeypatch.setattr(target, fault)
    extra = () if command == "tile" else ("--detector", trained)
    outcome = run_command(*LOUD, command, slides, *extra, "--out", tmp_path / "out")
    check(outcome, tmp_path / "out", code=code)


def test_the_node(xray_detectors, write_dicom, tmp_path):
    """Everything a node says or writes beside the images themselves, which are patients' data."""
    from dicom_objects import free_port, wait_for

    plant_radiographs(tmp_path / "in", write_dicom)
    watch, spool, log = tmp_path / "watch", tmp_path / "spool", tmp_path / "log"
    watch.mkdir()
    metrics, port = free_port(), free_port()
    flags = ["--spool", spool, "--port", port, "--metrics-port", metrics]
    flags += ["--peer", f"PACS@127.0.0.1:{free_port()}", "--quiet-seconds", "0.3"]
    flags += ["--set", "reserve_mib=0", "--set", "watch_seconds=0.1", "--watch", watch]
    flags += [part for path in xray_detectors.values() for part in ("--detector", path)]
    code = "from esad_med.cli import main; main()"
    loud = ["--log-format", "json", *LOUD]
    with log.open("w") as file:
        node = subprocess.Popen(
            [sys.executable, "-c", code, *loud, "serve", *map(str, flags)],
            stdout=file,
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        wait_for(lambda: "takes images from" in log.read_text(), seconds=120)
        sent = sorted((tmp_path / "in" / FOLDER).glob("*.dcm"))
        for path in sent:
            path.rename(watch / path.name)
        kept = [watch / ".done", watch / ".refused"]
        wait_for(lambda: sum(len(list(f.glob("*"))) for f in kept) >= len(sent) - 3, seconds=60)
        wait_for(lambda: not any((spool / "incoming").iterdir()), seconds=120)
        wait_for(lambda: "results wait" in log.read_text(), seconds=60)
        page = urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=10).read()
    finally:
        node.terminate()
        assert node.wait(60) == 0
    command = [sys.executable, "-c", code, "serve", "--status", "--spool", str(spool)]
    status = subprocess.run(command, capture_output=True, check=False)
    assert found_in(log.read_bytes() + page + status.stdout + status.stderr) == []
    assert all(json.loads(line)["message"] for line in log.read_text().splitlines())
    states = [path for path in spool.rglob("*") if path.suffix != ".dcm"]
    assert found_in("".join(str(path.relative_to(spool)) for path in states).encode()) == []
    for path in (path for path in states if path.is_file() and "private" not in path.parts):
        assert found_in(path.read_bytes()) == [], path
    assert FILE in " ".join(path.name for path in watch.rglob("*"))
