"""Stain separation: the matrix of a slide, the concentrations of a pixel, and the new colors.

Model: OD = C M with OD = -ln(I / 255). The rows of M (2, 3) are the stains, hematoxylin first, of
unit length and non-negative; C (n, 2) are their concentrations.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.color import OD_TABLE, Bytes, ColorHistogram, Floats, weighted_percentile
from data_prep.compiled import compile_kernel

#: Where the search for a matrix starts: H&E of Macenko et al. 2009 (rows: hematoxylin, eosin).
REFERENCE_MATRIX: Floats = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])

_MAX_STEPS = 2000


def sparse_concentrations(od: Floats, matrix: Floats, penalty: float) -> Floats:
    """Non-negative lasso for two stains in closed form: argmin ½‖od - c M‖² + penalty ‖c‖₁, c ≥ 0.

    With G = M Mᵀ and b = M od - penalty each concentration is
    ``max(0, min(b1 / G11, (G22 b1 - G12 b2) / det G))``, and likewise with 1 and 2 exchanged.

    Args:
        od: optical densities (n, 3).
        matrix: (2, 3), rows not parallel.
        penalty: lambda of the lasso.

    Returns:
        Concentrations (n, 2).
    """
    gram = matrix @ matrix.T
    det = gram[0, 0] * gram[1, 1] - gram[0, 1] ** 2
    b = od @ matrix.T - penalty
    b1, b2 = b[:, 0], b[:, 1]
    first = np.minimum(b1 / gram[0, 0], (gram[1, 1] * b1 - gram[0, 1] * b2) / det)
    second = np.minimum(b2 / gram[1, 1], (gram[0, 0] * b2 - gram[0, 1] * b1) / det)
    codes: Floats = np.maximum(np.stack([first, second], axis=1), 0)
    return codes


def vahadane_matrix(histogram: ColorHistogram, *, penalty: float) -> Floats | None:
    """Stain matrix by sparse dictionary learning (Vahadane et al. 2016) on a color histogram.

    Alternates the closed-form lasso with the dictionary step (block coordinates, non-negative,
    rows at most of unit length) until no entry moves by more than 1e-6. All pixels count, and
    equal histograms give equal matrices.

    Returns:
        (2, 3), hematoxylin first; None where the colors do not hold two stains.
    """
    od = histogram.mean_od()
    weight = histogram.counts / histogram.pixels
    matrix = REFERENCE_MATRIX.copy()
    for _ in range(_MAX_STEPS):
        codes = sparse_concentrations(od, matrix, penalty)
        weighted = codes * weight[:, None]
        update = _dictionary_step(matrix, weighted.T @ codes, weighted.T @ od)
        if update is None or _angle(update) < 1e-3:
            return None
        change = float(np.abs(update - matrix).max())
        matrix = update
        if change < 1e-6:
            break
    return ordered(matrix)


def _dictionary_step(matrix: Floats, moments: Floats, targets: Floats) -> Floats | None:
    """The rows that fit best for given codes: moments (2, 2) = CᵀC, targets (2, 3) = Cᵀ OD."""
    if moments.diagonal().min() < 1e-9:
        return None  # one stain is not used by any pixel
    matrix = matrix.copy()
    for _ in range(20):
        before = matrix.copy()
        for j in range(2):
            row = matrix[j] + (targets[j] - moments[j] @ matrix) / moments[j, j]
            row = np.maximum(row, 0)
            matrix[j] = row / max(1.0, float(np.linalg.norm(row)))
        if np.abs(matrix - before).max() < 1e-9:
            break
    return matrix if np.linalg.norm(matrix, axis=1).min() > 1e-6 else None


def macenko_matrix(histogram: ColorHistogram, *, percent: float = 99) -> Floats | None:
    """Stain matrix from the extreme angles in the plane of most variance (Macenko et al. 2009).

    As staintools does it: covariance of the OD of tissue, angles at 1 and 99 percent. A negative
    entry, which no absorbing stain has, is set to zero (ours).

    Returns:
        (2, 3), hematoxylin first; None where the colors do not hold two stains.
    """
    od = histogram.mean_od()
    if len(od) < 3:
        return None
    values, vectors = np.linalg.eigh(np.cov(od, rowvar=False, fweights=histogram.counts))
    if values[1] < 1e-9:
        return None
    plane = vectors[:, [2, 1]]
    plane = plane * np.where(plane[0] < 0, -1, 1)
    projected = od @ plane
    angles = np.arctan2(projected[:, 1], projected[:, 0])
    extremes = [weighted_percentile(angles, histogram.counts, p) for p in (100 - percent, percent)]
    matrix = np.maximum([plane @ [np.cos(angle), np.sin(angle)] for angle in extremes], 0)
    return ordered(matrix) if np.linalg.norm(matrix, axis=1).min() > 1e-6 else None


def ordered(matrix: Floats) -> Floats:
    """Rows of unit length, hematoxylin (the row with the larger red part) first."""
    matrix = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix[::-1].copy() if matrix[0, 0] < matrix[1, 0] else matrix


def stain_angle(matrix: Floats) -> float:
    """Angle between the two stains in degrees."""
    return float(np.degrees(_angle(matrix)))


def _angle(matrix: Floats) -> float:
    first, second = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    return float(2 * np.arctan2(np.linalg.norm(first - second), np.linalg.norm(first + second)))


def remap_stains(
    rgb: Bytes, matrix: Floats, scale: Floats, target: Floats, *, penalty: float
) -> Bytes:
    """New colors: 255 exp(-(scale C) M_target), truncated to a gray level as staintools does.

    Runs a compiled kernel where numba is installed, numpy otherwise (about three times slower).

    Args:
        rgb: (..., 3), left as it is.
        matrix: the slide's stains (2, 3).
        scale: factor of each concentration (2,).
        target: the stains to show (2, 3).
        penalty: lambda of the concentrations.

    Returns:
        uint8 of the same shape.
    """
    pixels = np.ascontiguousarray(rgb).reshape(-1, 3)
    kernel = compile_kernel(remap_kernel)
    if kernel is None:
        return remap_numpy(pixels, matrix, scale, target, penalty=penalty).reshape(rgb.shape)
    forward, offset, mix = _fold(matrix, scale, target, penalty)
    out = np.empty_like(pixels)
    kernel(pixels, out, OD_TABLE.astype(np.float32), forward, offset, mix)
    return out.reshape(rgb.shape)


def remap_numpy(
    pixels: Bytes, matrix: Floats, scale: Floats, target: Floats, *, penalty: float
) -> Bytes:
    """`remap_stains` of (n, 3) in plain numpy, float64, in chunks."""
    out = np.empty_like(pixels)
    mix = scale[:, None] * target
    for start in range(0, len(pixels), 1 << 16):
        part = slice(start, start + (1 << 16))
        codes = sparse_concentrations(OD_TABLE[pixels[part]], matrix, penalty)
        out[part] = (255 * np.exp(-(codes @ mix))).astype(np.uint8)
    return out


def _fold(
    matrix: Floats, scale: Floats, target: Floats, penalty: float
) -> tuple[npt.NDArray[np.float32], ...]:
    """The closed form as four linear maps of OD: alone and joint solution of each stain."""
    gram = matrix @ matrix.T
    det = gram[0, 0] * gram[1, 1] - gram[0, 1] ** 2
    alone = matrix / gram.diagonal()[:, None]
    cofactor = np.array([[gram[1, 1], -gram[0, 1]], [-gram[0, 1], gram[0, 0]]]) / det
    forward = np.concatenate([alone, cofactor @ matrix])  # (4, 3)
    offset = penalty * np.concatenate([1 / gram.diagonal(), cofactor.sum(axis=1)])
    mix = scale[:, None] * target * np.log2(np.e)  # the kernel's exponential has base 2
    return forward.astype(np.float32), offset.astype(np.float32), mix.astype(np.float32)


def remap_kernel(pixels: Any, out: Any, table: Any, forward: Any, offset: Any, mix: Any) -> None:
    """Planar chunks, so that each inner loop becomes vector instructions; exp2 as a polynomial.

    2^-y = 2^-round(y) 2^-rest: the power goes into the exponent bits, the rest within ±½ is a
    Taylor polynomial of degree 7 (error 1e-8, below float32), exact at 0: glass stays 255.
    """
    one = np.float32(1)
    od = np.empty((3, 8192), np.float32)
    code = np.empty((2, 8192), np.float32)
    bits = np.empty(8192, np.int32)
    power = bits.view(np.float32)
    level = np.empty((3, 8192), np.uint8)
    f, o = forward, offset
    for start in range(0, len(pixels), 8192):
        n = min(8192, len(pixels) - start)
        for i in range(n):
            od[0, i] = table[pixels[start + i, 0]]
            od[1, i] = table[pixels[start + i, 1]]
            od[2, i] = table[pixels[start + i, 2]]
        for s in range(2):
            a0, a1, a2, ao = f[s, 0], f[s, 1], f[s, 2], o[s]
            j0, j1, j2, jo = f[s + 2, 0], f[s + 2, 1], f[s + 2, 2], o[s + 2]
            for i in range(n):
                alone = a0 * od[0, i] + a1 * od[1, i] + a2 * od[2, i] - ao
                joint = j0 * od[0, i] + j1 * od[1, i] + j2 * od[2, i] - jo
                code[s, i] = max(np.float32(0), min(alone, joint))
        for c in range(3):
            m0, m1 = mix[0, c], mix[1, c]
            for i in range(n):
                y = min(m0 * code[0, i] + m1 * code[1, i], np.float32(120))
                whole = np.int32(y + np.float32(0.5))
                bits[i] = (np.int32(127) - whole) << np.int32(23)
                t = np.float32(-0.6931471805599453) * (y - np.float32(whole))
                p = one + t * np.float32(1 / 7)
                p = one + t * p * np.float32(1 / 6)
                p = one + t * p * np.float32(1 / 5)
                p = one + t * p * np.float32(1 / 4)
                p = one + t * p * np.float32(1 / 3)
                p = one + t * p * np.float32(1 / 2)
                p = one + t * p
                level[c, i] = np.uint8(np.float32(255) * p * power[i])
        for i in range(n):
            out[start + i, 0] = level[0, i]
            out[start + i, 1] = level[1, i]
            out[start + i, 2] = level[2, i]
