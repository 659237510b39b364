"""Fixtures: composed radiographs as PNG with NIH's table, as DICOM, and detectors of them."""

import csv
import datetime
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from composed_xrays import draw_pixels
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

from esad_med.base.config import load_config
from esad_med.base.store import SampleStore
from esad_med.method.config import TrainConfig
from esad_med.method.trainer import train
from pipelines.xray_store import XrayStoreConfig, make_xray_store

NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)


def write_nih(folder: Path, rows: list[tuple[str, str, str, str, str]]) -> Path:
    """Images (name, findings, patient, age, view) in two folders like NIH's, and the table."""
    for number, (name, findings, *_) in enumerate(rows):
        place = folder / f"images_00{1 + number % 2}" / "images"
        place.mkdir(parents=True, exist_ok=True)
        pixels = draw_pixels(number, opacity=findings != "No Finding")
        Image.fromarray(pixels).save(place / name)
    lines = [
        [name, findings, "0", patient, age, "F", view, "2682", "2749", "0.143", "0.143"]
        for name, findings, patient, age, view in rows
    ]
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        file.write(NIH_HEADER + "\n")
        csv.writer(file).writerows(lines)
    return folder / "table.csv"


@pytest.fixture(scope="session")
def nih(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty composed images of forty patients in NIH's layout: PA and AP, a few anomalous."""
    folder = tmp_path_factory.mktemp("nih")
    rows = []
    for number in range(80):
        patient, view = str(number // 2 + 1), "PA" if number % 4 < 2 else "AP"
        findings = "No Finding"
        if number % 10 in {3, 5}:
            findings = "Infiltration" if number % 20 < 10 else "Effusion|Infiltration"
        rows.append((f"{number // 2 + 1:08d}_{number % 2:03d}.png", findings, patient, "58", view))
    write_nih(folder, rows)
    return folder


@pytest.fixture(scope="session")
def xray_detectors(
    nih: Path, quick_settings: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Narrow detectors of composed radiographs, by view; trained for seconds."""
    out = tmp_path_factory.mktemp("xray")
    found = {}
    for view in ("PA", "AP"):
        settings = [f"view={view}", "outliers.match=contains", "outliers.fraction=1"]
        config = load_config(XrayStoreConfig, None, settings)
        make_xray_store([nih], nih / "table.csv", out / f"store_{view}", config)
        store = SampleStore(out / f"store_{view}")
        train(store, load_config(TrainConfig, None, quick_settings), out / view)
        found[view] = out / view
    return found


@pytest.fixture
def write_dicom() -> Callable[..., Path]:
    """Write a composed radiograph as DICOM; attributes by keyword, None leaves one out."""

    def write(path: Path, *, seed: int = 0, pixels: np.ndarray | None = None, **changes) -> Path:
        pixels = draw_pixels(seed) if pixels is None else pixels
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        values = {
            "SOPClassUID": DigitalXRayImageStorageForPresentation,
            "SOPInstanceUID": generate_uid(entropy_srcs=[path.name, str(seed)]),
            "StudyInstanceUID": generate_uid(entropy_srcs=[path.stem]),
            "SeriesInstanceUID": generate_uid(entropy_srcs=[path.stem, "series"]),
            "PatientName": "Secret^Sam",
            "PatientID": "SECRET-4711",
            "PatientAge": "058Y",
            "PatientSex": "F",
            "StudyDate": datetime.date(2020, 1, 2).strftime("%Y%m%d"),
            "AccessionNumber": "ACC-99",
            "Modality": "DX",
            "BodyPartExamined": "CHEST",
            "ViewPosition": "PA",
            "PresentationIntentType": "FOR PRESENTATION",
            "PhotometricInterpretation": "MONOCHROME2",
            "Rows": pixels.shape[0],
            "Columns": pixels.shape[1],
            "SamplesPerPixel": 1,
            "BitsAllocated": 8 * pixels.itemsize,
            "BitsStored": 8 * pixels.itemsize,
            "HighBit": 8 * pixels.itemsize - 1,
            "PixelRepresentation": 0,
            "PixelData": pixels.tobytes(),
        }
        for name, value in {**values, **changes}.items():
            if value is not None:
                setattr(ds, name, value)
        meta.MediaStorageSOPClassUID = ds.SOPClassUID
        meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        path.parent.mkdir(parents=True, exist_ok=True)
        ds.save_as(path, enforce_file_format=True)
        return path

    return write
