"""Published cells of Camelyon16, listed as DPA lists them."""

from collections.abc import Iterable
from pathlib import Path

CELL = "{}_{}_x_{}_y_{}_w_768_h_768.jpg"

#: Slide, normal or tumor, row, column.
Cell = tuple[str, str, int, int]


def write_cells(path: Path, cells: Iterable[Cell]) -> None:
    """A list of cells; x is the row."""
    path.write_text("".join(CELL.format(*cell) + "\n" for cell in cells))
