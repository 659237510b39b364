"""Files with identifiers planted wherever a header has room, and the search for them."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image, PngImagePlugin

ROOT = "1.2.826.0.1.3680043.9.7777."
#: What must not leak, by where it stands.
PLANTED = {
    "PatientName": "PLNAME^JANE",
    "PatientID": "PLID-4711",
    "PatientBirthDate": "19371123",
    "AccessionNumber": "PLACC-8842",
    "StudyInstanceUID": f"{ROOT}1",
    "SeriesInstanceUID": f"{ROOT}2",
    "SOPInstanceUID": f"{ROOT}3",
    "InstitutionName": "PLHOSPITAL",
    "ReferringPhysicianName": "PLDOCTOR^JOE",
    "StudyDate": "20190817",
    "StudyDescription": "PLDESCRIPTION",
    "OperatorsName": "PLOPERATOR",
    "PatientAddress": "PLSTREET 7",
    "ImageComments": "PLCOMMENT",
    "StationName": "PLSTATION",
    "DeviceSerialNumber": "PLSERIAL-1",
}
FOLDER, FILE = "plfolder", "plfile"
#: And what stands in coded elements, metadata of pictures, labels of slides.
WORDS = ("PLCODE", "PLTEXT", "PLBARCODE", "PLARTIST", "PLHOST")
NEEDLES = sorted(
    {word.lower() for word in (*PLANTED.values(), FOLDER, FILE, *WORDS)}
    | {value.split("^")[0].lower() for value in PLANTED.values()}
    | {ROOT}
)


def found_in(content: bytes) -> list[str]:
    """The planted identifiers in some bytes, in any of three encodings."""
    low = content.lower()
    return [
        needle
        for needle in NEEDLES
        if any(needle.encode(code) in low for code in ("utf-8", "utf-16-le", "utf-16-be"))
    ]


def leaks(folder: Path, *, private: tuple[str, ...] = ("private",)) -> Iterator[str]:
    """Names and files below a folder that hold planted identifiers, what is private aside."""
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        if set(inner.parts) & set(private):
            continue
        found = found_in(str(inner).encode())
        if path.is_file():
            content = path.read_bytes()
            unpacked = gzip.decompress(content) if path.suffix == ".gz" else b""
            found += found_in(content + unpacked)
        if found:
            yield f"{inner}: {', '.join(found)}"


def plant_radiographs(folder: Path, write_dicom) -> int:
    """Radiographs that are scored, set aside and unreadable, in every way that has words for it.

    Returns:
        How many files.
    """
    folder = folder / FOLDER

    def write(name: str, **changes) -> Path:
        values = {**PLANTED, **_uids(name), **changes}
        return write_dicom(folder / f"{FILE}-{name}.dcm", seed=len(name), **values)

    good = write("good", **{key: PLANTED[key] for key in PLANTED if key.endswith("UID")})
    write("two-a", StudyInstanceUID=_uid("two"), PatientID="PLID-4711")
    write("two-b", StudyInstanceUID=_uid("two"), PatientID="PLID-4711-B")
    write("other content", SOPInstanceUID=PLANTED["SOPInstanceUID"])
    write("lateral", ViewPosition="LL")
    write("other modality", Modality="MR")
    write("young", PatientAge="010Y")
    write("raw", PresentationIntentType="FOR PROCESSING")
    for keyword in ("Modality", "BodyPartExamined", "ViewPosition", "PhotometricInterpretation"):
        write(keyword, **{keyword: "PLCODE"})
    write("no pixels", PixelData=None)
    write("short pixels", PixelData=b"PLTEXT")
    write("no rows", Rows=None)
    write("bits", BitsAllocated=13)
    write("path as uid", StudyInstanceUID="../../PLTEXT", SeriesInstanceUID="PLTEXT")
    write("age", PatientAge="PLTEXT")
    content = good.read_bytes()
    at = content.index(b"\xe0\x7f\x10\x00")
    (folder / f"{FILE}-cut.dcm").write_bytes(content[: at + 600])
    (folder / f"{FILE}-header.dcm").write_bytes(content[:400])
    (folder / f"{FILE}-words.dcm").write_bytes(b"PLTEXT" * 100)
    _write_compressed(folder / f"{FILE}-jpeg.dcm", good)
    picture = Image.fromarray(np.full((200, 200), 120, np.uint8))
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Patient", "PLTEXT")
    picture.save(folder / f"{FILE}-notes.png", pnginfo=notes)
    (folder / f"{FILE}-cut.png").write_bytes((folder / f"{FILE}-notes.png").read_bytes()[:200])
    picture.save(folder / f"{FILE}-notes.jpg", comment=b"PLTEXT")
    return len(list(folder.iterdir()))


def _uid(name: str) -> str:
    return pydicom.uid.generate_uid(prefix=ROOT, entropy_srcs=[name])


def _uids(name: str) -> dict[str, str]:
    keys = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    return {key: _uid(f"{name} {key}") for key in keys}


def _write_compressed(path: Path, source: Path) -> None:
    """A JPEG syntax around what is no JPEG."""
    dataset = pydicom.dcmread(source)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = _uid("jpeg")
    dataset.StudyInstanceUID = _uid("jpeg study")
    dataset.PixelData = pydicom.encaps.encapsulate([b"PLTEXT" * 9])
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    dataset.save_as(path)
