"""Names for identifiers: always the same, told apart, resolved only by the private map."""

import csv
import hashlib
import hmac
import os
import stat

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esad_med.base.errors import ConfigError
from esad_med.base.identifiers import Pseudonyms

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=30)  # surrogates too


def test_a_name_is_a_keyed_hash_of_kind_and_identifier(tmp_path):
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    names = Pseudonyms(tmp_path / "private", key_file=key)
    digest = hmac.new(bytes(range(32)), b"patient\x004711", hashlib.sha256).hexdigest()
    assert names.name("patient", "4711") == f"patient-{digest[:16]}"
    assert names.name("study", "4711") != names.name("patient", "4711").replace("patient", "study")
    assert names.name("patient", "") == ""


def test_one_key_gives_one_name_in_every_run_and_another_key_another(tmp_path):
    first = Pseudonyms(tmp_path / "a")
    again = Pseudonyms(tmp_path / "b", key_file=tmp_path / "a" / "key")
    other = Pseudonyms(tmp_path / "c")
    assert first.name("patient", "4711") == again.name("patient", "4711")
    assert first.name("patient", "4711") != other.name("patient", "4711")
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.fingerprint not in first.name("patient", "4711")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["patient", "study", "image"]), ANY_TEXT), max_size=4))
def test_the_map_resolves_every_identifier_to_the_letter(tmp_path, pairs):
    folder = tmp_path / "private"
    names = Pseudonyms(folder)
    known = {names.name(kind, text): text for kind, text in pairs}
    names.save()
    later = Pseudonyms(folder)
    assert {name: later.resolve(name) for name in known} == known
    (folder / "map.csv").unlink()


@pytest.mark.parametrize("text", [" 4711 ", "a\rb", "\udce9.dcm", "nul\0l", '"', "a,b\nc", "NA"])
def test_odd_identifiers_survive(tmp_path, text):
    names = Pseudonyms(tmp_path)
    name = names.name("image", text)
    names.save()
    assert Pseudonyms(tmp_path).resolve(name) == text


def test_names_are_added_once_and_old_ones_stay(tmp_path):
    names = Pseudonyms(tmp_path)
    names.name("patient", "1")
    names.save()
    names.name("patient", "1")
    names.name("patient", "2")
    names.save()
    names.save()
    with (tmp_path / "map.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["kind"], row["identifier"]) for row in rows] == [
        ("patient", "1"),
        ("patient", "2"),
    ]
    assert Pseudonyms(tmp_path).resolve("patient-unknown") == ""


def test_the_map_is_whole_at_every_moment(tmp_path, monkeypatch):
    first = Pseudonyms(tmp_path)
    name = first.name("patient", "p1")
    first.save()
    before = (tmp_path / "map.csv").read_bytes()
    again = Pseudonyms(tmp_path)
    again.name("patient", "p2")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(ConfigError, match="No space left"):
        again.save()
    monkeypatch.undo()
    assert (tmp_path / "map.csv").read_bytes() == before
    assert Pseudonyms(tmp_path).resolve(name) == "p1"
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_key_and_map_are_for_the_owner_alone(tmp_path):
    before = os.umask(0)
    try:
        names = Pseudonyms(tmp_path / "private")
        names.name("patient", "1")
        names.save()
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "private").iterdir()}
    assert modes == {"key": 0o600, "map.csv": 0o600}
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o700
    assert len((tmp_path / "private" / "key").read_bytes()) == 32


def test_a_short_key_and_a_map_that_is_none_are_refused(tmp_path):
    (tmp_path / "short").write_bytes(b"x" * 31)
    with pytest.raises(ConfigError, match="expected a key of 32"):
        Pseudonyms(tmp_path / "a", key_file=tmp_path / "short")
    for content in (b"case_id\n1\n", b"\xff\xff", b"", b'a,b,c\n"'):
        folder = tmp_path / "b"
        folder.mkdir(exist_ok=True)
        (folder / "map.csv").write_bytes(content)
        with pytest.raises(ConfigError, match="not a map of identifiers"):
            Pseudonyms(folder)


def test_folders_that_cannot_be_made_are_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError):
        Pseudonyms(tmp_path / "file" / "private")
    with pytest.raises(ConfigError):
        Pseudonyms(tmp_path / "p", key_file=tmp_path / "nowhere" / "key")


@pytest.mark.parametrize("identifier", ["=1+1", "'=1", "''x", "+A1", "@a", "-5", "-x", "a\rb", "'"])
def test_no_identifier_is_a_formula_in_the_map_and_all_come_back(tmp_path, identifier):
    names = Pseudonyms(tmp_path)
    name = names.name("patient", identifier)
    names.save()
    assert Pseudonyms(tmp_path).resolve(name) == identifier
    (shown,) = pd.read_csv(tmp_path / "map.csv", dtype=str)["identifier"]
    assert shown[0] == "'" or shown == "-5"
