"""`esad-med doctor`: what is installed, what is missing, and how to get it."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer

from esad_med.cli.app import EXIT_ERROR, app, finish
from esad_med.cli.options import Json

_EXTRAS = {
    "reference": ("staintools", "spams-bin"),
    "dicom": ("highdicom", "pynetdicom", "pylibjpeg-libjpeg", "prometheus_client"),
    "cluster": ("dask", "distributed"),
    "onnx": ("onnx", "onnxruntime"),
}
_GIB = 1 << 30


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report; a failed check says how to mend it."""

    name: str
    status: Literal["ok", "missing", "failed"]
    found: str
    remedy: str = ""


@app.command("doctor")
def doctor(
    out: Annotated[Path, typer.Option(help="Where results will go; its free space is told.")] = (
        Path()
    ),
    as_json: Json = False,
) -> None:
    """Check the installation: versions, OpenSlide, GPU, bfloat16, int8, optional extras, disk."""
    checks = list(run_checks(out))
    lines = [f"{_MARKS[c.status]} {c.name}: {c.found}" for c in checks]
    remedies = [f"  -> {c.name}: {c.remedy}" for c in checks if c.remedy]
    finish({"checks": [asdict(check) for check in checks]}, lines + remedies, as_json=as_json)
    if any(check.status == "failed" for check in checks):
        raise typer.Exit(EXIT_ERROR)


_MARKS = {"ok": "ok      ", "missing": "optional", "failed": "FAILED  "}


def run_checks(out: Path) -> Iterator[Check]:
    """Every check, each by itself: one that fails does not hide the others."""
    from esad_med.base.runs import versions

    for name, version in versions().items():
        if version == "not installed":
            yield Check(name, "failed", version, "pip install -c constraints.txt -e .")
        else:
            yield Check(name, "ok", version)
    for check in (_openslide, _devices, _bfloat16, _int8, _numba, _openseadragon):
        yield _guarded(check)
    for extra, packages in _EXTRAS.items():
        yield _extra(extra, packages)
    yield _disk(out)


def _guarded(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except (ImportError, OSError, RuntimeError) as error:
        name = check.__name__.strip("_")
        return Check(name, "failed", str(error), "pip install --force-reinstall -e .")


def _openslide() -> Check:
    import openslide

    return Check("OpenSlide library", "ok", openslide.__library_version__)


def _devices() -> Check:
    import torch

    if torch.cuda.is_available():
        name, memory = torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1]
        return Check("CUDA", "ok", f"{name}, {memory / _GIB:.0f} GiB")
    threads = torch.get_num_threads()
    return Check(
        "CUDA",
        "missing",
        f"no CUDA device; {threads} CPU threads are used",
        "with an NVIDIA card: install its driver and a CUDA build of torch"
        " (https://pytorch.org/get-started)",
    )


def _bfloat16() -> Check:
    from esad_med.method.devices import choose_device, computes_bfloat16

    if computes_bfloat16(choose_device("auto")):
        return Check("bfloat16", "ok", "in hardware; precision 'auto' trains with it")
    return Check("bfloat16", "missing", "not in hardware; precision 'auto' trains in float32")


def _int8() -> Check:
    from esad_med.method.int8 import computes_int8

    if computes_int8():
        return Check("int8", "ok", "in the CPU; for --precision int8 of score and screen")
    return Check("int8", "missing", "the CPU has no 8-bit dot products (VNNI)")


def _numba() -> Check:
    import numba

    return Check("numba", "ok", numba.__version__)


def _openseadragon() -> Check:
    from esad_med.base.errors import ConfigError
    from esad_med.outputs.openseadragon import REMEDY, VERSION, read_openseadragon

    try:
        read_openseadragon()
    except ConfigError as error:
        return Check("OpenSeadragon", "missing", str(error).partition(";")[0], "; ".join(REMEDY))
    return Check("OpenSeadragon", "ok", f"{VERSION}; for the pages of `view`")


def _extra(extra: str, packages: tuple[str, ...]) -> Check:
    missing = []
    for package in packages:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        remedy = f"pip install -c constraints.txt -e '.[{extra}]'"
        return Check(f"extra {extra}", "missing", f"without {', '.join(missing)}", remedy)
    return Check(f"extra {extra}", "ok", ", ".join(packages))


def _disk(out: Path) -> Check:
    try:
        folder = next((path for path in (out, *out.resolve().parents) if path.exists()), Path("/"))
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Check("disk", "failed", f"{out}: {error.strerror}", "choose another --out")
    if free < _GIB:
        remedy = "free some space, or choose another --out"
        return Check("disk", "failed", f"{free / _GIB:.1f} GiB free at {out.resolve()}", remedy)
    return Check("disk", "ok", f"{free / _GIB:.0f} GiB free at {out.resolve()}")
