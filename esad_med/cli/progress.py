"""Progress bars with an ETA, on stderr and on a terminal only."""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from esad_med.base.interrupts import raise_if_interrupted
from esad_med.cli.logs import logs_json

_console = Console(stderr=True, highlight=False, soft_wrap=True)


def print_line(line: str) -> None:
    """Print above the bar, if one is shown."""
    _console.print(line, markup=False)


class ProgressBar:
    """A callable of (label, done, total), as `esad_med.base.runs.Progress` wants it."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=_console,
            transient=True,
            disable=logs_json() or not sys.stderr.isatty(),
        )
        self._task: TaskID | None = None
        self._label = ""

    def __call__(self, label: str, done: int, total: int) -> None:
        """Show how far the named step is; a new label starts a new bar.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        raise_if_interrupted()
        if self._task is None or label != self._label:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(label, total=total or None)
            self._label = label
        self._progress.update(self._task, completed=done)

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
