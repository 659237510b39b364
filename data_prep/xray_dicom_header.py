"""The facts of a DICOM radiograph's header, in the words of `XrayHeader`."""

import datetime
import math
import re

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from data_prep.xray_dicom_values import integer_of, items_of, text_of, value_of
from data_prep.xray_header import AP, LATERAL, PA, XrayHeader, plain, years_of

# ViewCodeSequence, context group 4010: SNOMED CT, and the SRT codes that older devices write.
_VIEW_CODES = {
    **dict.fromkeys(("399348003", "R-10206"), AP),
    **dict.fromkeys(("272479007", "R-40888", "R-10214"), PA),
    **dict.fromkeys(("399067008", "R-102CD"), LATERAL),
    **dict.fromkeys(("399173006", "R-10236"), LATERAL),  # left
    **dict.fromkeys(("399198007", "R-10232"), LATERAL),  # right
}
_WAYS = "CHEST|THORAX|ERECT|UPRIGHT|STANDING|SITTING|SEMI|SUPINE|PORTABLE|PORT|MOBILE|BED|VIEW"
_VIEW_WORDS = (
    (re.compile(rf"(PA|AP)([ _/-]+({_WAYS}))*"), None),
    (re.compile(r"(LL|RL|LAT(ERAL)?)([ _/-].*)?"), LATERAL),
)
# Birth date to the first of these: the study's own date may be missing.
_DATES = ("StudyDate", "AcquisitionDate", "ContentDate", "SeriesDate")


def read_header(dataset: Dataset) -> XrayHeader:
    """The facts of a header; whatever cannot be understood counts as not stated.

    Raises:
        ImageError: Rows or Columns is not a number.
    """
    rows, columns = integer_of(dataset, "Rows", 0), integer_of(dataset, "Columns", 0)
    return XrayHeader(
        kind="DICOM",
        rows=rows,
        columns=columns,
        modality=plain(text_of(dataset, "Modality")).upper(),
        body_part=plain(text_of(dataset, "BodyPartExamined")).upper(),
        view=view_of(dataset),
        age=age_of(dataset),
        sex=plain(text_of(dataset, "PatientSex")).upper()[:1],
        patient_id=text_of(dataset, "PatientID"),
        study_uid=text_of(dataset, "StudyInstanceUID"),
        sop_instance_uid=text_of(dataset, "SOPInstanceUID"),
        study_date=text_of(dataset, "StudyDate"),
        accession_number=text_of(dataset, "AccessionNumber"),
        species=_species(dataset),
        for_processing=text_of(dataset, "PresentationIntentType").upper() == "FOR PROCESSING",
        spacing_mm=_spacing(dataset),
    )


def view_of(dataset: Dataset) -> str:
    """PA, AP, lateral, or another view's name; empty where the file says none.

    ViewPosition first, then ViewCodeSequence; a picture whose rows or columns run from front to
    back (PatientOrientation) is lateral whatever they say.
    """
    orientation = value_of(dataset, "PatientOrientation")
    if isinstance(orientation, MultiValue) and any(str(v)[:1] in {"A", "P"} for v in orientation):
        return LATERAL
    position = plain(text_of(dataset, "ViewPosition")).upper()
    for pattern, name in _VIEW_WORDS:
        if match := pattern.fullmatch(position):
            return name or match[1]
    if position:
        return position
    for item in items_of(dataset, "ViewCodeSequence"):
        code = text_of(item, "CodeValue")
        return _VIEW_CODES.get(code, plain(code))
    return ""


def age_of(dataset: Dataset) -> float | None:
    """Years at the time of the study: PatientAge, else from the birth date, else None.

    A bare number, which the standard does not allow, counts as years.
    """
    age = years_of(text_of(dataset, "PatientAge"))
    if age is not None:
        return age
    born = _date(text_of(dataset, "PatientBirthDate"))
    dates = (_date(text_of(dataset, name)) for name in _DATES)
    taken = next((date for date in dates if date is not None), None)
    if born is None or taken is None or taken < born:
        return None
    return (taken - born).days / 365.25


def _date(text: str) -> datetime.date | None:
    try:
        return datetime.datetime.strptime(text.strip().replace(".", ""), "%Y%m%d").date()
    except ValueError:
        return None


def _species(dataset: Dataset) -> str:
    """An animal's, empty for people."""
    text = plain(text_of(dataset, "PatientSpeciesDescription"))
    for item in items_of(dataset, "PatientSpeciesCodeSequence"):
        text = text or plain(text_of(item, "CodeMeaning"))
    return "" if text.lower() in {"homo sapiens", "human"} else text


def _spacing(dataset: Dataset) -> tuple[float, float] | None:
    """Millimetres between rows and between columns; PixelSpacing, else ImagerPixelSpacing."""
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        value = value_of(dataset, name)
        try:
            rows, columns = (float(v) for v in value or ())
        except (TypeError, ValueError):
            continue
        if 0 < rows < math.inf and 0 < columns < math.inf:
            return rows, columns
    return None
