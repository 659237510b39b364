"""A node in a process of its own: SPOOL TRIAGE SETTINGS(json) [WATCHED FOLDER].

TRIAGE is a stand-in of this file, or the folders of detectors, joined by a colon.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from dicom_objects import compose, uid, write
from pydicom import dcmread
from pydicom.uid import SecondaryCaptureImageStorage

from esad_med.base.config import build_spec
from esad_med.base.errors import ImageError
from pipelines.dicom_node import NodeConfig, serve
from pipelines.dicom_worker import Triage


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


def choose(triage: str, spool: Path) -> Triage:
    if triage in globals():
        return globals()[triage]
    from pipelines.dicom_triage import make_study_triage  # seconds for torch and MONAI

    detectors = [Path(folder) for folder in triage.split(":")]
    return make_study_triage(
        detectors, out=spool / "triage", config=None, settings=[], device="cpu"
    )


def main() -> None:
    spool, triage, settings, *watch = sys.argv[1:]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    logging.basicConfig(level=logging.INFO)
    serve(
        Path(spool),
        choose(triage, Path(spool)),
        build_spec(NodeConfig, json.loads(settings), source="test"),
        watch=Path(watch[0]) if watch else None,
        say=lambda line: print(line, file=sys.stderr, flush=True),
        stop=stop,
        started=lambda _: print("ready", flush=True),
    )
    os._exit(0)  # a slow triage is left running, as the command leaves it


if __name__ == "__main__":
    main()
