"""The spool: nothing acknowledged is lost, nothing is overwritten, nothing leads out of it."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from dicom_objects import compose, encoded, uid, wait_for
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import JPEGLSLossless

from esad_med.base.errors import ConfigError, ImageError
from pipelines.dicom_header import (
    BIG_ENDIAN,
    IMPLICIT,
    Identity,
    content_digest,
    hashed,
    is_uid,
    is_whole,
    read_identity,
    split_file,
    walk,
)
from pipelines.spool import (
    Spool,
    SpoolFullError,
    StudyRecord,
    image_set,
    is_locked,
    opened_spool,
    read_conflicts,
)

EXPLICIT = "1.2.840.10008.1.2.1"


def put(spool, ds):
    file = encoded(ds)
    syntax, data = split_file(file)
    return spool.store(read_identity(data, syntax), file)


def plain(ds, syntax=EXPLICIT):
    """The data set alone, in one of the uncompressed transfer syntaxes."""
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = syntax != BIG_ENDIAN, syntax == IMPLICIT
    write_dataset(stream, Dataset(ds))
    return stream.getvalue()


def nested(depth):
    """A data set with sequences in sequences, all of undefined length, before the study's UID."""
    head = (
        bytes.fromhex("08004011")
        + b"SQ\0\0"
        + b"\xff" * 4
        + bytes.fromhex("feff00e0")
        + b"\xff" * 4
    )
    tail = bytes.fromhex("feff0de000000000feffdde000000000")
    return head * depth + tail * depth


def states(root):
    return {
        place: sorted(path.name for path in (root / place).iterdir())
        for place in ("incoming", "done", "aside", "receiving")
    }


def test_an_image_is_synced_and_renamed_before_it_counts_as_stored(tmp_path, monkeypatch):
    steps = []
    sync, rename = os.fsync, Path.rename

    def noted_sync(handle):
        steps.append(("sync", Path(f"/proc/self/fd/{handle}").resolve().name[-4:]))
        sync(handle)

    def noted_rename(path, target):
        steps.append(("rename", Path(target).name[-4:]))
        return rename(path, target)

    with opened_spool(tmp_path / "spool") as spool:
        monkeypatch.setattr(os, "fsync", noted_sync)
        monkeypatch.setattr(Path, "rename", noted_rename)
        assert put(spool, compose()) == "stored"
    study = hashed(uid("s1"))[-4:]
    assert steps == [("sync", ".dcm"), ("rename", ".dcm"), ("sync", study), ("sync", "ming")]


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.sampled_from([1, 2])),
        max_size=12,
    ),
    st.integers(0, 12),
)
def test_the_first_image_of_a_uid_stays_whatever_comes_and_whenever_it_restarts(sent, restart):
    root = Path(tempfile.mkdtemp()) / "spool"
    first = {}
    spool = Spool(root)
    try:
        for index, (study, image, value) in enumerate(sent):
            if index == restart:
                spool.close()
                spool = Spool(root)
            ds = compose(study, image, value=value, SOPInstanceUID=uid(image))
            known = first.setdefault(image, (study, value))
            expected = "duplicate" if known == (study, value) else "conflict"
            fresh = len([1 for past in sent[:index] if past[1] == image]) == 0
            assert put(spool, ds) == ("stored" if fresh else expected)
        kept = {path.name: path for path in root.glob("incoming/*/*.dcm")}
        assert kept.keys() == {f"{hashed(uid(image))}.dcm" for image in first}
        for image, (study, value) in first.items():
            ds = compose(study, image, value=value, SOPInstanceUID=uid(image))
            path = kept[f"{hashed(uid(image))}.dcm"]
            assert path.read_bytes() == encoded(ds)
            assert path.parent.name == hashed(uid(study))
    finally:
        spool.close()
        shutil.rmtree(root.parent)


def test_the_same_data_set_in_another_file_header_is_a_duplicate(tmp_path):
    with opened_spool(tmp_path / "spool") as spool:
        ds = compose()
        put(spool, ds)
        ds.file_meta.SourceApplicationEntityTitle = "OTHER"
        assert put(spool, ds) == "duplicate"
        ds.PatientName = "Roe^Jane"
        assert put(spool, ds) == "conflict"


@given(st.text(max_size=70))
def test_a_name_in_the_spool_never_leads_elsewhere(text):
    assert set(hashed(text)) <= set("0123456789abcdef")
    assert len(hashed(text)) == 64
    assert not is_uid(f"1.2/{text}")
    assert not is_uid(f"../{text}")


def test_a_full_disk_keeps_nothing_and_says_so(tmp_path, monkeypatch):
    with opened_spool(tmp_path / "spool") as spool:

        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(SpoolFullError):
                put(spool, compose())
        assert states(spool.root) == {"incoming": [], "done": [], "aside": [], "receiving": []}
        assert put(spool, compose()) == "stored"


