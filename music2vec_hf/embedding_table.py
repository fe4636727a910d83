"""Embeddings of many files as one Parquet table: what `music2vec embed` writes."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from music2vec_hf.data.audio import SAMPLING_RATE, find_audio_files, read_audio
from music2vec_hf.data.decoding import AudioError
from music2vec_hf.embeddings import check_layers, embed_tracks, load_model

_ROWS_PER_GROUP = 64


def write_embeddings(
    model: str | Path,
    inputs: Sequence[str | Path],
    output: str | Path,
    layers: Sequence[str] | None = None,
    pool: str = "mean",
    window_seconds: float = 30.0,
    precision: str = "fp32",
) -> dict:
    """Embed files and folders into a Parquet file: one row per track, one column per layer.

    Columns: `path`, `duration` (seconds), `conv` and `layer_0` ... (float32, `[C]`; `[T, C]` where `pool` is
    `"none"`). The file is written aside and renamed. Files that cannot be read are left out, counted and named.

    Args:
        model (`str` or `Path`): folder or Hub id.
        inputs: audio files, or folders that are searched.
        output (`str` or `Path`): the Parquet file.
        layers, pool, window_seconds, precision: as in [`embed_tracks`].

    Returns:
        `dict`: `tracks`, `hours`, `layers`, and `rejects`, a list of (path, reason).

    Raises:
        ValueError: if there is no audio file, none can be read, or a layer is unknown.
    """
    paths = [path for item in inputs for path in (find_audio_files(item) if Path(item).is_dir() else [Path(item)])]
    if not paths:
        raise ValueError(f"There is no audio file in {', '.join(map(str, inputs))}. Name audio files or their folder.")
    encoder, feature_extractor = load_model(model)
    chosen = check_layers(encoder, layers)
    rejects: list[tuple[str, str]] = []
    read: list[tuple[str, float]] = []

    def tracks() -> Iterator[np.ndarray]:
        for path in tqdm(paths, desc="embedding", unit="file"):
            try:
                samples = read_audio(path)
                feature_extractor.to_samples(samples, SAMPLING_RATE)
            except (AudioError, OSError, ValueError) as error:
                rejects.append((str(path), " ".join(str(error).split())))
                continue
            read.append((str(path), len(samples) / SAMPLING_RATE))
            yield samples

    embedded = embed_tracks(encoder, feature_extractor, tracks(), chosen, pool, window_seconds, precision)
    count = _write_rows(Path(output), embedded, read, chosen, pool)
    if count == 0:
        raise ValueError(f"None of the {len(paths)} files could be read; the first: {rejects[0][1]}")
    hours = sum(duration for _, duration in read) / 3600
    return {"tracks": count, "hours": hours, "layers": chosen, "rejects": rejects}


def _write_rows(output: Path, embedded, read, layers, pool) -> int:
    vector = pa.list_(pa.float32())
    kind = vector if pool == "mean" else pa.list_(vector)
    columns = {layer: layer if layer == "conv" else f"layer_{layer}" for layer in layers}
    schema = pa.schema(
        [("path", pa.string()), ("duration", pa.float64()), *((name, kind) for name in columns.values())]
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    aside = output.with_name(f".{output.name}.{os.getpid()}.unfinished")
    rows, count = [], 0
    try:
        with pq.ParquetWriter(aside, schema) as writer:
            for row in embedded:
                path, duration = read[count]
                values = {columns[layer]: list(frames) for layer, frames in row.items()}
                rows.append({"path": path, "duration": duration, **values})
                count += 1
                if len(rows) == _ROWS_PER_GROUP:
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                    rows = []
            writer.write_table(pa.Table.from_pylist(rows, schema))
        if count:
            os.replace(aside, output)
    finally:
        aside.unlink(missing_ok=True)
    return count


__all__ = ["write_embeddings"]
