"""Other packages to compare with, in an environment of their own beside the project's.

It sees the project's packages, so that torch and OpenSlide are not installed twice, and adds what
the project does not depend on. Nothing of it is ever imported by the project.
"""

import os
import re
import site
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / ".peers"
_PATIENCE = 90  # seconds to find versions that go together


def peer_python(*packages: str) -> tuple[Path, str]:
    """The interpreter of an environment that has these packages, and why one could not be had.

    Returns:
        The interpreter, and an empty text or pip's reason.
    """
    python = FOLDER / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(FOLDER)], check=True)
        (own,) = FOLDER.glob("lib/python*/site-packages")
        shared = [*site.getsitepackages(), str(FOLDER.parent)]
        (own / "project.pth").write_text("\n".join(shared) + "\n")
    reason = ""
    for package in packages:
        reason = reason or _install(python, package)
    return python, reason


def _install(python: Path, package: str) -> str:
    """Install one package where what it needs is there already or fits; pip's last word if not."""
    name = re.split("[<=>]", package)[0]
    known = [str(python), "-c", f"import importlib.metadata as m; m.version({name!r})"]
    if subprocess.run(known, capture_output=True, check=False).returncode == 0:
        return ""
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    pins = FOLDER.parent / "constraints.txt"
    try:
        done = subprocess.run(
            [*pip, "-c", str(pins), package],
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE,
            env={**os.environ, "PYTHONPATH": ""},
        )
    except subprocess.TimeoutExpired:
        return f"pip finds no versions beside this project's within {_PATIENCE} s"
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return "" if done.returncode == 0 else (lines or ["pip failed"])[0].removeprefix("ERROR: ")
