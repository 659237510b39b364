"""Complete studies are triaged, one at a time, and their results put into the outbox."""

import logging
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from traceback import extract_tb

from esad_med.base.errors import EsadError, ModelError, disk_failure
from esad_med.base.execution import FRAMES
from esad_med.base.runs import Say
from pipelines.dicom_metrics import Metrics
from pipelines.dicom_settings import NodeConfig
from pipelines.outbox import Outbox
from pipelines.spool import Spool, StudyRecord, image_set, make_private

LOGGER = logging.getLogger(__name__)

Triage = Callable[[Sequence[Path], Path], Sequence[Path]]
"""The DICOM files of one study and an empty folder -> result files (SR, SC) written into it."""

_POLL_SECONDS = 0.2
_PAUSE_SECONDS = 30.0  # after the disk failed or filled up: images wait, nothing is given up


class Worker:
    """Takes studies from the spool to the outbox.

    Every step can be repeated: the attempt is noted before the triage, the results enter the outbox
    in one rename, and only then the study leaves ``incoming``. A process that dies between two of
    them finds the study where it was, and the outbox knows what it holds already.
    """

    def __init__(
        self,
        spool: Spool,
        outbox: Outbox,
        triage: Triage,
        config: NodeConfig,
        *,
        metrics: Metrics | None = None,
        say: Say,
    ) -> None:
        self._spool = spool
        self._outbox = outbox
        self._triage = triage
        self._config = config
        self._metrics = metrics or Metrics()
        self._say = say
        self._running: str | None = None
        self._not_its_fault: set[str] = set()

    def run(self, stop: threading.Event) -> None:
        """Work until stopped."""
        while not stop.wait(_POLL_SECONDS):
            for study in self._spool.quiet_studies(self._config.quiet_seconds):
                if stop.is_set():
                    return
                if not self._spool.has_room():
                    stop.wait(_PAUSE_SECONDS)
                    break
                try:
                    self._take(study, stop)
                except KeyboardInterrupt:
                    return

    def forget_running(self) -> None:
        """Take back the attempt under way: the node was stopped, nothing crashed."""
        study, self._running = self._running, None
        if study is not None:
            record = self._spool.record(study)
            self._spool.write_record(study, replace(record, attempts=max(record.attempts - 1, 0)))

    def _take(self, study: str, stop: threading.Event) -> None:
        try:
            self.work_on(study)
        except Exception as error:  # of the disk, or a hand in the spool: the node goes on
            why = error if isinstance(error, EsadError) else type(error).__name__
            LOGGER.error("study %s: not triaged now (%s)", study[:8], why)
            self._spool.postpone(study)
            stop.wait(_POLL_SECONDS)

    def work_on(self, study: str) -> None:
        """Triage one study unless that was done, and move it on.

        Raises:
            EsadError: the disk is full.
            OSError: the disk fails.
        """
        images = self._spool.images(study)
        chosen = image_set(images)
        record = self._spool.record(study)
        if record.images != chosen:
            record = StudyRecord(images=chosen)
        if not images:
            self._spool.finish(study, record)  # an image never came behind its folder
        elif self._outbox.holds(study, chosen) or (record.ended and not record.error):
            self._end(study, replace(record, error="", message=""))
        elif record.attempts >= self._config.maximum_attempts:
            reason = f"the node died {record.attempts} times while triaging this study"
            self._end(study, replace(record, error="Crash", message=reason))
        else:
            self._attempt(study, images, record)

    def _attempt(self, study: str, images: Sequence[Path], record: StudyRecord) -> None:
        self._running = study
        again = study in self._not_its_fault  # that attempt ended, though nothing could note it
        attempts = record.attempts + (not again)
        record = replace(record, attempts=attempts, ended=0.0, error="", message="")
        self._spool.write_record(study, record)
        folder = self._spool.scratch()
        make_private(folder)
        try:
            results = self._results(images, folder)
            if results:
                self._outbox.add(study, record.images, results)
            self._running = None
            self._end(study, replace(record, results=len(results)))
        except KeyboardInterrupt:  # the triage answered Ctrl-C between two of its steps
            self.forget_running()
            raise
        except Exception as error:
            self._running = None
            model = isinstance(error, ModelError)  # its folder was changed under the node
            if model or disk_failure(error) or not self._spool.has_room():
                self._not_its_fault.add(study)
                raise
            self._end(study, _failed(record, error))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._not_its_fault.discard(study)

    def _results(self, images: Sequence[Path], folder: Path) -> list[Path]:
        with self._metrics.timed("triage"):
            results = [Path(path) for path in self._triage(images, folder)]
        assert all(path.resolve().is_relative_to(folder.resolve()) for path in results), (
            "a triage writes into the folder it is given"
        )
        return results

    def _end(self, study: str, record: StudyRecord) -> None:
        if not self._spool.finish(study, record):
            outcome = "again"
            self._say(f"study {study[:8]}: more images came, triaged again later")
        elif record.error:
            outcome = "set_aside"
            self._say(f"study {study[:8]}: set aside ({record.error}: {record.message})")
        else:
            outcome = "triaged"
            self._say(f"study {study[:8]}: triaged, {record.results} results")
        self._metrics.count("studies", outcome)


def _failed(record: StudyRecord, error: Exception) -> StudyRecord:
    """The record of a study set aside; an unknown error's words may hold what stood in an image."""
    if isinstance(error, EsadError):
        return replace(record, error=type(error).__name__, message=str(error))
    elsewhere = getattr(error, FRAMES, "")  # in the process that triages
    name = str(error) if elsewhere else type(error).__name__
    lines = [f"{f.filename}:{f.lineno} in {f.name}" for f in extract_tb(error.__traceback__)]
    where = elsewhere or "\n".join(lines)  # never its words, which may hold what stood in an image
    LOGGER.error("unexpected %s, please report it with these lines:\n%s", name, where)
    return replace(record, error=name, message="an unexpected error; please report it")
