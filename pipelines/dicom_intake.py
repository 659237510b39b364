"""What the node takes, and how an image gets into the spool, whichever way it came."""

import logging
from functools import cache

from pydicom.uid import (
    JPEG2000,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from esad_med.base.runs import Say
from pipelines.dicom_header import Identity, hashed
from pipelines.dicom_metrics import Metrics
from pipelines.outbox import Outbox
from pipelines.spool import Spool, Stored

LOGGER = logging.getLogger(__name__)

SOP_CLASSES = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    SecondaryCaptureImageStorage,
)
SYNTAXES = (  # deflated is left out: a megabyte of it may be a gigabyte
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEG2000Lossless,
    JPEG2000,
    RLELossless,
)


@cache
def kinds_accepted() -> frozenset[tuple[str, str]]:
    """Every accepted pair of SOP class and transfer syntax."""
    return frozenset((str(kind), str(syntax)) for kind in SOP_CLASSES for syntax in SYNTAXES)


class Intake:
    """Puts images into the spool and reports conflicts."""

    def __init__(
        self, spool: Spool, outbox: Outbox, *, metrics: Metrics | None = None, say: Say
    ) -> None:
        self._spool = spool
        self._outbox = outbox
        self._metrics = metrics or Metrics()
        self._say = say

    def take(self, identity: Identity, file: bytes) -> Stored:
        """Store an image; returning means it is durable, or was before.

        A result of ours that comes back is a duplicate: triaged as an image of its study, it would
        make new results, which would come back, and so on.

        Raises:
            SpoolFullError: no room.
            ImageError: not a DICOM file.
            OSError: the disk fails otherwise.
        """
        study = hashed(identity.study)[:8]
        if self._outbox.is_own(identity.sop_instance):
            self._say(f"study {study}: a result of ours came back and was not taken")
            self._metrics.count("images", "duplicate")
            return "duplicate"
        with self._metrics.timed("store"):
            outcome = self._spool.store(identity, file)
        self._metrics.count("images", outcome)
        event = {"study": study, "outcome": outcome, "bytes": len(file)}
        LOGGER.info("study %s: image %s", study, outcome, extra=event)
        if outcome == "conflict":
            self._spool.note_conflict(identity, file)
            self._say(f"study {study}: an image refused, another one has its SOP Instance UID")
        return outcome
