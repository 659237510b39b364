"""The reference stain normalization: staintools and spams, imported only where they are asked for.

Their tissue mask, optical density, dictionary learning and lasso; one matrix per slide, as ours.
Two departures from staintools as shipped: its fit runs for one second of the clock on all cores
and so never gives the same matrix twice, so spams is given a number of iterations and one thread;
and it changes its input, so it is given a copy.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from data_prep.color import Bytes, Floats
from data_prep.vahadane import ordered
from esad_med.base.errors import ConfigError

ITERATIONS = 2000  # of spams.trainDL, mini-batches of 400 pixels: within 0.3 degrees of the optimum
_PIXELS = 1_000_000  # at most this many, spread evenly: spams copies them as float64


def staintools_matrix(
    images: Iterable[Bytes],
    *,
    penalty: float = 0.1,
    share: float = 0.8,
    iterations: int = ITERATIONS,
) -> Floats:
    """Stain matrix (2, 3) by `spams.trainDL` on the tissue that staintools finds.

    Args:
        images: arrays (..., 3) uint8; there must be tissue in them.
        penalty: lambda of the dictionary.
        share: luminosity bound of tissue.
        iterations: of the stochastic dictionary learning.

    Raises:
        ConfigError: the extra ``reference`` is not installed.
    """
    locate, convert, spams = _libraries()
    pixels = np.concatenate([image.reshape(-1, 3) for image in images])
    pixels = np.ascontiguousarray(pixels[:: max(1, -(-len(pixels) // _PIXELS))][:, None])
    od = convert(pixels[locate(pixels, luminosity_threshold=share)])
    dictionary = spams.trainDL(
        X=np.asfortranarray(od.T), K=2, lambda1=penalty, mode=2, modeD=0, posAlpha=True,
        posD=True, verbose=False, iter=iterations, numThreads=1,
    )  # fmt: skip
    return ordered(np.asarray(dictionary, dtype=np.float64).T)


def remap_staintools(
    tiles: Bytes, matrix: Floats, scale: Floats, target: Floats, *, penalty: float = 0.01
) -> Bytes:
    """New colors with concentrations by `spams.lasso`, as staintools' normalizer computes them.

    Args:
        tiles: (..., 3) uint8, left as they are.
        matrix: the slide's stains (2, 3).
        scale: factor of each concentration (2,).
        target: the stains to show (2, 3).
        penalty: lambda of the lasso.

    Raises:
        ConfigError: the extra ``reference`` is not installed.
    """
    _, convert, spams = _libraries()
    od = convert(tiles.reshape(-1, 3).copy())
    codes = spams.lasso(
        X=np.asfortranarray(od.T), D=np.asfortranarray(matrix.T), mode=2, lambda1=penalty,
        pos=True, numThreads=1,
    )  # fmt: skip
    mixed = (codes.toarray().T * scale) @ target
    rgb: Bytes = (255 * np.exp(-mixed)).astype(np.uint8)
    return rgb.reshape(tiles.shape)


def _libraries() -> tuple[Any, Any, Any]:
    """The tissue mask and the optical density of staintools, and spams."""
    try:
        import spams
        from staintools.miscellaneous.optical_density_conversion import convert_RGB_to_OD
        from staintools.tissue_masks.luminosity_threshold_tissue_locator import (
            LuminosityThresholdTissueLocator as Locator,
        )
    except ImportError as error:
        raise ConfigError(
            f"--stain staintools: {error}; install the extra 'reference' (pip install"
            " 'esad-med[reference]'), or use --stain vahadane, which needs nothing more"
        ) from error
    return Locator.get_tissue_mask, convert_RGB_to_OD, spams
