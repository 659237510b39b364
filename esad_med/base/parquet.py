"""Tables as Parquet: typed columns, and what they are of in the file's metadata."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from esad_med.base.errors import CaseError, ConfigError
from esad_med.base.limits import Limits
from esad_med.base.runs import atomic_file

_BATCH = 1 << 16  # rows decoded at a time


def is_parquet(path: Path) -> bool:
    """Whether a file is Parquet by its name."""
    return path.suffix.lower() == ".parquet"


def require_pyarrow() -> None:
    """Ask for the extra.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    if find_spec("pyarrow") is None:
        raise ConfigError("Parquet needs pyarrow; run: pip install 'esad-med[parquet]'")


def write_parquet(path: Path, table: pd.DataFrame, about: Mapping[str, str]) -> None:
    """Write a table atomically; equal tables give equal bytes.

    Args:
        path: the file.
        table: texts become strings, numbers stay as wide as they are; missing cells are null.
        about: the file's key-value metadata.

    Raises:
        ConfigError: pyarrow is not installed, or the file cannot be written.
    """
    require_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {str(name): _to_arrow(table[name]) for name in table}
    metadata = {key: value.encode() for key, value in about.items()}
    with atomic_file(path) as temporary:
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), temporary)


def _to_arrow(column: "pd.Series[Any]") -> Any:
    """A column as Arrow's; every kind of text as ``string``, which all readers know."""
    import pyarrow as pa

    mixed = column.dtype == object
    array = pa.array(column.astype("string") if mixed else column, from_pandas=True)
    texts = (pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return array.cast(pa.string()) if any(known(array.type) for known in texts) else array


def read_parquet(path: Path, *, limits: Limits | None = None) -> pd.DataFrame:
    """Read a Parquet file as `read_table` reads a CSV: every cell a string, empty where missing.

    Raises:
        CaseError: the file cannot be read, has columns of other kinds than texts, numbers and
            truth values, or is larger than the limits.
        ConfigError: pyarrow is not installed.
    """
    require_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    limits = limits or Limits()
    try:
        texts = _check(path, pq.read_metadata(path), pq.read_schema(path), limits)
        with pq.ParquetFile(path, read_dictionary=texts) as file:
            parts = _decode(path, file, limits)
    except OSError as error:  # Arrow's own errors of a file are OSErrors or ValueErrors
        raise CaseError(f"{path}: cannot be read as Parquet ({error!s:.100})") from error
    except (ValueError, pa.ArrowException) as error:
        raise CaseError(f"{path}: no Parquet file, or damaged ({error!s:.100})") from error
    table: pd.DataFrame = pa.concat_tables(parts).to_pandas()
    return table.assign(**{str(name): table[name].str.strip() for name in table})


def parquet_columns(path: Path) -> list[str]:
    """The names of a file's columns, none where it is no Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(pq.read_schema(path).names)
    except (OSError, ValueError, pa.ArrowException):
        return []


def _check(path: Path, facts: Any, schema: Any, limits: Limits) -> list[str]:
    """Refuse what would take too much memory; the columns of texts."""
    import pyarrow as pa

    most = limits.table_mib * 2**20
    groups = (facts.row_group(number) for number in range(facts.num_row_groups))
    unpacked = sum(group.total_byte_size for group in groups)
    if len(schema.names) > limits.table_columns:
        raise CaseError(
            f"{path}: more than {limits.table_columns:,} columns (limits.table_columns)"
        )
    if max(unpacked, facts.num_rows * len(schema.names)) > most:
        raise CaseError(f"{path}: takes more than {most / 2**20:,.0f} MiB (limits.table_mib)")
    if twice := {name for name in schema.names if schema.names.count(name) > 1}:
        raise CaseError(f"{path}: column '{min(twice)}' stands there twice, expected once")
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    packed = [field.name for field in schema if _any(texts, _value_type(field.type))]
    for field in schema:
        if field.name not in packed and not _any(plain, field.type):
            raise CaseError(
                f"{path}: column '{field.name:.60}' is {field.type!s:.60}, expected texts, numbers"
                " or truth values"
            )
    return packed


def _any(tests: tuple[Any, ...], kind: Any) -> bool:
    return any(test(kind) for test in tests)


def _value_type(kind: Any) -> Any:
    """What a dictionary's entries are: pandas writes categories so."""
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _decode(path: Path, file: Any, limits: Limits) -> list[Any]:
    """The file as strings, by batches: a few bytes can stand for one long text in every row."""
    import pyarrow as pa

    left = limits.table_mib * 2**20
    empty = {name: pa.array([], pa.string()) for name in file.schema_arrow.names}
    parts = [pa.table(empty)]
    for batch in file.iter_batches(_BATCH):
        left -= sum(_length(column) for column in batch.columns)
        if left < 0:
            raise CaseError(f"{path}: its texts take more than limits.table_mib")
        texts = [column.cast(pa.string()).fill_null("") for column in batch.columns]
        parts.append(pa.table(dict(zip(batch.schema.names, texts, strict=True))))
    return parts


def _length(column: Any) -> int:
    """Bytes of a column of texts when written out, before that is done."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    return int(pc.sum(pc.take(pc.binary_length(column.dictionary), column.indices)).as_py() or 0)
