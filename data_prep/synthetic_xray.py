"""Drawn chest radiographs and planted opacities: honest inputs where no patient's may be used.

A drawn chest exercises reading, preparation and reports; it looks like no patient. An opacity
planted in a real normal radiograph is a finding whose truth is known, by which a broken pipeline
shows even where labels are noisy. No diagnosis can be drawn from either.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

Floats = npt.NDArray[np.float32]
_Doubles = npt.NDArray[np.float64]

_LEAST_SIDE = 32
_FARTHEST = 0.24  # from the midline, of the width: beyond lie ribs and arms
_HEIGHTS = (0.32, 0.58)  # of the height, from the top
_STRETCH = 1.25  # most, of one half-axis by the radius
_CORE, _SOFT = 0.7, 0.2  # of a half-axis: the plateau's end, and the width of the Gaussian edge
_REACH = 1.5  # half-axes: beyond, the edge is under a thousandth
_MOTTLE, _MOTTLE_GRID = 0.12, 7


def compose_xray(rng: np.random.Generator, size: int) -> Floats:
    """Draw a frontal chest: bright middle and belly, dark lungs with ribs, dark outside, noise.

    Head up, the heart on the picture's right, bones bright; proportions, exposure and position
    differ from draw to draw.

    Args:
        rng: source of chance; equal states give equal pictures.
        size: edge in pixels, at least 32.

    Returns:
        (size, size) in 0 ... 1.
    """
    if size < _LEAST_SIDE:
        raise ValueError(f"size {size}, expected at least {_LEAST_SIDE} pixels")
    line = (np.arange(size) + 0.5) / size
    zoom = rng.uniform(0.9, 1.05)
    across = (2 * line - 1 + rng.uniform(-0.04, 0.04))[None] / zoom  # -1 ... 1
    down = (line + rng.uniform(-0.03, 0.03))[:, None] / zoom  # 0 ... 1
    body = _body(across, down)
    air = _lungs(across, down, rng) * body
    middle = np.exp(-((across / rng.uniform(0.11, 0.15)) ** 2)) * np.minimum(1, 0.4 + down)
    heart = _blob(across - 0.17, down - 0.6, rng.uniform(0.24, 0.32), rng.uniform(0.13, 0.17))
    tissue = 0.52 + 0.22 * down + 0.2 * middle + 0.18 * heart
    dark = rng.uniform(0.3, 0.4) * air * (1 - 0.85 * np.maximum(heart, 0.8 * middle))
    picture = body * (tissue - dark) + 0.05 * _ribs(across, down) * air
    exposed = np.clip(picture, 0, 1) ** rng.uniform(0.85, 1.2) * rng.uniform(0.85, 1.0)
    grain = rng.normal(0, 0.015, (size, size))
    return np.asarray(np.clip(0.03 + exposed + grain, 0, 1), dtype=np.float32)


def plant_opacity(
    pixels: Floats, rng: np.random.Generator, *, strength: float, radius_share: float
) -> Floats:
    """Add a soft, slightly mottled ellipse to one lung of an upright frontal chest.

    Its place is drawn where lungs lie in a centered picture, in the left or right half and clear
    of the midline; the picture itself is not looked at. A generator in the same state puts the
    same shape at the same place whatever the strength, so strengths can be compared.

    Args:
        pixels: (h, w) in 0 ... 1, bones bright; left as it is.
        rng: source of chance.
        strength: added brightness in the middle, 0 to 1; what passes 1 is cut.
        radius_share: mean half-axis by the picture's width, above 0 and at most 0.2.

    Returns:
        A copy with the opacity.
    """
    if not (0 <= strength <= 1 and 0 < radius_share <= 0.2):
        raise ValueError("expected a strength within 0 ... 1 and a radius_share within (0, 0.2]")
    height, width = pixels.shape
    stretch = float(np.exp(rng.uniform(-1, 1) * np.log(_STRETCH)))
    half = np.array([radius_share / stretch, radius_share * stretch]) * width  # down, across
    offset = rng.uniform(min(radius_share * stretch, _FARTHEST), _FARTHEST)
    side = 1 if rng.integers(2) else -1
    middle = np.array([rng.uniform(*_HEIGHTS) * height, (0.5 + side * offset) * width])
    mottle = rng.normal(0, _MOTTLE, (_MOTTLE_GRID, _MOTTLE_GRID))
    low = np.maximum(np.floor(middle - _REACH * half), 0).astype(int)
    high = np.minimum(np.ceil(middle + _REACH * half), [height, width]).astype(int)
    grid = np.mgrid[low[0] : high[0], low[1] : high[1]] + 0.5
    distance = np.hypot(*((grid - middle[:, None, None]) / half[:, None, None]))
    added = np.exp(-((np.maximum(distance - _CORE, 0) / _SOFT) ** 2) / 2)
    added *= np.clip(1 + _enlarge(mottle, added.shape), 0, 2)
    planted = np.array(pixels, dtype=np.float32)
    spot = planted[low[0] : high[0], low[1] : high[1]]
    spot += strength * added
    np.clip(spot, 0, 1, out=spot)
    return planted


def _body(across: _Doubles, down: _Doubles) -> _Doubles:
    """1 in the neck, shoulders and trunk, 0 outside, with a soft border."""
    half = 0.24 + 0.66 * _step((down - 0.12) / 0.04) - 0.12 * _step((down - 0.45) / 0.08)
    return _step((half - np.abs(across)) / 0.025)


def _lungs(across: _Doubles, down: _Doubles, rng: np.random.Generator) -> _Doubles:
    """1 in two lungs that end at the domes of the diaphragm."""
    wide, tall = rng.uniform(0.24, 0.29), rng.uniform(0.28, 0.34)
    both = np.zeros(np.broadcast_shapes(across.shape, down.shape))
    for side in (-1, 1):
        dome = rng.uniform(0.66, 0.72) + 1.2 * (across - side * 0.36) ** 2
        lung = _blob(across - side * 0.4, down - 0.45, wide, tall)
        both += lung * _step((dome - down) / 0.012)
    return np.asarray(np.clip(both, 0, 1))


def _ribs(across: _Doubles, down: _Doubles) -> _Doubles:
    """Bands of -1 to 1 that fall towards the sides."""
    return np.asarray(np.cos(2 * np.pi * (11 * down - 2.5 * across**2)))


def _blob(across: _Doubles, down: _Doubles, wide: float, tall: float) -> _Doubles:
    """1 in an ellipse around zero, 0 outside, with a soft border."""
    return _step((1 - np.hypot(across / wide, down / tall)) / 0.06)


def _step(x: _Doubles) -> _Doubles:
    """From 0 to 1, one half at zero."""
    return np.asarray(0.5 + 0.5 * np.tanh(x))


def _enlarge(values: _Doubles, shape: tuple[int, ...]) -> _Doubles:
    """Smooth values of any (h, w) from a few."""
    picture = Image.fromarray(values.astype(np.float32))
    large = picture.resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(large, dtype=np.float64)
