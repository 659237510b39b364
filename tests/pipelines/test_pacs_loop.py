"""The loop with a real PACS: Orthanc forwards to our node, our SR and SC come back to Orthanc."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from composed_xrays import SIDE
from dicom_objects import STORESCU, compose, uid
from pacs_loop import PLUGIN, numbers_of
from pydicom import dcmread

from pipelines.dicom_triage import make_study_triage

PROGRAMS = ("Orthanc", "dciodvfy", "unshare", "ip")


def namespace() -> list[str]:
    """How to run a program where nothing but loopback is; skips where that is not permitted."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    missing += [] if STORESCU else ["storescu"]
    missing += [] if PLUGIN.exists() else ["orthanc-dicomweb"]
    missing += [
        name for name in ("highdicom", "dicomweb_client") if not importlib.util.find_spec(name)
    ]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    for command in (["unshare", "-n"], ["unshare", "-rn"]):
        if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
            return command
    pytest.skip("unshare -n is not permitted")


@pytest.fixture(scope="module")
def facts(tmp_path_factory, xray_detectors):
    """What was seen after two studies went round."""
    folder = tmp_path_factory.mktemp("loop")
    detectors = ":".join(map(str, xray_detectors.values()))
    script = Path(__file__).with_name("pacs_loop.py")
    inside = f"ip link set lo up && exec {sys.executable} {script} {folder} {detectors}"
    path = os.pathsep.join([str(script.parents[1]), os.environ.get("PYTHONPATH", "")])
    outcome = subprocess.run(
        [*namespace(), "sh", "-c", inside],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    return {**json.loads(outcome.stdout), "folder": folder}


def test_each_study_gets_one_report_and_one_capture_and_there_is_no_loop(facts):
    assert facts["codes"] == [0, 0, 0]
    counts = {
        study: {modality: len(objects) for modality, objects in kinds.items()}
        for study, kinds in facts["studies"].items()
    }
    assert counts == {"s1": {"SR": 1, "OT": 1}, "s2": {"SR": 1, "OT": 1}}
    assert facts["spool"] == 3  # the radiographs, and none of our own results


def test_results_are_valid_and_filed_under_the_patient(facts):
    for kinds in facts["studies"].values():
        for (found,) in kinds.values():
            assert found["errors"] == []
            assert (found["patient"], found["name"]) == ("4711", "Doe^Jane")
        height, *rest = kinds["OT"][0]["pixels"]
        assert rest == [SIDE, 3]
        assert height > SIDE  # the caption


def test_the_report_has_the_scores_that_the_detectors_give(facts, xray_detectors, tmp_path):
    for study, names in {"s1": "ab", "s2": "a"}.items():
        text = facts["studies"][study]["SR"][0]["text"]
        assert all(uid(study, name) in text for name in names)
        triage = make_study_triage(
            list(xray_detectors.values()), out=tmp_path, config=None, settings=[], device="cpu"
        )
        (tmp_path / study).mkdir()
        files = [facts["folder"] / f"{study}{name}.dcm" for name in names]
        here = dcmread(triage(files, tmp_path / study)[0])
        found = facts["studies"][study]["SR"][0]["numbers"]
        assert len(found) >= 4 * len(names)
        assert sorted(found) == pytest.approx(sorted(numbers_of(here)), abs=1e-4)


def test_a_stranger_is_refused_and_the_log_names_nobody(facts):
    assert facts["stranger"] != 0
    assert facts["code"] == 0
    for secret in ("Doe", "4711", uid("s1"), compose("s1", "a").SOPInstanceUID):
        assert secret not in facts["log"]
