"""Nearest neighbours of an audio file in a table of embeddings that `music2vec embed` wrote."""

import logging
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from music2vec_hf.features.embeddings import embed
from music2vec_hf.features.encoders import choose_device, load_encoder
from music2vec_hf.features.store import column_of, layer_of, matrix, read_metadata

FAISS_FROM_TRACKS = 100_000
_INDEX = "embedding"

logger = logging.getLogger(__name__)


def find_similar(
    library: str | Path,
    query: str | Path,
    top: int = 10,
    layer: str | None = None,
    model: str | Path | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> list[tuple[str, float]]:
    """The tracks whose mean embedding of one layer has the largest cosine with the query's.

    The query is embedded as the library was: by the same model, with the same windows. In a library of more than
    100,000 tracks the FAISS index of `datasets` searches, where faiss is installed, else numpy, block by block.

    Args:
        library (`str` or `Path`): Parquet file of `music2vec embed`, with `pool="mean"`.
        query (`str` or `Path`): audio file.
        top (`int`): how many tracks, at least 1.
        layer (`str`, *optional*): `conv`, `0`, `1`, ...; by default the last that the library has.
        model (`str` or `Path`, *optional*): folder or Hub id; by default the one that the library names.
        device (`str`): `cpu`, `cuda`, `mps` or `auto`.
        trust_remote_code (`bool`): run the Python code of a repository that brings its own model.

    Returns:
        `list[tuple[str, float]]`: path and cosine, the nearest first.

    Raises:
        ValueError: if the library is no such table, does not say which model made it, or another one did; or there is
            no such layer. AudioError for a query that cannot be read.
    """
    if top < 1:
        raise ValueError(f"`top` is {top}. Use at least 1.")
    library = Path(library)
    settings = _read_settings(library)
    if model is None and "model" not in settings:
        raise ValueError(f"{library} does not say which model made it; name that model with --model.")
    layer = _choose_layer(library, layer)
    encoder = load_encoder(model or settings["model"], trust_remote_code=trust_remote_code)
    if settings.get("model_hash", encoder.hash) != encoder.hash:
        raise ValueError(
            f"{model or settings['model']} has other weights than the model that made {library}; name that one with "
            "--model, or embed the library anew."
        )
    known = {name: settings[name] for name in ("window_seconds", "overlap_seconds", "precision") if name in settings}
    encoder.model.to(choose_device(device))
    vector = embed(encoder.model, query, layers=layer, feature_extractor=encoder.extractor, **known)
    return nearest(library, column_of(layer), vector, top)


def nearest(library: Path, column: str, vector: np.ndarray, top: int) -> list[tuple[str, float]]:
    """The rows of a table whose `column` has the largest cosine with `vector` `[C]`: (path, cosine), nearest first."""
    width, num_tracks = pq.read_schema(library).field(column).type, pq.read_metadata(library).num_rows
    if pa.types.is_fixed_size_list(width) and width.list_size != len(vector):
        raise ValueError(f"{column} of {library} is {width.list_size} wide, the model {len(vector)}; name its model.")
    if num_tracks > FAISS_FROM_TRACKS:
        if find_spec("faiss") is not None:
            return _by_faiss(library, column, vector, min(top, num_tracks))
        logger.warning("faiss is not installed: numpy reads all %d tracks; `pip install faiss-cpu`.", num_tracks)
    return _by_numpy(library, column, vector, top)


def _by_numpy(library: Path, column: str, vector: np.ndarray, top: int) -> list[tuple[str, float]]:
    paths, cosines = np.zeros(0, object), np.zeros(0)
    query = vector.astype(np.float64) / np.linalg.norm(vector)
    with pq.ParquetFile(library) as file:
        for batch in file.iter_batches(batch_size=8_192, columns=["path", column]):
            rows = matrix(batch.column(column))
            found = rows @ query / np.maximum(np.linalg.norm(rows, axis=1), 1e-30)
            paths = np.concatenate([paths, np.array(batch.column("path").to_pylist(), object)])
            cosines = np.concatenate([cosines, found])
            best = np.argsort(-cosines, kind="stable")[:top]
            paths, cosines = paths[best], cosines[best]
    return list(zip(paths.tolist(), cosines.tolist(), strict=True))


def _by_faiss(library: Path, column: str, vector: np.ndarray, top: int) -> list[tuple[str, float]]:
    import faiss

    tracks = Dataset.from_parquet(str(library), columns=["path", column]).with_format("numpy")
    # The inner product of vectors of length 1 is their cosine; FAISS normalises query and rows.
    tracks.add_faiss_index(column, _INDEX, string_factory="L2norm,Flat", metric_type=faiss.METRIC_INNER_PRODUCT)
    cosines, rows = tracks.search(_INDEX, vector.astype(np.float32), k=top)
    paths = tracks.select_columns("path")[[int(row) for row in rows]]["path"]
    return list(zip(map(str, paths), map(float, cosines), strict=True))


def _read_settings(library: Path) -> dict:
    try:
        settings = read_metadata(library) or {}
    except pa.ArrowInvalid as error:
        raise ValueError(f"{library} is no Parquet file; name one that `music2vec embed` wrote.") from error
    if settings.get("pool", "mean") != "mean":
        raise ValueError(f"{library} has a row for each frame; embed the library with --pool mean.")
    return settings


def _choose_layer(library: Path, layer: str | None) -> str:
    columns = pq.read_schema(library).names
    layers = [layer_of(name) for name in columns if name == "conv" or name.startswith("layer_")]
    if "path" not in columns or not layers:
        raise ValueError(f"{library} is no table of embeddings; its columns are {', '.join(columns)}.")
    if layer is not None and str(layer) not in layers:
        raise ValueError(f"{library} has no layer {layer}. It has {', '.join(layers)}.")
    return layers[-1] if layer is None else str(layer)


__all__ = ["FAISS_FROM_TRACKS", "find_similar", "nearest"]
