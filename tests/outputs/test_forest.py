"""Forest plots open, repeat byte by byte, and show what they are given."""

import math

import numpy as np
from PIL import Image

from esad_med.outputs.forest import ForestRow, write_forest


def rows(value):
    known, unknown = (value, value - 0.1, value + 0.05), (math.nan,) * 3
    return [
        ForestRow("sex", "F", "100 / 20", {"AUC": known, "sensitivity": known}, False),
        ForestRow("sex", "M", "90 / 4", {"AUC": known, "sensitivity": unknown}, True),
        ForestRow("age", "a name that is far too long for its place", "1 / 0",
                  {"AUC": unknown, "sensitivity": unknown}, True),
    ]  # fmt: skip


def test_the_plot_repeats_and_changes_with_its_values(tmp_path):
    files = write_forest(tmp_path / "a", rows(0.8), title="By group")
    write_forest(tmp_path / "b", rows(0.8), title="By group")
    write_forest(tmp_path / "c", rows(0.7), title="By group")
    assert [file.name for file in files] == ["a.svg", "a.png"]
    for suffix in (".svg", ".png"):
        first, again, other = ((tmp_path / f"{n}{suffix}").read_bytes() for n in "abc")
        assert first == again != other
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    blue = (np.abs(picture - (0, 0x55, 0x8C)) < 8).all(axis=-1)
    orange = (np.abs(picture - (0xB3, 0x54, 0x1E)) < 8).all(axis=-1)
    assert blue.any()
    assert orange.any()
