"""What goes to stderr: lines or JSON events, and nothing that stood in a file."""

import json
import logging
import subprocess
import sys
import warnings

import pytest
import typer.main

from esad_med.base.texts import printable
from esad_med.cli import logs
from esad_med.cli.app import app, fail, main
from esad_med.cli.logs import say, set_up_logs


@pytest.fixture(autouse=True)
def quiet_again():
    yield
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, logs._Stderr)]:
        root.removeHandler(handler)
    logging.captureWarnings(False)
    for name in ("esad_med", "data_prep", "pipelines"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def events(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_events_have_time_level_logger_message_and_their_own_fields(capsys):
    set_up_logs("json")
    logging.getLogger("pipelines.dicom_intake").info("image %s", "stored", extra={"study": "3f9a"})
    say("slide s07 done")
    with pytest.raises(SystemExit):
        fail("no such file")
    first, second, third = events(capsys.readouterr().err)
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "info",
        "logger": "pipelines.dicom_intake",
        "message": "image stored",
        "study": "3f9a",
    }
    assert (second["level"], second["message"]) == ("info", "slide s07 done")
    assert (third["level"], third["message"]) == ("error", "error: no such file")


def test_the_level_is_of_our_own_messages(capsys):
    for level, shown in (("debug", 4), ("info", 3), ("warning", 2), ("error", 1)):
        set_up_logs("text", level)
        for name in ("debug", "info", "warning", "error"):
            getattr(logging.getLogger("pipelines.spool"), name)("word")
            logging.getLogger("distributed").debug("tag: value")
        assert capsys.readouterr().err.count("word") == shown
        assert logging.getLogger("pipelines.spool").getEffectiveLevel() <= logging.ERROR


def test_a_second_choice_replaces_the_first(capsys):
    set_up_logs("text")
    set_up_logs("json")
    logging.getLogger("esad_med").warning("once")
    assert len(events(capsys.readouterr().err)) == 1


@pytest.mark.parametrize("name", ["pydicom", "highdicom.sr", "pynetdicom.acse", "tifffile", "PIL"])
@pytest.mark.parametrize("form", ["text", "json"])
def test_libraries_that_repeat_values_are_not_heard(capsys, name, form):
    set_up_logs(form, "debug")
    logging.getLogger(name).error("PatientName: DOE^JANE")
    assert capsys.readouterr().err == ""


def test_an_error_s_words_stay_out(capsys):
    for form in ("text", "json"):
        set_up_logs(form)
        try:
            {}["DOE" + "^JANE"]
        except KeyError:
            logging.getLogger("esad_med").exception("study 3f9a failed")
        printed = capsys.readouterr().err
        assert "DOE^JANE" not in printed
        assert "KeyError" in printed
        assert "test_logs.py" in printed


def test_an_unexpected_error_ends_with_1_and_without_its_words(capsys, monkeypatch):
    def break_down(*_):
        raise LookupError("DOE" + "^JANE")

    monkeypatch.setattr("esad_med.cli.doctor.run_checks", break_down)
    with pytest.raises(SystemExit) as stop:
        main(["doctor"])
    printed = capsys.readouterr().err
    assert stop.value.code == 1
    assert "unexpected LookupError" in printed
    assert "DOE^JANE" not in printed


def test_warnings_become_events(capsys):
    set_up_logs("json")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn("slow disk", UserWarning, stacklevel=1)
    (event,) = events(capsys.readouterr().err)
    assert event["logger"] == "py.warnings"


def test_the_command_writes_json_alone_on_stderr(tmp_path):
    code = "from esad_med.cli import main; main()"
    arguments = ["--log-format", "json", "tile", str(tmp_path / "no\x1b[31m.svs"), "--dry-run"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    (event,) = events(done.stderr)
    assert event["level"] == "error"
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("sign", ["\x1b", "\r", "\x07", "\x9b", "\u202e", "\u2066", "\x00"])
def test_nothing_steers_the_terminal(capsys, sign):
    set_up_logs("text")
    say(f"slide a{sign}b")
    assert sign not in capsys.readouterr().err
    assert printable(f"a{sign}b\n\tc") == "a?b\n\tc"


def commands(group=None, before=()):
    """Every command and subcommand, by its words."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*before, name))
        else:
            yield " ".join((*before, name)), command


def test_every_command_can_print_json(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])  # registers them
    lacking = [
        name
        for name, command in commands()
        if not any("--json" in parameter.opts for parameter in command.params)
    ]
    assert lacking == []
    assert len(list(commands())) >= 11
