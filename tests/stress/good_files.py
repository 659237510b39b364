"""A good file for every reader: what bombs, malformed files and mutants begin with."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from guarded import Task
from PIL import Image
from tiff_files import good_slide
from xray_files import draw, in_syntax, make_dicom, make_nifti, make_png

from data_prep.vahadane import REFERENCE_MATRIX

ASAP = (
    '<?xml version="1.0"?>\n<ASAP_Annotations><Annotations>'
    '<Annotation Name="A" Type="Polygon" PartOfGroup="Tumor" Color="#F4FA58"><Coordinates>'
    '<Coordinate Order="0" X="100" Y="100" /><Coordinate Order="1" X="300.5" Y="100" />'
    '<Coordinate Order="2" X="300" Y="400" /></Coordinates></Annotation>'
    '<Annotation Name="B" Type="Polygon" PartOfGroup="Exclusion" Color="#F4FA58"><Coordinates>'
    '<Coordinate Order="0" X="150" Y="150" /><Coordinate Order="1" X="160" Y="150" />'
    '<Coordinate Order="2" X="160" Y="160" /></Coordinates></Annotation>'
    '</Annotations><AnnotationGroups><Group Name="Tumor" PartOfGroup="None" Color="#000000">'
    "<Attributes /></Group></AnnotationGroups></ASAP_Annotations>"
)
GEOJSON = (
    '{"type": "FeatureCollection", "features": [{"type": "Feature", "id": "PathRootObject",'
    ' "geometry": {"type": "Polygon", "coordinates": [[[100, 100], [300, 100], [300, 400.5],'
    ' [100, 100]], [[150, 150], [160, 150], [160, 160], [150, 150]]]}, "properties":'
    ' {"objectType": "annotation", "classification": {"name": "Tumor", "color": [200, 0, 0]}}}]}'
)
NCRF = '{"positive": [{"name": "a", "vertices": [[1, 1], [90, 1], [90, 80]]}], "negative": []}'
NIH = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position\n"
    "1.png,Infiltration|Mass,0,1,058Y,M,PA\n2.png,No Finding,0,2,40,F,AP\n"
)
YAML = "# differences\ntiles: {mpp: 0.5, size_px: 128}\nstain:\n  method: none\n"
CELLS = "tumor_001_tumor_x_1536_y_768_w_768_h_768.jpg\nnormal_002_normal_x_0_y_9_w_768_h_768.jpg\n"
MANIFEST = "path,case_id,patient_id,split,label,annotation,mpp\n{0},a,p1,train,normal,,0.25\n"


def mask_png() -> bytes:
    """A mask of the slide that annotations are read for."""
    stream = io.BytesIO()
    mask = np.zeros((80, 100), np.uint8)
    mask[10:40, 20:60] = 255
    Image.fromarray(mask).save(stream, "PNG")
    return stream.getvalue()


def tile_png() -> bytes:
    """Two stains in all mixtures."""
    shares = np.random.default_rng(0).exponential(0.5, (128, 128, 2))
    rgb = np.rint(255 * np.exp(-shares @ REFERENCE_MATRIX)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "PNG")
    return stream.getvalue()


def good_files() -> dict[str, list[tuple[str, bytes]]]:
    """For each reader, names and contents of files that it reads."""
    dicom = [(name, in_syntax(draw(64), name)) for name in ("explicit", "RLE", "JPEG-LS", "J2K")]
    radiographs = [*dicom, ("a.png", make_png(draw(64))), ("a.dcm", make_dicom(draw(64)))]
    radiographs.append(("a.nii.gz", make_nifti(draw(64)[:, :, None], np.eye(4), packed=True)))
    return {
        "slide": [("a.tif", good_slide())],
        "annotation": [
            ("a.xml", ASAP.encode()),
            ("a.geojson", GEOJSON.encode()),
            ("b.json", NCRF.encode()),
            ("a.png", mask_png()),
        ],
        "xray": radiographs,
        "xray_header": radiographs,
        "identity": [("a.dcm", make_dicom(draw(64)))],
        "manifest": [("m.csv", MANIFEST.format("m.csv").encode())],
        "triage_manifest": [
            ("t.csv", b"path,study_id,patient_id,view,age,sex\na.dcm,1,2,PA,50,M\n")
        ],
        "table": [("t.csv", b"a,b\n1,2\n")],
        "nih_table": [("nih.csv", NIH.encode())],
        "image_list": [("test_list.txt", b"1.png\n2.png\n")],
        "cell_list": [("cells.txt", CELLS.encode())],
        "config": [("c.yaml", YAML.encode())],
        "target": [("t.png", tile_png())],
        "crop": [("c.png", tile_png())],
        "journal": [("journal.jsonl", b'{"case_id": "a", "key": "b"}\n')],
    }


def write_good(folder: Path, readers: Iterable[str]) -> list[Task]:
    """The good files of these readers, each as a task."""
    tasks = []
    for reader in sorted(readers):
        (folder / reader).mkdir(parents=True)
        for name, data in good_files()[reader]:
            (folder / reader / name).write_bytes(data)
            tasks.append(Task(f"{reader} {name}", reader, folder / reader / name))
    return tasks


def write_store(folder: Path) -> Path:
    """Six tiles of two cases."""
    import pandas as pd

    from esad_med.base.store_writing import write_store as write

    samples = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    rows = pd.DataFrame(
        {
            "sample_id": [f"s{n}" for n in range(6)],
            "case_id": ["a"] * 3 + ["b"] * 3,
            "patient_id": "p",
            "split": "train",
            "semi_label": [1, 1, 1, 1, 1, -1],
            "truth": [0, 0, 0, 0, 0, 1],
        }
    )
    contract = {"kind": "tiles", "modality": "histology", "value_range": [0, 255], "mpp": 1.0}
    write(folder, samples, rows, contract)
    return folder


def write_detector(folder: Path) -> Path:
    """Two untrained members on pictures of 32 pixels."""
    import torch

    from esad_med.method.contract import Calibration, Contract, InputContract, Training
    from esad_med.method.detector import Detector
    from esad_med.method.fusion import Fusion
    from esad_med.method.networks import ImageNetworkSpec, build_network
    from esad_med.method.terms import TermSpec

    spec = ImageNetworkSpec(width=1 / 32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        states = [build_network(spec).state_dict() for _ in range(2)]
    weights = {
        f"member{k}.{name}": w for k, state in enumerate(states) for name, w in state.items()
    }
    facts = {"data_digest": "", "rows_digest": "", "versions": {}, "config": {}}
    contract = Contract(
        input=InputContract(
            modality="histology", sample_shape=(32, 32, 3), dtype="uint8", value_range=(0, 255)
        ),
        network=spec,
        members=2,
        terms=TermSpec(),
        fusion=Fusion(mode="sum", reconstruction_weight=1, norm_weight=1),
        calibration=Calibration(quantiles=(0.0, 1.0, 4.0), normals=3, held_out_by="case"),
        preparation={},
        training=Training(preset="paper", seed=0, normals=3, outliers=1, **facts),
    )
    Detector(contract, weights, device="cpu").save(folder)
    return folder
