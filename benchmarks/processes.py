"""A step of a benchmark in a process of its own, whose last line of output is its result."""

import json
import os
import subprocess
import sys
from typing import Any


def in_own_process(module: str, *arguments: object, plain: str) -> Any:
    """Run ``python -m module`` with `plain` fast paths off; what it printed last, as JSON.

    Raises:
        SystemExit: it failed, with what it wrote to its error output.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ESAD_PLAIN": plain},
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])
