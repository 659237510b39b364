"""A night's batch: many small slides, some damaged, on two workers of which some are killed."""

import csv
import random
import signal

import numpy as np
import psutil
import pytest
from commands import leftovers, start

from data_prep.demo_slides import compose_demo_picture, source_concentrations
from data_prep.slide_writing import write_pyramid

EDGE = 512


def damage(data: bytes, kind: int, chance: random.Random) -> bytes:
    """A file as a broken copy, an interrupted scan or a wrong name leaves it; no slide any more."""
    if kind == 0:
        return data[: len(data) // 3]
    if kind == 1:
        return b""
    if kind == 2:
        return b"Dear colleague, please find the slide attached.\n" * 40
    if kind == 3:
        return bytes(len(data))
    return chance.randbytes(8) + data[8:]


@pytest.fixture(scope="module")
def batch(tmp_path_factory, rounds):
    """A folder of slides, five percent of them damaged, and the names of these."""
    count = rounds(60, 1000)
    folder = tmp_path_factory.mktemp("batch")
    picture, _ = compose_demo_picture(
        source_concentrations(), 0, np.random.default_rng(0), size=2048
    )
    chance = random.Random(0)
    broken = set(chance.sample(range(count), count // 20))
    for number in range(count):
        x, y = (chance.randrange(700, 1300 - EDGE // 2) for _ in range(2))
        path = folder / f"slide_{number:04d}.tif"
        part = np.ascontiguousarray(picture[y : y + EDGE, x : x + EDGE])
        write_pyramid(path, part, mpp=0.5, levels=2, description=f"slide {number}")
        if number in broken:
            path.write_bytes(damage(path.read_bytes(), number % 5, chance))
    return folder, {f"slide_{number:04d}" for number in broken}


def kill_a_worker(pid: int, chance: random.Random) -> None:
    workers = [
        process
        for process in psutil.Process(pid).children(recursive=True)
        if "spawn_main" in " ".join(process.cmdline())
    ]
    assert len(workers) >= 2
    chance.choice(workers).send_signal(signal.SIGKILL)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("command", ["tile", "screen"])
def test_every_slide_is_done_or_set_aside(command, batch, trained, tmp_path, rounds):
    folder, broken = batch
    out, total = tmp_path / "out", len(list(folder.iterdir()))
    kills_after = [total * part // 4 for part in range(1, 1 + rounds(1, 3))]
    detector = ("--detector", trained) if command == "screen" else ()
    arguments = (command, folder, *detector, "--out", out, "--workers", 2, "--set", "tiles.mpp=1")
    chance, told = random.Random(1), 0
    with start(*arguments) as process:
        for line in process.stderr:
            told += line.startswith("slide_")
            if kills_after and told >= kills_after[0]:
                kills_after.pop(0)
                kill_a_worker(process.pid, chance)
        process.wait(timeout=60)
    assert process.returncode == 3
    assert kills_after == []
    with (out / "failures.csv").open() as file:
        reasons = {row["case_id"]: (row["error"], row["message"]) for row in csv.DictReader(file)}
    assert set(reasons) == broken
    assert {error for error, _ in reasons.values()} == {"SlideError"}
    assert all(len(message) > 20 for _, message in reasons.values())
    with (out / ("samples.csv" if command == "tile" else "slides.csv")).open() as file:
        done = {row["case_id"] for row in csv.DictReader(file)}
    assert len(done) == total - len(broken)
    assert not done & broken
    assert leftovers(tmp_path) == []
    print(f"{command}: {len(done)} of {total} slides done, {len(broken)} set aside, exit 3")
