"""Small honest DICOM images for the tests of the node, and the node as a process of its own."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)

# dcmtk's, not the one that pynetdicom puts into a virtual environment.
STORESCU = shutil.which("storescu", path="/usr/bin:/usr/local/bin:/opt/homebrew/bin")
ROOT = "1.2.826.0.1.3680043.10.1337."  # of nobody: pydicom's root for examples


def uid(*parts: object) -> str:
    """The same UID for the same parts."""
    return generate_uid(prefix=ROOT, entropy_srcs=[str(part) for part in parts])


def compose(study="s1", image="i1", *, value=7, kind=ComputedRadiographyImageStorage, **changes):
    """A chest X-ray of 16 x 16 pixels; what differs is given by keyword."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID = kind
    ds.SOPInstanceUID = uid(study, image)
    ds.StudyInstanceUID = uid(study)
    ds.SeriesInstanceUID = uid(study, "series", kind)
    ds.PatientName, ds.PatientID = "Doe^Jane", "4711"
    ds.PatientBirthDate, ds.PatientSex = "19500101", "F"
    ds.StudyDate, ds.StudyTime = "20200101", "120000"
    ds.AccessionNumber = ds.StudyID = ds.ReferringPhysicianName = ""
    ds.Modality, ds.ConversionType = ("CR", None)
    if kind == SecondaryCaptureImageStorage:
        ds.Modality, ds.ConversionType = "OT", "WSD"
    else:
        del ds.ConversionType
        ds.BodyPartExamined, ds.ViewPosition = "CHEST", "PA"
    ds.SeriesNumber = ds.InstanceNumber = 1
    pixels = np.full((16, 16), value, dtype=np.uint16)
    ds.Rows, ds.Columns, ds.SamplesPerPixel = 16, 16, 1
    ds.PhotometricInterpretation, ds.PixelRepresentation = "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    ds.PixelData = pixels.tobytes()
    for name, content in changes.items():
        setattr(ds, name, content)
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def encoded(ds: Dataset) -> bytes:
    """The whole file."""
    stream = io.BytesIO()
    dcmwrite(stream, ds, enforce_file_format=True)
    return stream.getvalue()


def write(path: Path, ds: Dataset) -> Path:
    path.write_bytes(encoded(ds))
    return path


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(true, *, seconds=20.0, every=0.02):
    """Wait until something is true, and give it; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(every)
    return found


def shut_down(transport) -> None:
    """End a pynetdicom socket, connected or not."""
    with suppress(OSError, AttributeError):
        transport.socket.shutdown(socket.SHUT_RDWR)
    with suppress(OSError, AttributeError):
        transport.socket.close()


class NodeProcess:
    """A node in a process of its own, by `node_script.py`."""

    def __init__(self, spool: Path, triage: str = "capture", *, watch=None, **settings) -> None:
        self.spool = spool
        self.settings = {"quiet_seconds": 0.3, "reserve_mib": 0, "port": free_port(), **settings}
        self.triage = triage
        self.watch = watch
        self.log = spool.with_name(f"{spool.name}.log")
        self.process: subprocess.Popen[str] | None = None
        self.start()

    @property
    def port(self) -> int:
        return self.settings["port"]

    def start(self) -> None:
        script = Path(__file__).with_name("node_script.py")
        command = [sys.executable, script, self.spool, self.triage, json.dumps(self.settings)]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*map(str, command), *([str(self.watch)] if self.watch else [])],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout.readline() == "ready\n", self.log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def terminate(self) -> int:
        os.kill(self.process.pid, signal.SIGTERM)
        code = self.process.wait(timeout=15)
        self.process.stdout.close()
        return code

    def wait(self) -> int:
        code = self.process.wait(timeout=15)
        self.process.stdout.close()
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.kill()
        elif not self.process.stdout.closed:
            self.process.stdout.close()


def storescu(port: int, *files: Path, calling="TESTER", called="ESAD", options=()):
    """Send files with dcmtk; the outcome has a return code and what was printed."""
    command = [STORESCU or "storescu", "-v", "-aet", calling, "-aec", called, "-to", "5", *options]
    return subprocess.run(
        [*command, "127.0.0.1", str(port), *map(str, files)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
