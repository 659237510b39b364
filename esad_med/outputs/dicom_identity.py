"""The identifiers that a PACS files an object by: copied from a header, valid or left empty."""

import datetime
import re
import warnings

from pydicom import Dataset, config
from pydicom.charset import decode_bytes, encode_string, python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.multival import MultiValue
from pydicom.uid import RE_VALID_UID
from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS, PersonName, validate_value

from esad_med.base.errors import CaseError

# What a PACS files an object by: DICOM's type 2, so there even where empty
IDENTIFIERS = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
_OPTIONAL_IDENTIFIERS = ("IssuerOfPatientID", "PatientAge", "StudyDescription")
_OLD_MARKS = {"DA": ".", "TM": ":"}  # ACR-NEMA wrote 1995.07.20 and 11:22:07
_ASCII = ([""], ["ISO_IR 6"])
_TEXTS = ("PN", "LO", "SH")  # value representations that SpecificCharacterSet speaks of


def read_uid(source: Dataset, keyword: str) -> str:
    """A UID of a header, checked.

    Raises:
        CaseError: it is missing or not a UID.
    """
    uid = read_text(source, keyword, ["ascii"]).strip(" \0")
    if not re.fullmatch(RE_VALID_UID, uid) or len(uid) > 64:
        problem = "not a valid UID" if uid else "missing"
        raise CaseError(  # without the value: it identifies the study
            f"{keyword} of a source image is {problem}; DICOM results cannot refer to it, "
            "repair the header first"
        )
    return uid


def copy_identifiers(source: Dataset, *, beside: str) -> Dataset:
    """What a study is filed by, as an image of it states it; what is not valid is left empty.

    Args:
        source: the image's header.
        beside: other text of the new object, which the character set must hold too.
    """
    declared = read_text(source, "SpecificCharacterSet", ["ascii"]).split("\\")
    charset = [name.strip() for name in declared]
    codecs = [python_encoding[name] for name in charset if name in python_encoding]
    if charset in _ASCII:
        codecs = []  # whatever else stands there is undeclared
    identifiers = Dataset()
    for keyword in IDENTIFIERS:
        setattr(identifiers, keyword, _clean(source, keyword, codecs))
    for keyword in _OPTIONAL_IDENTIFIERS:
        if text := _clean(source, keyword, codecs):
            setattr(identifiers, keyword, text)
    texts = [beside, *(str(element.value) for element in identifiers)]
    if not _holds(charset, texts):
        charset = ["ISO_IR 192"]  # UTF-8 holds every name
    if any(charset):
        identifiers.SpecificCharacterSet = charset if len(charset) > 1 else charset[0]
    return identifiers


def _clean(source: Dataset, keyword: str, codecs: list[str]) -> str:
    """A header's value where DICOM allows it as a single value, otherwise an empty text."""
    representation = dictionary_VR(keyword)
    text = read_text(source, keyword, codecs if representation in _TEXTS else ["ascii"])
    text = text.strip(" \0")
    text = text.replace(_OLD_MARKS.get(representation, "\0"), "")
    return text if _is_valid(text, keyword) else ""


def _is_valid(text: str, keyword: str) -> bool:
    representation = dictionary_VR(keyword)
    if re.search(r"[\x00-\x1f\x7f\\\ufffd]", text):
        return False  # control characters, several values, undecodable bytes
    if representation not in _TEXTS and not text.isascii():
        return False  # Python takes every script's digits for digits
    if representation == "PN" and any(group.count("^") > 4 for group in text.split("=")):
        return False  # a name has five components, in up to three ways of writing
    if representation == "TM" and "-" in text:
        return False  # a range, as in queries
    if keyword == "PatientSex":
        return text in ("M", "F", "O")
    try:
        if text and representation == "DA":
            datetime.datetime.strptime(text, "%Y%m%d")  # no 30th of February, no range
        validate_value(representation, text, config.RAISE)
    except ValueError:
        return False
    return True


def read_text(source: Dataset, keyword: str, codecs: list[str]) -> str:
    """A header's value as text, several joined by a backslash; empty where there is none.

    Read from the bytes where they are still there: pydicom's own conversion warns of an invalid
    value by repeating it, and a patient's name has no place in a log.
    """
    element = source.get_item(keyword)
    value = getattr(element, "value", None)
    if isinstance(value, bytes):
        delimiters = PN_DELIMS if dictionary_VR(keyword) == "PN" else TEXT_VR_DELIMS
        return _decode(value, codecs, delimiters)
    if isinstance(value, MultiValue):
        return "\\".join(map(str, value))
    return str(value) if isinstance(value, str | PersonName) else ""


def _decode(value: bytes, codecs: list[str], delimiters: set[int]) -> str:
    """Text in the declared character set; else in UTF-8 or Latin-1, the usual undeclared ones."""
    text = _quietly_decode(value, codecs, delimiters) if codecs else "\ufffd"
    if "\ufffd" not in text:
        return text
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _quietly_decode(value: bytes, codecs: list[str], delimiters: set[int]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # says what the replacement signs say as well
        return decode_bytes(value, codecs, delimiters)


def _holds(charset: list[str], texts: list[str]) -> bool:
    """Whether a SpecificCharacterSet is one of DICOM's and every text can be written in it."""
    if not all(name in python_encoding for name in charset):
        return False
    if len(charset) > 1 and not all(re.match("ISO 2022 IR |$", name) for name in charset):
        return False  # only these can be combined
    codecs = [python_encoding[name] for name in charset]
    return all(_survives(piece, codecs) for text in texts for piece in re.split("[=^]", text))


def _survives(text: str, codecs: list[str]) -> bool:
    if text.isascii():
        return True
    if python_encoding[""] in codecs and re.search("[\x80-\xff]", text):
        return False  # pydicom takes Latin-1 for DICOM's default, which is ASCII
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the comparison tells what they warn of
        return decode_bytes(encode_string(text, codecs), codecs, PN_DELIMS) == text
