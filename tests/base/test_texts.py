"""A spreadsheet that opens a CSV computes nothing; a terminal that shows it obeys nothing."""

import csv
import io

import pandas as pd
import pytest

from esad_med.base.runs import write_csv
from esad_med.base.texts import plain_cell, table_to_csv

FORMULAS = [
    "=1+1",
    "+A1",
    "-A1",
    "@sum(1)",
    "\t=1",
    "  =1",
    "\uff1d1",
    "=cmd|' /C calc'!A0",
    "-",
    "-1-1",
]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_becomes_text_and_stays_so(text):
    shown = plain_cell(text)
    assert str(shown).startswith("'")
    assert plain_cell(shown) == shown


@pytest.mark.parametrize(
    "value", [-1.5, 3, None, True, "-1.5", "+2e-3", "-inf", ".5", "a=b", "a-b", ""]
)
def test_numbers_and_plain_text_stay(value):
    assert plain_cell(value) == value


def test_what_other_settings_read_as_a_cell_s_begin_is_none_either():
    assert plain_cell("a;=1;b\t@c\r\n=d\r-e") == "a;'=1;b\t'@c\n'=d\n'-e"


def test_a_cell_steers_no_terminal():
    assert plain_cell("a\x1b[31m\x00\x9b\u202eb\tc") == "a?[31m???b\tc"


def test_tables_and_rows_are_written_alike(tmp_path):
    texts = [*FORMULAS, "a\r=1", 'say "=1"', "x, y"]
    write_csv(tmp_path / "a.csv", ("=head", "number"), [(text, -1.5) for text in texts])
    table = pd.DataFrame({"=head": texts, "number": -1.5})
    assert (tmp_path / "a.csv").read_bytes().decode() == table_to_csv(table)
    header, *rows = csv.reader(io.StringIO(table_to_csv(table), newline=""))
    assert header == ["'=head", "number"]
    assert [row[0] for row in rows] == [plain_cell(text) for text in texts]
    assert {row[1] for row in rows} == {"-1.5"}


def test_missing_values_and_categories_stay():
    table = pd.DataFrame(
        {"a": pd.Categorical(["=1", None]), "b": pd.array([1, None], dtype="Int8")}
    )
    assert table_to_csv(table) == "a,b\n'=1,1\n,\n"
