"""Which images a detector may score, and what is assumed where they are silent."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from data_prep.xray_header import LATERAL, XrayHeader, shown
from esad_med.base.config import Spec
from esad_med.base.errors import ConfigError


class EligibilitySpec(Spec):
    """Which images a detector may score; the others are set aside with the reason."""

    min_age: float = Field(18, ge=0, description="Years; younger patients are set aside.")
    missing_age: Literal["accept", "set_aside"] = Field(
        "accept", description="Images that say no age; accepted ones are marked in the worklist."
    )
    missing_view: Literal["set_aside", "PA", "AP"] = Field(
        "set_aside", description="Images that say no view; what they are taken as is marked."
    )
    missing_body_part: Literal["accept", "set_aside"] = Field(
        "accept", description="DICOM images that say no body part; accepted ones are marked."
    )
    body_parts: tuple[str, ...] = Field(
        ("CHEST", "THORAX"), description="BodyPartExamined must contain one of these."
    )
    modalities: tuple[str, ...] = Field(
        ("CR", "DX", "DR"), description="DICOM modalities of radiographs; DR is not standard."
    )


def judge(
    header: XrayHeader, rules: EligibilitySpec, views: Sequence[str]
) -> tuple[list[str], tuple[str, ...]]:
    """Why an image may not be scored (all reasons), and what is assumed where it is silent."""
    reasons: list[str] = []
    notes: list[str] = []
    if header.kind == "DICOM":
        _judge_source(header, rules, reasons, notes)
    if header.age is None:
        if rules.missing_age == "set_aside":
            reasons.append("the patient's age is not stated (eligibility.missing_age)")
        notes.append("age unknown")
    elif header.age < rules.min_age:
        reasons.append(f"the patient is {int(header.age)}, under {rules.min_age:g} years")
    if header.view == "":
        if rules.missing_view == "set_aside":
            reasons.append(
                "its view is not stated; say it with --missing-view or a manifest's column 'view'"
            )
        notes.append(f"view not stated, taken as {rules.missing_view}")
    view = header.view or rules.missing_view
    if header.view == LATERAL:
        reasons.append("lateral view, expected PA or AP")
    elif view not in views and view != "set_aside":
        reasons.append(f"view {shown(view)}, expected {' or '.join(views)} (no detector for it)")
    return reasons, tuple(notes)


def _judge_source(
    header: XrayHeader, rules: EligibilitySpec, reasons: list[str], notes: list[str]
) -> None:
    if header.modality not in rules.modalities:
        expected = " or ".join(rules.modalities)
        reasons.append(f"modality {shown(header.modality)}, expected {expected}")
    if header.for_processing:
        reasons.append("raw detector values (FOR PROCESSING), expected FOR PRESENTATION")
    if header.species:
        reasons.append("of an animal, expected a person")
    if not header.body_part:
        if rules.missing_body_part == "set_aside":
            reasons.append("its body part is not stated (eligibility.missing_body_part)")
        notes.append("body part not stated")
    elif not any(part in header.body_part for part in rules.body_parts):
        reasons.append(
            f"body part {shown(header.body_part)}, expected {' or '.join(rules.body_parts)}"
        )


def check_views(rules: EligibilitySpec, views: Sequence[str]) -> None:
    """Refuse to take unstated views as one that no detector accepts.

    Raises:
        ConfigError: with the views.
    """
    if rules.missing_view not in {"set_aside", *views}:
        raise ConfigError(
            f"eligibility.missing_view {rules.missing_view}: no detector for it; the detectors'"
            f" views are {', '.join(views)}"
        )
