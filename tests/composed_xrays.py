"""Small composed radiographs for the tests of the pipelines."""

import numpy as np

from data_prep.synthetic_xray import compose_xray, plant_opacity

SIDE = 160


def draw_pixels(seed: int, *, opacity: bool = False) -> np.ndarray:
    """A composed radiograph (SIDE, SIDE) uint8."""
    rng = np.random.default_rng(seed)
    picture = compose_xray(rng, SIDE)
    if opacity:
        picture = plant_opacity(picture, rng, strength=0.4, radius_share=0.14)
    return np.rint(picture * 255).astype(np.uint8)
