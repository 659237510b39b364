"""Small honest radiographs as files of every kind, made by code."""

import gzip
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from data_prep.synthetic_xray import compose_xray
from data_prep.xray import decode_xray
from esad_med.base.limits import Limits

SECRETS = ("Secret", "SECRET-4711", "1.2.826.0.1.3680043.10.1337", "ACC-99")


def draw(size=96, *, bits=8, height=None, seed=0):
    """A composed chest (height or size, size), whole numbers of so many bits, both ends used."""
    picture = compose_xray(np.random.default_rng(seed), size)[: height or size]
    picture = (picture - picture.min()) / (picture.max() - picture.min())
    values = np.rint(picture.astype(np.float64) * (2**bits - 1))
    return values.astype(np.uint8 if bits <= 8 else np.uint16)


def make_dataset(pixels, *, bits=None, **changes):
    """A DX image; attributes by keyword, None leaves one out; pixels of any integer type."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    allocated = 8 * pixels.itemsize
    bits = bits or allocated
    values = {
        "SOPClassUID": DigitalXRayImageStorageForPresentation,
        "SOPInstanceUID": "1.2.826.0.1.3680043.10.1337.1",
        "StudyDate": "20200102",
        "AccessionNumber": "ACC-99",
        "Modality": "DX",
        "PresentationIntentType": "FOR PRESENTATION",
        "PatientName": "Secret^Sam",
        "PatientID": "SECRET-4711",
        "PatientSex": "F",
        "PatientAge": "058Y",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "StudyInstanceUID": "1.2.826.0.1.3680043.10.1337.2",
        "SeriesInstanceUID": "1.2.826.0.1.3680043.10.1337.3",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": allocated,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    }
    for name, value in (values | changes).items():
        if value is not None:
            setattr(ds, name, value)
    ds.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    ds["PixelData"].VR = "OB" if allocated == 8 else "OW"
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", "1.2.3")
    return ds


def to_bytes(ds, **options):
    """The whole file."""
    stream = io.BytesIO()
    dcmwrite(stream, ds, enforce_file_format=not options, **options)
    return stream.getvalue()


def make_dicom(pixels, **changes):
    return to_bytes(make_dataset(pixels, **changes))


def make_encapsulated(frame, pixels, syntax, **changes):
    """A file whose one frame is given as it is."""
    ds = make_dataset(pixels, **changes)
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate([frame])
    ds["PixelData"].is_undefined_length = True
    ds["PixelData"].VR = "OB"
    return to_bytes(ds)


def in_syntax(pixels, name, **changes):
    """The same picture in a transfer syntax."""
    ds = make_dataset(pixels, **changes)
    if name == "implicit, no preamble":
        del ds.file_meta
        ds.preamble = None
        return to_bytes(ds, implicit_vr=True, little_endian=True)
    if name == "explicit, no meta":
        del ds.file_meta
        ds.preamble = None
        return to_bytes(ds, implicit_vr=False, little_endian=True)
    if name == "big endian":
        ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        ds.PixelData = pixels.byteswap().tobytes() if pixels.itemsize == 2 else pixels.tobytes()
        return to_bytes(ds)
    if name == "deflated":
        ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        return to_bytes(ds)
    if name == "JPEG":
        jpeg = io.BytesIO()
        Image.fromarray(pixels).save(jpeg, "JPEG", quality=95)
        return make_encapsulated(jpeg.getvalue(), pixels, JPEGBaseline8Bit, **changes)
    if name != "explicit":
        ds.compress({"RLE": RLELossless, "JPEG-LS": JPEGLSLossless, "J2K": JPEG2000Lossless}[name])
    return to_bytes(ds)


def with_element(data, element):
    """A file in explicit VR with one more element, given as bytes, before its pixels."""
    at = data.rindex(b"\xe0\x7f\x10\x00O")
    return data[:at] + element + data[at:]


def lookup_table(entries, *, first=0, bits=8, vr="US"):
    """A LUT item; entries as numbers, or as bytes with VR OW."""
    item = Dataset()
    count = len(entries) // (2 if isinstance(entries, bytes) else 1)
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [count & 0xFFFF, first, bits])
    item.add_new("LUTData", vr, entries)
    return item


def make_png(pixels, mode=None):
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(stream, "PNG")
    return stream.getvalue()


def png_chunk(kind, content):
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def heal_png(data):
    """The same with chunks whose checksums are right; other files as they are."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    healed, at = data[:8], 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        healed += data[at:end] + struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return healed


def make_png_by_hand(width, height, packed, *, bits=8, color=0):
    """A PNG of any claim; packed is the content of IDAT."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", packed) + png_chunk(b"IEND", b"")


def make_jpeg(pixels, **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **({"quality": 95} | options))
    return stream.getvalue()


def make_nifti(values, affine=None, *, version=1, packed=False, **header):
    """A NIfTI file of (i, j, k); affine None leaves both codes 0."""
    kind = nib.Nifti1Image if version == 1 else nib.Nifti2Image
    image = kind(values, affine)
    if affine is not None:
        image.set_sform(affine, 1)
    for name, value in header.items():
        if name == "slope":
            image.header.set_slope_inter(*value)
        else:
            image.header[name] = value
    data = image.to_bytes()
    return gzip.compress(data) if packed else data


def read(data, **limits):
    """The picture of a file's content."""
    return decode_xray(data, limits=Limits(**limits)).pixels


def show_header(data):
    return decode_xray(data, limits=Limits()).header


MEASURED = """
import resource, sys, time
from pathlib import Path
from data_prep.nih import read_image_list, read_nih_table
from data_prep.xray import read_xray, read_xray_header
from esad_med.base.errors import EsadError

functions = {
    "picture": lambda name: read_xray(Path(name)),
    "header": lambda name: read_xray_header(Path(name)),
    "table": lambda name: read_nih_table(Path(name)),
    "list": lambda name: read_image_list("test=" + name),
}
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (1536 << 20),) * 2)
for what, name in zip(sys.argv[1::2], sys.argv[2::2]):
    start = time.perf_counter()
    try:
        functions[what](name)
        said = "read"
    except EsadError as error:
        spent = MemoryError in {type(error.__cause__), type(error.__context__)}
        said = "MemoryError" if spent else str(error)
    print(f"{time.perf_counter() - start:.3f}", said.replace("\\n", " "), sep="\\t")
"""


def measure(tasks):
    """Read files in a process that may take 1.5 GiB more than its imports.

    Args:
        tasks: pairs of "picture", "header", "table" or "list", and a path.

    Returns:
        For each (seconds, "read" or the reason).
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURED, *(str(x) for task in tasks for x in task)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return [(float(seconds), said) for seconds, said in rows]
