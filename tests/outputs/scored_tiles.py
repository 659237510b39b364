"""Composed scores of a slide: two lesions, one a ring with an island in its hole."""

import numpy as np

from esad_med.outputs.lesions import SlideTiles

SIZE = (2048, 1900)
EDGE = 128
THRESHOLD = 1.0
MPP = 0.5
FINGERPRINT = "ab" * 32


def scored_tiles(edge=EDGE, size=SIZE, lesions=True, **changes):
    """Tiles over the whole slide, without gaps; those above the threshold score 2 and more."""
    starts = [np.rint(np.arange(int(side / edge)) * edge).astype(np.int64) for side in size]
    x, y = (axis.ravel() for axis in np.meshgrid(*starts))
    column, row = np.rint(x / edge), np.rint(y / edge)
    high = np.zeros(len(x), bool)
    if lesions:
        ring = np.maximum(abs(column - 4), abs(row - 4))
        high |= (ring == 3) | (ring == 0)
        high |= np.hypot(column - 12, row - 9) < 2.2
    score = (high * 2 + np.linspace(0, 0.5, len(x))).astype(np.float32)
    values = {
        "xy_level0": np.stack([x, y], axis=1),
        "edge_level0": float(edge),
        "measurements": {
            "score": score,
            "percentile": np.float32(40) * score,
            "reconstruction": score + 1,
            "norm": -score,
        },
        "threshold": THRESHOLD,
        "fingerprint": FINGERPRINT,
        "slide_size": size,
        "mpp": MPP,
        "about": {"case_id": "c", "detector": "0" * 64},
    }
    return SlideTiles(**{**values, **changes})


def covered(tiles, step, inside=None):
    """(h, w) bool: pixels of ``step`` level-0 pixels whose centers lie in tiles above."""
    width, height = (int(side / step) for side in tiles.slide_size)
    mask = np.zeros((height, width), bool)
    chosen = tiles.above if inside is None else inside
    edge = tiles.drawn_edge / step
    for left, top in tiles.xy_level0[chosen] / step:
        mask[int(top) : int(top + edge), int(left) : int(left + edge)] = True
    return mask
