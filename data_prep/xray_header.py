"""What a radiograph's file says of itself, whatever its format."""

import re
from dataclasses import dataclass

PA, AP, LATERAL = "PA", "AP", "lateral"

_DAMAGED = re.compile(r"[\x00-\x1f\x7f^]")
_CODE_STRING = re.compile(r"[^A-Za-z0-9 _.+/-]")


@dataclass(frozen=True)
class XrayHeader:
    """The facts that decide what is done with an image; empty or None where the file is silent.

    Attributes:
        kind: PNG, JPEG, DICOM or NIfTI.
        rows: height in pixels, upright.
        columns: width in pixels, upright.
        modality: DICOM's, such as DX.
        body_part: DICOM's, such as CHEST.
        view: `PA`, `AP`, `LATERAL`, or another view's name.
        age: of the patient in years at the time of the study.
        sex: M, F or O.
        patient_id: an identifier; never to be shown.
        study_uid: an identifier; never to be shown.
        sop_instance_uid: an identifier; never to be shown.
        study_date: YYYYMMDD, with the others an identifier.
        accession_number: an identifier.
        species: of an animal, where the file says one.
        for_processing: raw detector values, not made to be looked at.
        spacing_mm: (between rows, between columns) at the detector, or None.
    """

    kind: str
    rows: int
    columns: int
    modality: str = ""
    body_part: str = ""
    view: str = ""
    age: float | None = None
    sex: str = ""
    patient_id: str = ""
    study_uid: str = ""
    sop_instance_uid: str = ""
    study_date: str = ""
    accession_number: str = ""
    species: str = ""
    for_processing: bool = False
    spacing_mm: tuple[float, float] | None = None


def plain(text: str) -> str:
    """A coded value as it may be shown: no free text, at most 16 characters.

    "?" where it holds what no code has: damage that may have swallowed a name.
    """
    if _DAMAGED.search(text.strip()):
        return "?"
    return _CODE_STRING.sub("?", text.strip())[:16]


_AGE = re.compile(r"0*(\d{1,3})\s*([DWMY]?)", re.IGNORECASE)
_PER_YEAR = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0, "": 1.0}


def years_of(text: str) -> float | None:
    """Years of an age as DICOM and NIH write it: 058Y, 018M, 012W, 003D; a bare number is years."""
    match = _AGE.fullmatch(text.strip())
    return int(match[1]) / _PER_YEAR[match[2].upper()] if match else None


# What coded elements are known to hold: modalities, body parts (PS3.16 annex L), views,
# photometric interpretations. Whatever else stands there may be a name.
_WORDS = """
AR AU BDUS BI BMD CFM CR CT DG DMS DR DX ECG EPS ES FID GM HC HD IO IVOCT IVUS KER KO LEN LS M3D MG
MR NM OAM OCT OP OPM OPT OPV OSS OT PLAN PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTPLAN RTRECORD
RTSTRUCT RWV SEG SM SMR SR SRF STAIN TG US VA XA XC
ABDOMEN ABDOMENPELVIS ANKLE ARM BREAST BRAIN CHEST CLAVICLE COCCYX CSPINE ELBOW EXTREMITY EYE FEMUR
FINGER FOOT FOREARM HAND HEAD HEART HIP HUMERUS JAW KNEE LEG LSPINE NECK PELVIS RIB RIBS SHOULDER
SKULL SPINE SSPINE STERNUM THIGH THORAX TIBIA TOE TSPINE WHOLEBODY WRIST
PA AP LL RL RLD LLD RLO LLO LAO RAO LPO RPO XTABLE LORDOTIC OBLIQUE DECUBITUS
MONOCHROME1 MONOCHROME2 RGB YBR_FULL YBR_FULL_422 YBR_ICT YBR_RCT
"""
_KNOWN = frozenset(_WORDS.split()) | {"PALETTE COLOR"}


def shown(text: str) -> str:
    """A coded value as a message may show it: a known word, or only that it is another."""
    word = text.strip().upper()
    if not word:
        return "not stated"
    return word if word in _KNOWN else "of another name"
