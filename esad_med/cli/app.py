"""The application, its exit codes, and how errors and results are shown.

Exit codes: 0 done, 1 an error of ours, 2 usage, 3 finished but some cases were set aside, 4
configuration, data or environment, 130 interrupted.
"""

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from esad_med.base.errors import ConfigError, EsadError
from esad_med.base.interrupts import noted_interrupts
from esad_med.base.texts import printable
from esad_med.cli.logs import LogFormat, LogLevel, say_unexpected, set_up_logs
from esad_med.cli.logs import say as say  # commands take it from here, beside finish

EXIT_UNEXPECTED = 1
EXIT_SET_ASIDE = 3
EXIT_ERROR = 4
EXIT_INTERRUPTED = 130
# In the order of --help
_MODULES = (
    *("samples", "radiographs", "audit", "detectors", "calibrate", "slides", "view"),
    *("camelyon16", "export", "benchmark", "serve", "doctor"),
)

app = typer.Typer(
    name="esad-med",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib import metadata

        print(metadata.version("esad-med"))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print it.", is_eager=True, callback=_print_version),
    ] = False,
    log_format: Annotated[
        LogFormat, typer.Option(help="Of stderr: lines for people, or a JSON object per event.")
    ] = "text",
    log_level: Annotated[
        LogLevel | None,
        typer.Option(help="Of our own messages.", show_default="warning; info in JSON"),
    ] = None,
) -> None:
    """Screen pathology slides and triage chest X-rays with very few labeled anomalies.

    Research use only, not for diagnosis.
    """
    set_up_logs(log_format, log_level)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    # OpenMP reads it when torch is loaded. Its threads else wait for each other for milliseconds
    # before they let go of a core, which others want where several programs share a machine.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        _run(arguments)
    except SystemExit as stop:
        if stop.code and _is_a_rank():
            from esad_med.method.distributed import leave_at_once

            leave_at_once(stop.code if isinstance(stop.code, int) else EXIT_ERROR)
        raise


def _run(arguments: Sequence[str] | None) -> None:
    for module in _MODULES:
        import_module(f"esad_med.cli.{module}")
    set_up_logs()
    try:
        with noted_interrupts():
            app(arguments)
    except EsadError as error:
        fail(str(error))
    except SystemExit as stop:  # typer makes this of Ctrl-C
        if stop.code == EXIT_INTERRUPTED and _speaks_for_all():
            say("interrupted; complete results stand, half-written ones were removed")
        raise
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        fail(f"{name}{error.strerror or error}; check the path, its permissions and the disk")
    except Exception as error:
        say_unexpected(error)
        sys.exit(EXIT_UNEXPECTED)


def fail(message: str) -> None:
    """Show an error and leave."""
    if _speaks_for_all():
        say(f"error: {message}", level=logging.ERROR)
    sys.exit(EXIT_ERROR)


def _speaks_for_all() -> bool:
    """Of the processes that `torchrun` started together, the first to fail says why."""
    if not _is_a_rank():
        return True
    from esad_med.method.distributed import first_to_fail

    return first_to_fail()


def _is_a_rank() -> bool:
    """Whether `torchrun` started this process; `launched`, without importing torch."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def finish(
    summary: Mapping[str, Any], lines: Sequence[str], *, as_json: bool, set_aside: int = 0
) -> None:
    """Print the result to stdout, as JSON or for people, and leave with 3 if cases were set aside.

    A reader that stopped reading (``| head``) changes nothing: the results stand on disk.

    Args:
        summary: plain values for ``--json``.
        lines: the same for people.
        as_json: which of the two.
        set_aside: how many cases or tiles could not be used.
    """
    people = printable("\n".join(lines))
    text = json.dumps(summary, indent=2, allow_nan=False) if as_json else people
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        if not isinstance(error, BrokenPipeError):
            raise ConfigError(f"stdout: cannot be written ({error.strerror})") from error
    except UnicodeEncodeError:  # a terminal that knows no µ
        print(text.encode("ascii", "backslashreplace").decode(), flush=True)
    if set_aside:
        raise typer.Exit(EXIT_SET_ASIDE)
