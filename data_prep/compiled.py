"""Loops over pixels compiled by numba where it is installed; numpy does the same work elsewhere."""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

from esad_med.base.plain import is_plain

_log = logging.getLogger(__name__)


def compile_kernel(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """A plain function as machine code, compiled at first use and kept on disk.

    Returns:
        None where numba is missing or `is_plain`; the caller then has a numpy way.
    """
    return None if is_plain("kernels") else _compile(function)


@cache
def _compile(function: Callable[..., Any]) -> Callable[..., Any] | None:
    try:
        import numba
    except ImportError:
        _log.info("numba is not installed: pixels are handled with numpy, more slowly")
        return None
    try:
        kernel: Callable[..., Any] = numba.njit(function, nogil=True, cache=True)
    except RuntimeError:  # nowhere to keep the compiled code
        kernel = numba.njit(function, nogil=True)
    return kernel
