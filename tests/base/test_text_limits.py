"""Tables and JSON are looked at before a parser takes memory for them."""

import gzip
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esad_med.base.cases import read_table
from esad_med.base.config import Spec, load_config
from esad_med.base.errors import CaseError, ConfigError
from esad_med.base.limits import Limits
from esad_med.base.text_limits import check_table, parse_json

VALUES = st.recursive(
    st.none() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
)


def depth(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return int(isinstance(value, dict | list)) + max(map(depth, inner), default=0)


@given(VALUES, st.integers(1, 6), st.booleans())
def test_json_is_read_as_deep_as_asked_and_no_deeper(value, nesting, ascii_only):
    data = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    if depth(value) > nesting:
        with pytest.raises(ValueError, match=rf"more than {nesting} deep \(limits.nesting\)"):
            parse_json(data, nesting=nesting)
    else:
        assert parse_json(data, nesting=nesting) == value


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_a_table_of_the_limit_is_read_and_one_byte_more_is_not(suffix, tmp_path):
    path = tmp_path / f"t{suffix}"
    rows = [f"{n:06d},{n * 7919 % 99991:05d}" for n in range(1, 80_000)]
    data = ("id,x\n" + "\n".join(rows)).encode()
    path.write_bytes(gzip.compress(data) if suffix == ".csv.gz" else data)
    exact = Limits(table_mib=len(data) / (1 << 20))
    assert len(read_table(path, limits=exact)) == len(rows)
    with pytest.raises(CaseError, match=r"limits\.table_mib"):
        read_table(path, limits=Limits(table_mib=(len(data) - 1) / (1 << 20)))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_columns_are_counted_whatever_ends_a_line(end, tmp_path):
    (tmp_path / "t.csv").write_text(end.join(["a,b,c"] * 3), newline="")
    check_table(tmp_path / "t.csv", limits=Limits(table_columns=3))
    with pytest.raises(CaseError, match="more than 2 columns"):
        check_table(tmp_path / "t.csv", limits=Limits(table_columns=2))


@pytest.mark.parametrize("piece", [b'"', b'\\"', b'"\\', b'"['])
def test_strings_that_do_not_end_cost_no_more_than_their_length(piece):
    for end in (b"", b"\\"):
        start = time.process_time()
        with pytest.raises(ValueError, match=r"JSON|Expecting|string|nested|column"):
            parse_json(piece * 500_000 + end, nesting=64)
        assert time.process_time() - start < 2


def test_aliases_may_stand_for_as_much_as_settings_hold(tmp_path):
    class Any(Spec):
        a: object = None
        b: object = None

    path = tmp_path / "c.yaml"
    path.write_text(f"a: &a [{', '.join('1' * 900)}]\nb: [{', '.join(['*a'] * 100)}]\n")
    assert len(load_config(Any, path).b) == 100
    path.write_text(f"a: &a [{', '.join('1' * 900)}]\nb: [{', '.join(['*a'] * 120)}]\n")
    with pytest.raises(ConfigError, match="stand for more than 100,000 values"):
        load_config(Any, path)
