"""A node with a stand-in for the triage: SPOOL TRIAGE SETTINGS(json) [WATCHED FOLDER]."""

import datetime
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from dicom_objects import compose, uid, write
from pydicom import dcmread
from pydicom.uid import SecondaryCaptureImageStorage

from esad_med.base.config import build_spec
from esad_med.base.errors import ImageError
from esad_med.outputs.dicom import (
    ImageResult,
    StudyResult,
    build_secondary_capture,
    build_structured_report,
    write_dicom,
)
from pipelines.dicom_node import NodeConfig, serve


def capture(images: Sequence[Path], folder: Path) -> list[Path]:
    """A Secondary Capture whose UID is made of the images', as the real triage does it."""
    read = [dcmread(path) for path in images]
    names = sorted(str(ds.SOPInstanceUID) for ds in read)
    ds = compose(kind=SecondaryCaptureImageStorage, value=len(names))
    ds.StudyInstanceUID = read[0].StudyInstanceUID
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid("result", *names)
    ds.SeriesInstanceUID = uid("series", *names)
    ds.SeriesDescription = "ESAD"
    return [write(folder / "capture.dcm", ds)]


def report(images: Sequence[Path], folder: Path) -> list[Path]:
    """The SR and SC of the real triage, of made-up scores."""
    results = []
    for path in images:
        source = dcmread(path)
        results.append(ImageResult(source, "PA", 0.5, 97.5, 0.3, 0.2, "0" * 64))
    now = datetime.datetime.now().astimezone()
    study = StudyResult(tuple(results), 0, "highest percentile of its images", "test", now)
    picture = np.zeros((16, 16, 3), dtype=np.uint8)
    files = [folder / "sr.dcm", folder / "sc.dcm"]
    write_dicom(files[0], build_structured_report(study))
    write_dicom(files[1], build_secondary_capture(study, picture))
    return files


def nothing(images: Sequence[Path], folder: Path) -> list[Path]:
    return []


def crash(images: Sequence[Path], folder: Path) -> list[Path]:
    os._exit(9)


def refuse(images: Sequence[Path], folder: Path) -> list[Path]:
    raise ImageError("no view PA or AP in this study; send a frontal image")


def defect(images: Sequence[Path], folder: Path) -> list[Path]:
    raise ValueError("Doe^Jane")


def slow(images: Sequence[Path], folder: Path) -> list[Path]:
    time.sleep(600)
    return []


def main() -> None:
    spool, triage, settings, *watch = sys.argv[1:]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    logging.basicConfig(level=logging.INFO)
    serve(
        Path(spool),
        globals()[triage],
        build_spec(NodeConfig, json.loads(settings), source="test"),
        watch=Path(watch[0]) if watch else None,
        say=lambda line: print(line, file=sys.stderr, flush=True),
        stop=stop,
        started=lambda _: print("ready", flush=True),
    )
    os._exit(0)  # a slow triage is left running, as the command leaves it


if __name__ == "__main__":
    main()
