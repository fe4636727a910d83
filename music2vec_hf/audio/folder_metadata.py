"""What the metadata files in a folder of audio say of its files, laid out as the audio folders of `datasets`."""

import os
from pathlib import Path

import pandas

_READERS = {
    # "None" and "NA", which pandas would take for no value, may be names of labels.
    "metadata.csv": lambda path, kind: pandas.read_csv(
        path, dtype=kind, keep_default_na=False, na_values=["", "nan", "NaN"], skipinitialspace=True
    ),
    "metadata.jsonl": lambda path, kind: pandas.read_json(path, lines=True, dtype=False),
    "metadata.parquet": lambda path, kind: pandas.read_parquet(path),
}

METADATA_FILES = tuple(_READERS)


def read_folder_metadata(folder: str | os.PathLike, as_text: bool = False) -> pandas.DataFrame | None:
    """Rows of all `metadata.csv`, `metadata.jsonl` and `metadata.parquet` below a folder, each about one audio file.

    Args:
        folder: of audio files. A metadata file at its top may tell of all of them, one in each split of those beside
            it: its column `file_name` is relative to where it lies.
        as_text (`bool`): fields of a `metadata.csv` stay text; else columns of numbers become numbers.

    Returns:
        `pandas.DataFrame`: the other columns, its index the absolute paths of the audio files; None without any
        metadata file.

    Raises:
        ValueError: if a metadata file cannot be read, has no `file_name`, or a file is named twice.
    """
    tables = []
    for path in sorted(path for path in Path(folder).rglob("metadata.*") if path.name in METADATA_FILES):
        try:
            table = _READERS[path.name](path, str if as_text else None)
        except ValueError as error:  # pandas' and pyarrow's own are ValueErrors
            raise ValueError(f"{path} cannot be read ({error}); mend it or take it out of the folder.") from error
        if "file_name" not in table:
            raise ValueError(f"{path} has no column file_name, only {', '.join(map(str, table))}.")
        unnamed = int(table["file_name"].isna().sum())
        if unnamed:
            raise ValueError(
                f"{path} has {unnamed} rows without a file_name. Give each row the path of its audio file."
            )
        table.index = [os.path.abspath(path.parent / str(name)) for name in table.pop("file_name")]
        tables.append(table)
    if not tables:
        return None
    table = pandas.concat(tables)
    twice = table.index[table.index.duplicated()]
    if len(twice):
        raise ValueError(
            f"The metadata of {folder} names {len(set(twice))} files twice, the first is {twice[0]}. "
            "Give each audio file one row."
        )
    return table


__all__ = ["METADATA_FILES", "read_folder_metadata"]
