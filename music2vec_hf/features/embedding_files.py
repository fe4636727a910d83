"""Tables of embeddings on disk, Parquet or npz: written and joined piece by piece, never whole in memory."""

import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

METADATA_KEY = b"music2vec_hf"
_ROWS_PER_GROUP = 1_024
# Numbers like these neither compress nor repeat.
_WRITER_OPTIONS = {"compression": "NONE", "use_dictionary": ["path"], "write_statistics": False}


def column_of(layer: str) -> str:
    """The column of a layer: `conv`, `layer_0`, ..."""
    return layer if layer == "conv" else f"layer_{layer}"


def vectors(values: np.ndarray) -> pa.Array:
    """`[n, C]` as an Arrow column of `n` lists of `C` numbers."""
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A path to write to, which becomes `target` when all went well and else is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
    try:
        yield aside
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


def write_tables(target: Path, tables: Iterator[pa.Table], metadata: Mapping) -> None:
    """Write tables, at least one, one after the other to a Parquet file that is either whole or not there.

    Args:
        target (`Path`): the file.
        tables (iterator of `pa.Table`): of equal columns.
        metadata (`Mapping`): kept in the file as JSON.
    """
    metadata = {METADATA_KEY: json.dumps(metadata)}
    with written_aside(target) as aside:
        first = next(tables).replace_schema_metadata(metadata)
        with pq.ParquetWriter(aside, first.schema, **_WRITER_OPTIONS) as writer:
            writer.write_table(first)
            for table in tables:
                writer.write_table(table.replace_schema_metadata(metadata))


def read_metadata(path: Path) -> dict | None:
    """The metadata that [`write_tables`] kept, or None."""
    metadata = (pq.read_schema(path).metadata or {}).get(METADATA_KEY)
    return None if metadata is None else json.loads(metadata)


def tables_of(parts: Sequence[Path]) -> Iterator[pa.Table]:
    """The rows of Parquet files, in order, in tables of about a thousand."""
    held: list[pa.Table] = []
    for part in parts:
        with pq.ParquetFile(part) as file:
            for group in range(file.num_row_groups):
                # Without what the file knows of itself, which differs.
                held.append(file.read_row_group(group).replace_schema_metadata(None))
                if sum(table.num_rows for table in held) >= _ROWS_PER_GROUP:
                    yield pa.concat_tables(held).combine_chunks()
                    held = []
    if held:
        yield pa.concat_tables(held).combine_chunks()


def write_npz(target: Path, table: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the columns of numbers of a Parquet file, and some arrays, to an npz file.

    Args:
        target (`Path`): the npz file; it is either whole or not there.
        table (`Path`): the Parquet file; of a column one row group is in memory.
        arrays (`Mapping[str, np.ndarray]`): what the file holds beside it.
    """
    with written_aside(target) as aside, zipfile.ZipFile(aside, "w") as archive, pq.ParquetFile(table) as file:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        for field in file.schema_arrow:
            if pa.types.is_string(field.type):
                continue
            is_vector = pa.types.is_fixed_size_list(field.type)
            number = field.type.value_type if is_vector else field.type
            header = {
                "descr": np.lib.format.dtype_to_descr(np.dtype(number.to_pandas_dtype())),
                "fortran_order": False,
                "shape": (file.metadata.num_rows, *([field.type.list_size] if is_vector else [])),
            }
            with archive.open(f"{field.name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for group in range(file.num_row_groups):
                    column = file.read_row_group(group, columns=[field.name]).column(0)
                    for chunk in column.chunks:
                        member.write((chunk.flatten() if is_vector else chunk).to_numpy().tobytes())


__all__ = ["column_of", "read_metadata", "tables_of", "vectors", "write_npz", "write_tables", "written_aside"]
