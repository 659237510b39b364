"""The loop with Orthanc, in a network namespace of loopback only: FOLDER DETECTORS -> JSON.

Orthanc binds every address of the machine whatever its settings say, hence the namespace.
"""

import json
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from composed_xrays import draw_pixels
from dicom_objects import NodeProcess, compose, free_port, storescu, uid, wait_for, write
from pydicom import dcmwrite

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
ROUTE = """
function OnStableSeries(id, tags, metadata)
  if metadata['RemoteAET'] ~= 'ESAD' and (tags['Modality'] == 'CR' or tags['Modality'] == 'DX') then
    RestApiPost('/modalities/esad/store', id)
  end
end
"""


@contextmanager
def orthanc(folder, *, http, dicom, node):
    """A PACS that forwards radiographs to the node, except the node's own."""
    folder.mkdir()
    (folder / "route.lua").write_text(ROUTE)
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": http,
        "DicomPort": dicom,
        "DicomAet": "ORTHANC",
        "DicomCheckCalledAet": False,
        "AuthenticationEnabled": False,
        "StableAge": 1,
        "DicomModalities": {"esad": ["ESAD", "127.0.0.1", node]},
        "LuaScripts": [str(folder / "route.lua")],
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            ["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log
        )
    try:
        wait_for(lambda: answers(http), seconds=30)
        yield
    finally:
        process.terminate()
        process.wait(10)


def answers(http):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{http}/system", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def results_of(client, study):
    """The objects of a study that are not the radiographs, by modality."""
    found = {}
    for series in client.search_for_series(study):
        modality = series["00080060"]["Value"][0]
        if modality != "CR":
            name = series["0020000E"]["Value"][0]
            found.setdefault(modality, []).extend(client.retrieve_series(study, name))
    return found


def radiograph(study, name):
    """A composed chest of this study and image."""
    pixels = draw_pixels(ord(name) + 10 * int(study[1:]))
    rows, columns = pixels.shape
    depth = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    shape = {"Rows": rows, "Columns": columns, "PixelData": pixels.tobytes()}
    return compose(study, name, PatientAge="058Y", **depth, **shape)


def numbers_of(ds):
    """Every measured value of a structured report, in its order."""
    found = [float(item.NumericValue) for item in ds.get("MeasuredValueSequence", ())]
    for item in ds.get("ContentSequence", ()):
        found += numbers_of(item)
    return found


def facts_of(ds, path):
    """What the test asks of an object that came back."""
    dcmwrite(path, ds, enforce_file_format=True)
    check = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
    text = str(ds)
    return {
        "numbers": numbers_of(ds),
        "uid": ds.SOPInstanceUID,
        "patient": str(ds.PatientID),
        "name": str(ds.PatientName),
        "text": text,
        "pixels": list(ds.pixel_array.shape) if "PixelData" in ds else None,
        "errors": [line for line in check.stderr.splitlines() if line.startswith("Error")],
    }


def main(folder: Path, detectors: str) -> None:
    from dicomweb_client.api import DICOMwebClient  # not needed to know where the plugin lies

    http, dicom = free_port(), free_port()
    sent = {"s1": ["a", "b"], "s2": ["a"]}
    files = {
        study: [write(folder / f"{study}{name}.dcm", radiograph(study, name)) for name in names]
        for study, names in sent.items()
    }
    peer = {"peer": f"ORTHANC@127.0.0.1:{dicom}", "allow": ["ORTHANC"], "quiet_seconds": 1.0}
    with (
        NodeProcess(folder / "spool", detectors, retry_seconds=0.5, **peer) as node,
        orthanc(folder / "orthanc", http=http, dicom=dicom, node=node.port),
    ):
        client = DICOMwebClient(f"http://127.0.0.1:{http}/dicom-web")
        codes = [storescu(dicom, *paths, called="ORTHANC").returncode for paths in files.values()]
        direct = storescu(node.port, files["s2"][0]).returncode  # not on the list of callers

        def back():
            found = {study: results_of(client, uid(study)) for study in sent}
            return found if all({"SR", "OT"} <= set(kinds) for kinds in found.values()) else None

        found = wait_for(back, seconds=60, every=0.3)
        first = time.monotonic()
        again = storescu(dicom, *files["s1"], called="ORTHANC").returncode
        wait_for(lambda: time.monotonic() - first > 5)  # stable, forwarded, quiet: time for a loop
        found = back()
        facts = {
            "codes": [*codes, again],
            "stranger": direct,
            "studies": {
                study: {
                    modality: [
                        facts_of(ds, folder / f"{study}{modality}{index}.dcm")
                        for index, ds in enumerate(objects)
                    ]
                    for modality, objects in kinds.items()
                }
                for study, kinds in found.items()
            },
            "spool": len(list((folder / "spool").glob("done/*/*.dcm"))),
            "code": node.terminate(),
            "log": node.log.read_text(),
        }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
