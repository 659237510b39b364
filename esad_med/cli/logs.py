"""What goes to stderr: lines for people, or one JSON object per event for machines.

Whatever stood in a file stays out of it: other libraries' words about values are dropped, an
unexpected error is told without its own words, and no character steers the terminal.
"""

import json
import logging
import sys
import traceback
import warnings
from copy import copy
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

from esad_med.base.texts import printable

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

LOGGER = logging.getLogger("esad_med.cli")
_OURS = ("esad_med", "data_prep", "pipelines")
# They repeat the values of a file, patients' names among them.
_TALKATIVE = ("pydicom", "highdicom", "pynetdicom", "tifffile", "nibabel", "PIL")
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime"}


class _Formatter(logging.Formatter):
    """Tells where an exception was raised, not its words: they may hold what stood in a file."""

    def format(self, record: logging.LogRecord) -> str:
        record = copy(record)
        record.exc_text = None  # another handler's text of the exception, kept in the record
        return super().format(record)

    def formatException(self, ei: Any) -> str:
        kind, error, trace = ei
        elsewhere = vars(error).get("frames_there", "") if error else ""
        return f"{elsewhere}{_frames(kind, trace)}"


class _JsonFormatter(_Formatter):
    """One JSON object per line: time, level, logger, message, and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{key: value for key, value in vars(record).items() if key not in _STANDARD},
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str)


class _Stderr(logging.Handler):
    """Writes to whatever stderr is now; text above a progress bar, if one is shown."""

    def __init__(self, form: LogFormat) -> None:
        super().__init__()
        self.form = form
        text = _Formatter("%(levelname)s %(name)s: %(message)s")
        self.setFormatter(_JsonFormatter() if form == "json" else text)
        self.addFilter(lambda record: record.name.partition(".")[0] not in _TALKATIVE)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self.form == "json":
                print(self.format(record), file=sys.stderr, flush=True)
            else:
                _print_line(self.format(record))
        except Exception:
            self.handleError(record)


def set_up_logs(form: LogFormat = "text", level: LogLevel | None = None) -> None:
    """Choose form and level of what goes to stderr; a second call replaces the first's choice.

    Args:
        form: lines for people, or JSON events.
        level: of our own messages, by default warning in text and info in JSON; those of other
            packages are shown from warning on.
    """
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _Stderr)]:
        root.removeHandler(handler)
    root.addHandler(_Stderr(form))
    logging.captureWarnings(form == "json")
    for name in _OURS:
        default = "info" if form == "json" else "warning"
        logging.getLogger(name).setLevel((level or default).upper())
    for name in _TALKATIVE:
        warnings.filterwarnings("ignore", module=rf"{name}\.")


def logs_json() -> bool:
    """Whether stderr holds JSON events, and so neither lines for people nor progress bars."""
    handlers = logging.getLogger().handlers
    return any(isinstance(h, _Stderr) and h.form == "json" for h in handlers)


def say(line: str, *, level: int = logging.INFO) -> None:
    """One line for people, on stderr, so that stdout stays for results; an event in JSON."""
    if logs_json():
        LOGGER.log(level, line)
    else:
        _print_line(line)


def say_unexpected(error: Exception) -> None:
    """Tell of an error that nothing here expects, by where it was raised."""
    kind = type(error).__name__
    LOGGER.error("unexpected %s, please report it with these lines", kind, exc_info=error)


def _print_line(line: str) -> None:
    from esad_med.cli.progress import print_line

    print_line(printable(line))


def _frames(kind: type[BaseException] | None, trace: TracebackType | None) -> str:
    name = kind.__name__ if kind else "no exception"
    return "".join(traceback.format_tb(trace)) + name
