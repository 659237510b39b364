"""The application, its exit codes, and how errors and results are shown.

Exit codes: 0 done, 2 usage, 3 finished but some cases were set aside, 4 configuration, data or
environment, 130 interrupted.
"""

import json
import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from esad_med.base.errors import ConfigError, EsadError
from esad_med.base.interrupts import noted_interrupts

EXIT_SET_ASIDE = 3
EXIT_ERROR = 4
EXIT_INTERRUPTED = 130
# In the order of --help
_MODULES = ("samples", "radiographs", "detectors", "slides", "benchmark", "serve", "doctor")

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
) -> None:
    """Screen pathology slides and triage chest X-rays with very few labeled anomalies.

    Research use only, not for diagnosis.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    for module in _MODULES:
        import_module(f"esad_med.cli.{module}")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    _silence_values()
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


def _silence_values() -> None:
    """Warnings of pydicom repeat the values of a file, patients' names among them."""
    libraries = ("pydicom", "highdicom", "pynetdicom")
    for name in libraries:
        warnings.filterwarnings("ignore", module=rf"{name}\.")
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: record.name.partition(".")[0] not in libraries)


def say(line: str) -> None:
    """One line for people, on stderr, so that stdout stays for results."""
    from esad_med.cli.progress import print_line

    print_line(line)


def fail(message: str) -> None:
    """Show an error and leave."""
    if _speaks_for_all():
        say(f"error: {message}")
    sys.exit(EXIT_ERROR)


def _speaks_for_all() -> bool:
    """Of the processes that `torchrun` started together, the first to fail says why."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return True
    from esad_med.method.distributed import first_to_fail

    return first_to_fail()


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
    text = json.dumps(summary, indent=2, allow_nan=False) if as_json else "\n".join(lines)
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
