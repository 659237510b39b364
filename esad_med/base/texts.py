"""Texts from outside on their way to people: terminals obey some, spreadsheets compute others."""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# What a terminal obeys, and what turns the reading around; tabs and line ends stay.
_CONTROLS = (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F))
_UNPRINTABLE = dict.fromkeys((*_CONTROLS, *range(0x2066, 0x206A)), "?")
# A cell's begin, or behind ; and tabs, where a spreadsheet of other settings begins a new one.
_FORMULA = re.compile(r"^(?=[\t\n])|(^|[;\t\n])(?=\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|nan)", re.IGNORECASE)


def printable(text: str) -> str:
    """The text with a ? for each character that would steer a terminal."""
    return text.translate(_UNPRINTABLE)


def plain_cell(value: object) -> object:
    """A cell that a spreadsheet shows as text; numbers stay as they are.

    An apostrophe goes before what begins a formula. Line ends become Unix ones: Python writes a
    lone carriage return unquoted, and what follows it would begin a row. The rest is `printable`.
    """
    if not isinstance(value, str) or _NUMBER.fullmatch(value):
        return value
    text = printable(value.replace("\r\n", "\n").replace("\r", "\n"))
    return _FORMULA.sub(r"\1'", text)


def table_to_csv(
    table: "pd.DataFrame", *, header: bool = True, float_format: str | None = None
) -> str:
    """A table as the text of a CSV with Unix line ends; its texts by `plain_cell`."""
    texts = table.select_dtypes(exclude=["number", "bool"]).columns
    odd = [name for name in texts if not _all_plain(table[name])]
    plain = {name: _plain_column(table[name]) for name in odd}
    table = table.assign(**plain).rename(columns=plain_cell)
    return table.to_csv(index=False, header=header, lineterminator="\n", float_format=float_format)


def _plain_column(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """By `plain_cell`, as objects: PyArrow's texts, where it is installed, hold no surrogates."""
    cells = [plain_cell(value) if isinstance(value, str) else value for value in column]
    return type(column)(cells, index=column.index, dtype=object)


def _all_plain(column: "pd.Series[Any]") -> bool:
    """Whether `plain_cell` would change nothing; quick, for the names of a million tiles."""
    values = [value for value in column if isinstance(value, str)]
    joined = "".join(values)
    return (
        joined.isascii()
        and joined.isprintable()
        and ";" not in joined
        and all(first.isalnum() for first in {value[0] for value in values if value})
    )