def test_the_reserve_of_the_disk_is_left_alone(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    with opened_spool(tmp_path / "spool", reserve=free * 2) as spool:
        with pytest.raises(SpoolFullError, match="reserve"):
            put(spool, compose())
        assert not spool.images(hashed(uid("s1")))


def test_a_study_takes_no_more_images_than_allowed(tmp_path):
    with opened_spool(tmp_path / "spool", maximum_images=2) as spool:
        put(spool, compose("s1", "a"))
        put(spool, compose("s1", "b"))
        with pytest.raises(SpoolFullError, match="2 images"):
            put(spool, compose("s1", "c"))
        assert put(spool, compose("s1", "a")) == "duplicate"
        assert put(spool, compose("s2", "c")) == "stored"


def test_a_second_node_is_refused_until_the_first_dies(tmp_path):
    root = tmp_path / "spool"
    code = "import sys,time,pathlib; from pipelines.spool import Spool;"
    code += "s = Spool(pathlib.Path(sys.argv[1])); print('open', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout.readline() == b"open\n"
        assert is_locked(root)
        with pytest.raises(ConfigError, match="another node"):
            Spool(root)
        holder.send_signal(signal.SIGKILL)
    assert not is_locked(root)
    Spool(root).close()


def test_patients_data_are_for_the_owner_alone(tmp_path):
    umask = os.umask(0o022)
    try:
        with opened_spool(tmp_path / "spool") as spool:
            put(spool, compose())
            paths = [spool.root, *spool.root.rglob("*")]
            open_paths = [path for path in paths if path.stat().st_mode & 0o077]
        assert open_paths == []
        assert all("Doe" not in str(path) and uid("s1") not in str(path) for path in paths)
    finally:
        os.umask(umask)


def test_a_study_is_quiet_only_so_long_after_its_last_image_also_over_a_restart(tmp_path):
    root = tmp_path / "spool"
    with opened_spool(root) as spool:
        put(spool, compose("s1", "a"))
        assert spool.quiet_studies(0) == [hashed(uid("s1"))]
        assert spool.quiet_studies(60) == []
    with opened_spool(root) as spool:
        assert spool.quiet_studies(60) == []
    for path in root.glob("incoming/*/*.dcm"):
        os.utime(path, (time.time() - 61,) * 2)
    with opened_spool(root) as spool:
        assert spool.quiet_studies(60) == [hashed(uid("s1"))]
        put(spool, compose("s1", "b"))
        assert spool.quiet_studies(60) == []
    for path in root.glob("incoming/*/*.dcm"):
        os.utime(path, (time.time() + 10**6,) * 2)  # the clock was wrong when they came
    with opened_spool(root) as spool:
        assert spool.quiet_studies(0.05) == []
        assert wait_for(lambda: spool.quiet_studies(0.05), seconds=5)


def test_a_late_image_opens_a_triaged_study_again(tmp_path):
    study = hashed(uid("s1"))
    with opened_spool(tmp_path / "spool") as spool:
        put(spool, compose("s1", "a"))
        chosen = image_set(spool.images(study))
        assert spool.finish(study, StudyRecord(images=chosen, results=2))
        assert states(spool.root)["done"] == [study]
        assert put(spool, compose("s1", "a")) == "duplicate"
        assert states(spool.root)["done"] == [study]
        assert put(spool, compose("s1", "b")) == "stored"
        assert (states(spool.root)["incoming"], states(spool.root)["done"]) == ([study], [])
        assert len(spool.images(study)) == 2
        assert not spool.finish(study, StudyRecord(images=chosen))  # of one image: it stays
        assert states(spool.root)["incoming"] == [study]
        assert spool.finish(study, StudyRecord(images=image_set(spool.images(study)), error="E"))
        assert states(spool.root)["aside"] == [study]
        assert spool.record(study).error == "E"


def test_what_was_being_written_when_the_node_died_is_gone_and_the_rest_stays(tmp_path):
    root = tmp_path / "spool"
    with opened_spool(root) as spool:
        put(spool, compose())
        spool.scratch(".dcm").write_bytes(b"half")
    with opened_spool(root) as spool:
        assert states(root)["receiving"] == []
        assert put(spool, compose()) == "duplicate"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"images": 3}', '{"attempts": "many"}'])
def test_a_damaged_record_counts_as_none(tmp_path, text):
    study = hashed(uid("s1"))
    with opened_spool(tmp_path / "spool") as spool:
        put(spool, compose())
        spool.write_record(study, StudyRecord(attempts=2))
        assert spool.record(study).attempts == 2
        (spool.root / "incoming" / study / "study.json").write_text(text)
        assert spool.record(study) == StudyRecord()


