"""`esad-med`, and which threads of gloo are left when it leaves."""

import sys
from pathlib import Path

from esad_med.cli import main


def gloo_threads() -> list[str]:
    """Names of this process's threads that carry what ranks tell each other."""
    names = ((task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir())
    return [name for name in names if "gloo" in name]


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    finally:
        print("threads left:", len(gloo_threads()))
