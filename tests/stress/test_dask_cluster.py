"""A Dask cluster of separate processes gives the bytes of one process, whoever dies."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import contents, leftovers, run, start

pytest.importorskip("distributed")
TIMES = ("run.json", "journal.jsonl")
QUIET = {"DASK_DISTRIBUTED__ADMIN__LOW_LEVEL_LOG_LENGTH": "0", "OMP_NUM_THREADS": "1"}


class Cluster:
    """A scheduler and workers, each a process that can be killed."""

    def __init__(self, folder: Path, environment: dict[str, str], options: tuple[str, ...]) -> None:
        self.file = folder / "scheduler.json"
        self._environment = {**os.environ, **QUIET, **environment}
        self.scheduler = self._start(
            *("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"),
            *("--scheduler-file", self.file, *options),
        )
        deadline = time.monotonic() + 60
        while not self.file.exists() or not self.file.read_text().endswith("}"):
            assert time.monotonic() < deadline, "no scheduler"
            time.sleep(0.1)
        self.address = json.loads(self.file.read_text())["address"]
        worker = ("worker", self.address, "--nthreads", "1", "--no-dashboard", "--no-nanny")
        place = ("--local-directory", folder, "--resources", "GPU=1", *options)
        self.workers = [self._start(*worker, *place) for _ in range(2)]

    def _start(self, *arguments: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "dask", *map(str, arguments)],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def stop(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@contextmanager
def cluster(
    folder: Path, environment: dict[str, str] | None = None, options: tuple[str, ...] = ()
) -> Iterator[Cluster]:
    folder.mkdir()
    found = Cluster(folder, environment or {}, options)
    try:
        yield found
    finally:
        found.stop()


def run_and(command: tuple[object, ...], when: Callable[[str], bool], do: Callable[[], None]):
    """Run a command and do something once when it says something; its exit code and stderr."""
    said, done = [], False
    with start(*command) as process:
        for line in process.stderr:
            said.append(line)
            if not done and when(line):
                done = True
                do()
        process.wait(timeout=120)
    assert done
    return process.returncode, "".join(said)


@pytest.fixture(scope="module")
def commands(composed, trained):
    slides = composed / "manifest.csv"
    return {
        "tile": ("tile", slides, "--png", "--hdf5", "--out"),
        "screen": ("screen", slides, "--detector", trained, "--out"),
    }


@pytest.fixture(scope="module")
def in_process(commands, tmp_path_factory):
    """What the commands write without a cluster."""
    folder = tmp_path_factory.mktemp("alone")
    for name, command in commands.items():
        code, _, err, _ = run(*command, folder / name, "--workers", 0)
        assert code == 0, err
    return {name: contents(folder / name, but=TIMES) for name in commands}


@pytest.mark.parametrize("name", ["tile", "screen"])
def test_a_killed_worker_changes_no_byte(name, commands, in_process, tmp_path):
    with cluster(tmp_path / "dask") as dask:
        asked = (*commands[name], tmp_path / "out", "--scheduler", dask.address)
        code, err = run_and(
            (*asked, "--resource", "GPU=1"),
            lambda line: line.startswith("normal_1"),
            lambda: dask.workers[0].send_signal(signal.SIGKILL),
        )
    assert code == 0, err
    assert contents(tmp_path / "out", but=TIMES) == in_process[name]
    assert leftovers(tmp_path) == []


def test_relative_paths_are_those_of_the_command_not_of_its_workers(composed, tmp_path):
    (tmp_path / "slides").symlink_to(composed)
    asked = ("tile", "slides/normal_1.tif", "--out", "out")
    with (
        cluster(tmp_path / "dask") as dask,
        start(*asked, "--scheduler", dask.address, cwd=tmp_path) as process,
    ):
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "normal_1: " in err


def test_a_scheduler_that_dies_loses_nothing_that_was_done(commands, in_process, tmp_path):
    out = tmp_path / "out"
    with cluster(tmp_path / "dask") as dask:
        code, err = run_and(
            (*commands["screen"], out, "--scheduler", dask.address),
            lambda line: line.startswith("normal_1"),
            lambda: dask.scheduler.send_signal(signal.SIGKILL),
        )
        assert code == 4
        assert "the Dask scheduler is gone; start it and the same command again" in err
        assert "Traceback" not in err
    assert (out / "journal.jsonl").read_text().count("normal_1") == 1
    before = (out / "normal_1" / "scores.csv").stat().st_mtime_ns
    with cluster(tmp_path / "again") as dask:
        code, _, err, _ = run(*commands["screen"], out, "--scheduler", dask.address)
    assert code == 0, err
    assert (out / "normal_1" / "scores.csv").stat().st_mtime_ns == before
    assert contents(out, but=TIMES) == in_process["screen"]


def test_tls_is_taken_from_dask_s_configuration(commands, in_process, tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = ("-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost")
    files = ("-keyout", key, "-out", certificate)
    subprocess.run(["openssl", "req", "-x509", *made, *files], check=True, capture_output=True)
    names = ("CA_FILE", "CLIENT__CERT", "SCHEDULER__CERT", "WORKER__CERT")
    environment = {f"DASK_DISTRIBUTED__COMM__TLS__{name}": str(certificate) for name in names}
    for role in ("CLIENT", "SCHEDULER", "WORKER"):
        environment[f"DASK_DISTRIBUTED__COMM__TLS__{role}__KEY"] = str(key)
    options = ("--protocol", "tls")
    with cluster(tmp_path / "dask", environment, options) as dask:
        assert dask.address.startswith("tls://")
        asked = (*commands["tile"], tmp_path / "out", "--scheduler", dask.address)
        code, _, err, _ = run(*asked)
        assert code == 4
        assert "no connection" in err
        assert "distributed.comm.tls" in err
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        code, _, err, _ = run(*asked)
    assert code == 0, err
    assert contents(tmp_path / "out", but=TIMES) == in_process["tile"]
