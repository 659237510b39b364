"""The switch from fast paths to plain ones: what is computed is the same, how it is differs.

``ESAD_PLAIN=all`` or a comma list of `PATHS` in the environment, so that worker processes inherit
it. It is no setting of a run: it changes no result beyond what the fast path promises.
"""

import os

from esad_med.base.errors import ConfigError

#: Each fast path, and what takes its place.
PATHS = {
    "reader": "tiles are read by OpenSlide alone, never decoded directly",
    "kernels": "pixels are handled by numpy, not by compiled loops",
    "layers": "a layer, its ReLU and doubling before it run one after the other when scoring",
    "overlap": "slides are read and scored in turns, not at the same time",
    "device": "training samples are copied to the device batch by batch",
    "graphs": "training steps on CUDA are launched kernel by kernel, not as a graph",
}


def is_plain(path: str) -> bool:
    """Whether this fast path, one of `PATHS`, is switched off.

    Raises:
        ConfigError: the variable names a path that does not exist.
    """
    wanted = {name.strip() for name in os.environ.get("ESAD_PLAIN", "").split(",")} - {""}
    if unknown := sorted(wanted - {*PATHS, "all"}):
        raise ConfigError(
            f"ESAD_PLAIN: '{unknown[0]}' is unknown; expected all, or some of {', '.join(PATHS)}"
        )
    return path in wanted or "all" in wanted
