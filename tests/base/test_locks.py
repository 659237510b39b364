"""One run per output; what a killed run left is swept away, and nothing else."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from esad_med.base.errors import ConfigError
from esad_med.base.locks import hold_folder, hold_output


def test_a_second_run_in_a_folder_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    with (
        hold_folder(tmp_path),
        pytest.raises(ConfigError, match=rf"another run .* \(process {os.getpid()} on "),
        hold_folder(tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    with hold_folder(tmp_path):
        pass


def test_a_second_run_that_makes_the_same_store_is_refused(tmp_path: Path) -> None:
    with (
        hold_output(tmp_path / "new" / "store"),
        hold_output(tmp_path / "new" / "other"),
        pytest.raises(ConfigError, match="another run is writing here"),
        hold_output(tmp_path / "new" / ".." / "new" / "store"),
    ):
        pass
    assert list((tmp_path / "new").iterdir()) == []


def killed_while(statement: str, out: Path) -> None:
    """A process that is killed while it holds ``out`` and writes there."""
    code = f"""
        import os, signal
        from pathlib import Path
        from esad_med.base.locks import hold_folder, hold_output
        from esad_med.base.runs import atomic_file, atomic_folder
        out = Path({str(out)!r})
        {statement}
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL


def test_what_a_killed_run_left_in_its_folder_is_swept(tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    for name in (".config.partial", ".x.partial", "mine.txt", ".hidden"):
        (inside / name).write_text("a user's own")
    killed_while("with hold_folder(out), atomic_folder(out / 'a/b/case'):", tmp_path)
    assert list(inside.glob(".case.*.partial"))
    (inside / ".slide.abcdefgh.old").mkdir()  # moved away to be replaced, then came the kill
    (inside / "slide.json").mkdir()
    (inside / ".slide.json.abcdefgh.old").mkdir()
    with hold_folder(tmp_path):
        left = {path.name for path in inside.iterdir()}
    assert left == {".config.partial", ".x.partial", "mine.txt", ".hidden", "slide", "slide.json"}


def test_what_a_killed_run_left_beside_its_store_is_swept(tmp_path: Path) -> None:
    killed_while("with hold_output(out), atomic_folder(out):", tmp_path / "store")
    others = {".other.abcdefgh.partial", ".store.v2.abcdefgh.partial", ".store.v2.abcdefgh.old"}
    for name in others:  # of other stores, perhaps at work
        (tmp_path / name).mkdir()
    assert len(list(tmp_path.glob(".store.*.partial"))) == 2
    with hold_output(tmp_path / "store"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == others


def test_who_works_for_a_run_that_is_over_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esad_med.base.locks._PATIENCE_SECONDS", 0.1)
    with hold_folder(tmp_path) as first:
        pickle.loads(pickle.dumps(first)).check()
    with pytest.raises(ConfigError, match="has ended"):
        first.check()
    with hold_folder(tmp_path) as second:
        second.check()
        with pytest.raises(ConfigError, match="has ended"):
            first.check()


def test_a_lock_that_a_network_shows_late_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with hold_folder(tmp_path / "link") as turn:
        (tmp_path / "link").unlink()  # workers of other machines know the folder, not the link
        written = turn.lock.read_text()
        turn.lock.write_text("")
        threading.Timer(0.3, turn.lock.write_text, [written]).start()
        turn.check()
