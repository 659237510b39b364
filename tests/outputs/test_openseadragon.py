"""The viewer's library: only the tested bytes, by pip alone, and never in the repository."""

import io
import re
import tarfile
from pathlib import Path

import pytest

from esad_med.base.errors import ConfigError
from esad_med.outputs import openseadragon
from esad_med.outputs.openseadragon import (
    ARCHIVE,
    LICENSE,
    REMEDY,
    SCRIPT,
    VERSION,
    install_openseadragon,
    main,
    read_openseadragon,
)

ROOT = Path(__file__).resolve().parents[2]


def make_archive(path, content):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_an_archive_of_other_bytes_is_refused_before_it_is_unpacked(tmp_path):
    evil = {name: b"alert(1)" for name, _ in openseadragon._MEMBERS.values()}
    archive = make_archive(tmp_path / ARCHIVE, evil | {"../../escaped": b"x"})
    with pytest.raises(ConfigError, match="as published"):
        install_openseadragon(archive, tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        install_openseadragon(tmp_path / "none.tar.gz", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [ARCHIVE]


def test_a_known_archive_gives_its_two_files_and_nothing_else(tmp_path, monkeypatch):
    members = {SCRIPT: ("a/lib.js", ""), LICENSE: ("a/LICENSE", "")}
    archive = make_archive(tmp_path / "a.gz", {"a/lib.js": b"1", "a/LICENSE": b"2", "a/b": b"3"})
    digest = openseadragon.hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(openseadragon, "_ARCHIVE_DIGEST", digest)
    monkeypatch.setattr(openseadragon, "_MEMBERS", members)
    (tmp_path / "to").mkdir()
    install_openseadragon(archive, tmp_path / "to")
    found = {file.name: file.read_bytes() for file in (tmp_path / "to").iterdir()}
    assert found == {SCRIPT: b"1", LICENSE: b"2"}


def test_what_is_missing_or_changed_is_said_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(openseadragon, "_folder", lambda: tmp_path)
    with pytest.raises(ConfigError, match="not installed") as error:
        read_openseadragon()
    assert all(line in str(error.value) for line in REMEDY)
    for name in (SCRIPT, LICENSE):
        (tmp_path / name).write_text("changed")
    with pytest.raises(ConfigError, match=f"is not that of OpenSeadragon {VERSION}"):
        read_openseadragon()


@pytest.mark.usefixtures("openseadragon")
def test_what_is_installed_is_the_version_that_is_named():
    found = read_openseadragon()
    assert f"openseadragon {VERSION}".encode() in found[SCRIPT][:100]
    assert b"Redistributions of source code" in found[LICENSE]


def test_the_program_says_how_it_is_used(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["openseadragon"])
    with pytest.raises(SystemExit, match="usage"):
        main()
    monkeypatch.setattr("sys.argv", ["openseadragon", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 4
    assert "cannot be read" in capsys.readouterr().err


def test_the_pinned_version_is_the_same_everywhere():
    pinned = re.search(r"^openslide-python==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert f"openslide_python-{pinned[1]}.tar.gz" == ARCHIVE
    assert f"openslide-python=={pinned[1]}" in REMEDY[0]
    makefile = (ROOT / "Makefile").read_text()
    assert ARCHIVE in makefile
    assert f"openslide-python=={pinned[1]}" in makefile


def test_the_repository_leaves_it_out():
    assert "esad_med/outputs/templates/openseadragon.*" in (ROOT / ".gitignore").read_text()
