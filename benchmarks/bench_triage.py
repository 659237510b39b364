"""`esad-med triage` on many images: images per second, peak memory, and the share of decoding.

    python -m benchmarks.bench_triage --out runs/triage [--cores 1]

1,000 of NIH's images as 8-bit PNG of 1024 x 1024, named by a manifest, and the same pixels as
uncompressed DICOM files of digital radiography; two images a study. A PA and an AP detector are
trained for two epochs, on which speed does not depend. Whole commands are timed in processes of
their own, start and worklist included. A few images besides tell what a start costs, and whether
memory grows. Decoding is timed alone, over the same files on as many threads: reading, the checks
of shape and polarity, and the chain to a sample. Its share is one of CPU time, which other work on
the machine moves least.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

from benchmarks.nih_cxr import CONFIG, data_folder, read_view
from esad_med.base.config import load_config
from esad_med.base.runs import ensure_folder
from esad_med.method.config import TrainConfig
from esad_med.method.trainer import train

FEW = 100
KINDS = ("png", "dicom")
# A small process starts the command: the peak that the kernel tells of a child holds its parent's.
MEASURE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
seconds = time.perf_counter() - start
used = resource.getrusage(resource.RUSAGE_CHILDREN)
facts = {"code": done.returncode, "seconds": seconds, "cpu": used.ru_utime + used.ru_stime}
print(json.dumps({**facts, "peak_mib": used.ru_maxrss / 1024, "errors": done.stderr[-2000:]}))
"""
TRIAGE = "import sys; from esad_med.cli import main; sys.exit(main())"
DECODE = """
import json, resource, sys, time
from pathlib import Path
from data_prep.xray_chain import XraySpec, xray_chain
from esad_med.base.limits import Limits
from pipelines.chest_xray import on_threads, prepare_xray
spec, limits, files = XraySpec(), Limits(), [Path(name) for name in sys.stdin.read().split("\\n")]
chain = xray_chain(spec)
used = resource.getrusage(resource.RUSAGE_SELF)
start, cpu = time.perf_counter(), used.ru_utime + used.ru_stime
read = on_threads(lambda f: prepare_xray(f, spec=spec, limits=limits, chain=chain).sample, files)
for _ in read:
    pass
used = resource.getrusage(resource.RUSAGE_SELF)
facts = {"seconds": time.perf_counter() - start, "cpu": used.ru_utime + used.ru_stime - cpu}
print(json.dumps(facts))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="gets some 2 GB")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=float, default=0.125)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--cores", type=int, help="keep to so many; all by default")
    options = parser.parse_args()
    if options.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-options.cores :])
        os.environ["OMP_NUM_THREADS"] = str(options.cores)
    out = ensure_folder(options.out)
    detectors = [train_briefly(view, options.width, out) for view in ("PA", "AP")]
    table = choose_images(options.images)
    print(f"{len(os.sched_getaffinity(0))} core(s), {os.cpu_count()} threads read")
    print("| files | images | seconds | images/s | CPU s | peak MiB | decoding, CPU s (share) |")
    print("|---|---|---|---|---|---|---|")
    for kind in options.kinds:
        write_files(table, kind, out / kind)
        for count in (FEW, options.images):
            line = measure(kind, count, detectors, out, options.rounds)
            print(line, flush=True)


def train_briefly(view: str, width: float, out: Path) -> Path:
    folder = out / f"detector_{view}"
    if not (folder / "checksums.json").exists():
        store = read_view(view, 0, out / f"store_{view}")
        config = load_config(TrainConfig, CONFIG, [f"network.width={width}", "epochs=2"])
        train(store, config, folder, overwrite=True)
    return folder


def choose_images(count: int) -> pd.DataFrame:
    """The first images; two a study, of a patient of its own, none too young to be scored."""
    table = pd.read_csv(data_folder() / "metadata.csv", dtype=str)
    table = table[table["file"].str.startswith("jpeg1024")].head(count).reset_index(drop=True)
    if len(table) < count:
        raise SystemExit(f"{len(table)} images at {data_folder()}, expected at least {count}")
    number = (table.index // 2).astype(str)
    return pd.DataFrame(
        {
            "file": table["file"],
            "study_id": "study" + number,
            "patient_id": "patient" + number,
            "view": table["View Position"],
            "age": table["Patient Age"].astype(int).clip(lower=18),
            "sex": table["Patient Gender"],
        }
    )


def write_files(table: pd.DataFrame, kind: str, folder: Path) -> None:
    """All files, and below ``few`` the first of them; with a manifest where they are pictures."""
    for name, part in (("all", table), ("few", table.head(FEW))):
        if (folder / name).exists():
            continue
        temporary = ensure_folder(folder / f"{name}.partial")
        names = []
        for index, row in enumerate(part.to_dict("records")):
            with Image.open(data_folder() / row["file"]) as image:
                gray = np.asarray(image.convert("L"))
            names.append(f"{index:04d}.{'png' if kind == 'png' else 'dcm'}")
            write = write_png if kind == "png" else write_dicom
            write(temporary / names[-1], gray, row)
        if kind == "png":
            manifest = part.drop(columns="file").assign(path=names)
            manifest.to_csv(temporary / "manifest.csv", index=False)
        temporary.rename(folder / name)


def write_png(path: Path, gray: np.ndarray, row: dict[str, Any]) -> None:
    del row
    Image.fromarray(gray).save(path)


def write_dicom(path: Path, gray: np.ndarray, row: dict[str, Any]) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["image", path.name])
    made = Dataset()
    made.file_meta = meta
    made.SOPClassUID = meta.MediaStorageSOPClassUID
    made.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    made.StudyInstanceUID = generate_uid(entropy_srcs=[row["study_id"]])
    made.SeriesInstanceUID = generate_uid(entropy_srcs=["series", path.name])
    made.Modality, made.PresentationIntentType = "DX", "FOR PRESENTATION"
    made.BodyPartExamined, made.ViewPosition = "CHEST", row["view"]
    made.PatientID, made.PatientSex = row["patient_id"], row["sex"]
    made.PatientAge = f"{row['age']:03d}Y"
    made.Rows, made.Columns = gray.shape
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    made.PixelData = gray.tobytes()
    made.save_as(path, enforce_file_format=True)


def measure(kind: str, count: int, detectors: list[Path], out: Path, rounds: int) -> str:
    folder = out / kind / ("few" if count == FEW else "all")
    source = folder / "manifest.csv" if kind == "png" else folder
    files = sorted(path for path in folder.iterdir() if path.suffix in {".png", ".dcm"})
    runs, decoding = [], []
    for _ in range(rounds):
        runs.append(time_triage(source, detectors, out / "triaged", count))
        decoding.append(time_decoding(files))
    middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    alone = statistics.median(found["cpu"] for found in decoding)
    spread = f"{min(r['seconds'] for r in runs):.1f}-{max(r['seconds'] for r in runs):.1f}"
    return (
        f"| {kind} ({np.mean([f.stat().st_size for f in files]) / 2**20:.2f} MiB each) | {count}"
        f" | {middle['seconds']:.1f} ({spread}) | {count / middle['seconds']:.1f}"
        f" | {middle['cpu']:.1f} | {middle['peak_mib']:.0f}"
        f" | {alone:.1f} ({100 * alone / middle['cpu']:.0f} %) |"
    )


def time_triage(source: Path, detectors: list[Path], out: Path, count: int) -> dict[str, float]:
    shutil.rmtree(out, ignore_errors=True)
    named = [part for path in detectors for part in ("--detector", str(path))]
    options = [str(source), *named, "--out", str(out), "--device", "cpu", "--json"]
    command = [sys.executable, "-c", MEASURE, sys.executable, "-c", TRIAGE, "triage", *options]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    if found["code"] not in {0, 3}:  # 3: some images were set aside
        raise SystemExit(f"triage ended with {found['code']}: {found['errors']}")
    scored = len(pd.read_csv(out / "worklist.csv"))
    failed = len(pd.read_csv(out / "failures.csv"))
    if failed > count / 50 or scored < count / 2 - failed:
        raise SystemExit(f"{scored} studies scored and {failed} images set aside of {count}")
    shutil.rmtree(out)
    return {key: found[key] for key in ("seconds", "cpu", "peak_mib")}


def time_decoding(files: list[Path]) -> dict[str, float]:
    names = "\n".join(map(str, files))
    command = [sys.executable, "-c", DECODE]
    done = subprocess.run(command, input=names, capture_output=True, check=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