def test_retention_removes_what_ended_long_ago_and_nothing_else(tmp_path):
    names = {name: hashed(uid(name)) for name in ("old", "kept", "new", "waiting")}
    with opened_spool(tmp_path / "spool") as spool:
        for name in names:
            put(spool, compose(name))
        for name in ("old", "kept", "new"):
            study = names[name]
            spool.finish(study, StudyRecord(images=image_set(spool.images(study))))
        for name in ("old", "kept"):
            record = json.loads((spool.root / "done" / names[name] / "study.json").read_text())
            record["ended"] -= 10 * 86400
            (spool.root / "done" / names[name] / "study.json").write_text(json.dumps(record))
        assert spool.remove_older("done", 9, keep=lambda study: study == names["kept"]) == 1
        assert states(spool.root)["done"] == sorted([names["kept"], names["new"]])
        assert states(spool.root)["incoming"] == [names["waiting"]]
        assert put(spool, compose("old")) == "stored"


def test_a_conflict_is_reported_once_without_identifiers(tmp_path):
    root = tmp_path / "spool"
    other = encoded(compose(value=9))
    syntax, data = split_file(other)
    identity = read_identity(data, syntax)
    for _ in range(2):
        with opened_spool(root) as spool:
            put(spool, compose())
            assert spool.store(identity, other) == "conflict"
            spool.note_conflict(identity, other)
            spool.note_conflict(identity, other)
    (line,) = read_conflicts(root)
    assert line["refused"] == content_digest(syntax, data)
    assert uid("s1") not in (root / "conflicts.jsonl").read_text()


def test_a_kept_image_damaged_on_the_disk_is_not_overwritten(tmp_path):
    with opened_spool(tmp_path / "spool") as spool:
        put(spool, compose())
        (path,) = spool.images(hashed(uid("s1")))
        path.write_bytes(b"rotten")
        assert put(spool, compose()) == "conflict"
        assert path.read_bytes() == b"rotten"


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
def test_identifiers_are_read_as_pydicom_reads_them(syntax):
    ds = compose()
    item = Dataset()
    item.ReferencedSOPInstanceUID = "1.2.3"  # nested: none of ours
    item.StudyInstanceUID = "1.2.3.4"
    ds.ReferencedStudySequence = [item, item]
    data = plain(ds, syntax)
    found = read_identity(data, syntax)
    assert found == Identity(ds.SOPClassUID, ds.SOPInstanceUID, ds.StudyInstanceUID)
    assert [element.tag for element in walk(data, syntax)] == sorted(ds.keys())
    assert is_whole(data, syntax)


def test_an_encapsulated_image_is_whole_and_none_of_its_beginnings_is():
    ds = compose()
    ds.file_meta.TransferSyntaxUID = JPEGLSLossless
    ds.PixelData = encapsulate([b"\1" * 40])
    ds["PixelData"].is_undefined_length = True
    syntax, data = split_file(encoded(ds))
    assert is_whole(data, syntax)
    assert not any(is_whole(data[:end], syntax) for end in range(len(data)))


def test_sequences_nested_thousands_deep_cost_nothing():
    data = nested(5000)
    assert len(list(walk(data, EXPLICIT))) == 1
    with pytest.raises(ImageError, match="does not end"):
        list(walk(data[:-8], EXPLICIT))


def test_a_flood_of_empty_items_is_given_up():
    items = bytes.fromhex("08004011") + b"SQ\0\0" + b"\xff" * 4
    items += bytes.fromhex("feff00e000000000") * 1_000_001
    with pytest.raises(ImageError, match="elements"):
        list(walk(items, EXPLICIT))


@given(st.integers(0, 2**32))
def test_damaged_images_are_refused_or_read_never_anything_else(seed):
    source = random.Random(seed)
    file = bytearray(encoded(compose()))
    for _ in range(source.randrange(1, 6)):
        file[source.randrange(len(file))] = source.randrange(256)
    file = bytes(file[: source.randrange(len(file))])
    try:
        syntax, data = split_file(file)
        found = read_identity(data, syntax)
    except ImageError:
        return
    assert all(map(is_uid, (found.sop_class, found.sop_instance, found.study)))


@pytest.mark.parametrize(
    "text", ["", "1", "1..2", "1.2.", "a.b", "1.2\n", "../../etc/passwd", "1." * 40]
)
def test_what_is_not_a_uid_is_refused(text):
    data = plain(compose()).replace(
        uid("s1").encode(), text.encode().ljust(len(uid("s1")), b"\0")[: len(uid("s1"))]
    )
    if text == "1." * 40:
        assert not is_uid(text)
    else:
        with pytest.raises(ImageError, match="not a UID"):
            read_identity(data, EXPLICIT)
