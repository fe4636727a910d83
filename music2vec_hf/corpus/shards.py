"""Clips to Parquet shards, with a record on disk of the shards that are whole."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

from music2vec_hf.corpus.clips import GROUP_BYTES, GROUP_ROWS, write_atomically


def closed_shards(folder: Path) -> list[dict]:
    """The records of the shards in `folder` that are whole, in their order."""
    closed: list[dict] = []
    while (record := folder / f"{len(closed):05d}.json").exists():
        closed.append(json.loads(record.read_text()))
    return closed


class ShardWriter:
    """Writes clips to shards that end at the end of a track, and remembers on disk which shards are whole.

    Attributes:
        next_track (`int`): first track that no closed shard covers.
        closed (`list[dict]`): the closed shards: `file`, `split`, `next_track`.
    """

    def __init__(self, folder: Path, features: Features, shard_bytes: float):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.schema, self.shard_bytes = folder, features.arrow_schema, shard_bytes
        self.closed = closed_shards(folder)
        self.next_track = self.closed[-1]["next_track"] if self.closed else 0
        self._writer: pq.ParquetWriter | None = None
        self._split: str | None = None
        self._rows: list[pa.Table] = []
        self._bytes = 0
        self._stems: list[str] = []

    def start_track(self, index: int, split: str) -> None:
        """Close the shard if the track belongs to another split."""
        if split != self._split:
            self.close(index, self._stems)
        self._split = split

    def write(self, table: pa.Table) -> None:
        """Add clips to the shard."""
        if self._writer is None:
            # The audio is compressed already, the rest is small: plain pages are read without a copy.
            self._writer = pq.ParquetWriter(
                self._path(".parquet.tmp"), self.schema, compression="NONE", use_dictionary=False
            )
        self._rows.append(table)
        self._bytes += table.nbytes
        if sum(map(len, self._rows)) >= GROUP_ROWS or sum(rows.nbytes for rows in self._rows) >= GROUP_BYTES:
            self._flush()

    def end_track(self, index: int, stems: list[str]) -> None:
        """Close the shard if it is large enough."""
        self._stems = stems
        if self._bytes >= self.shard_bytes:
            self.close(index + 1, stems)

    def close(self, next_track: int, stems: list[str]) -> None:
        """Finish the shard, then drop the staged clips that it holds."""
        if self._writer is None:
            return
        self._flush()
        self._writer.close()
        os.replace(self._path(".parquet.tmp"), self._path(".parquet"))
        shard = {"file": self._path(".parquet").name, "split": self._split, "next_track": next_track}
        write_atomically(self._path(".json"), json.dumps(shard))
        self.closed.append(shard)
        self._writer, self._bytes, self.next_track, self._stems = None, 0, next_track, []
        for stem in stems:
            Path(stem + ".parquet").unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._rows:
            table = pa.concat_tables(self._rows).combine_chunks()
            self._writer.write_table(table, row_group_size=max(1, len(table)))
            self._rows = []

    def _path(self, suffix: str) -> Path:
        return self.folder / f"{len(self.closed):05d}{suffix}"
