"""How long `esad-med --help` takes: median of seven starts.

python -m benchmarks.bench_start
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    command = [str(Path(sys.executable).with_name("esad-med")), "--help"]
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    print(f"esad-med --help: {statistics.median(seconds):.2f} s, target 0.5 s")


if __name__ == "__main__":
    main()
