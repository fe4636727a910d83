"""Loading a corpus, or any source of audio, and reading clips and crops: row 3 of the data's way."""

import logging
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, IterableDataset, Value, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import is_offline_mode

from music2vec_hf.audio.containers import (
    CLIP,
    audio_name,
    encoded_audio,
    name_audio_column,
    open_file,
    walk_archive,
)
from music2vec_hf.audio.decoding import AudioError, is_audio_file
from music2vec_hf.audio.listing import SourceFiles, choose_splits, find_files, list_tracks
from music2vec_hf.audio.reading import AudioReader, read_audio, read_flac_crop, read_wav_crop
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.common.files import printable
from music2vec_hf.common.hub import download_files

logger = logging.getLogger(__name__)

# What training needs to know of a clip, and does not want to decode it for.
STATISTICS = ("duration", "clip_mean", "clip_std")
MEASURES = Features(
    {**dict.fromkeys(STATISTICS, Value("float64")), "kind": Value("string"), "problem": Value("string")}
)

# Audio files of a folder or manifest that make one shard of a stream.
FILES_PER_SHARD = 100


# ---- opening ----


def load_corpus(
    corpus: str | os.PathLike, split: str | None = None, num_proc: int | None = None, report: bool = True
) -> Dataset:
    """Load a corpus for random access, memory-mapped. One that we prepared is not decoded.

    The files are turned into one Arrow file in the cache of `datasets` (`HF_DATASETS_CACHE`) the first time, and
    mapped from there ever after; audio files of a folder or manifest stay where they are. Those of a data set on the
    Hub are fetched into its cache (`HF_HUB_CACHE`) first; what was loaded once loads offline too. Audio may have any
    format, rate and number of channels. Where the columns `duration`, `clip_mean` and `clip_std` are not all there,
    every clip is decoded once to measure them; see [`measure_clips`] for what is then left out.

    Args:
        corpus: one of
            - a folder made by `prepare_corpus`;
            - a folder of Parquet files, of .tar archives (webdataset; every audio file in them is a clip) or of audio
              files, at any depth, or a glob of such files;
            - a manifest, or a folder with one at its top, as `prepare_corpus` takes it; its columns come along;
            - the id of a data set on the Hub, `user/name` or `user/name:config`.
        split (`str`, *optional*): "train", "validation", "test", another name or "all". May be left out where there
            is only one, and on the Hub, where it is "train". A column `split` of a manifest or of metadata decides,
            else the name of a file (`train-00000-of-00002.parquet`), else the folder `train`, `validation` or `test`.
        report (`bool`): log the files that are left out.

    Returns:
        `datasets.Dataset` with the columns `audio`, holding `{"bytes", "path"}`, `duration` in seconds, `clip_mean`,
        `clip_std`, and what else the data has.

    Raises:
        ValueError: if there is no such corpus, the Hub does not give it, it is incomplete, holds files of several
            kinds, none or several columns of audio or nothing that can be decoded, or the split is missing or must be
            named.
    """
    found = _find(corpus, report)
    names = choose_splits(corpus, found, split)
    parts = [open_files(replace(found, files={name: found.files[name]}), streaming=False) for name in names]
    dataset = name_audio_column(corpus, concatenate_datasets(parts))
    if set(STATISTICS) <= set(dataset.column_names):
        return dataset
    return measure_clips(dataset, num_proc, report)


def check_corpus(corpus: str | os.PathLike, split: str | None = None) -> None:
    """Raise the ValueError of [`load_corpus`] for a corpus or split that is not there; it reads no audio."""
    choose_splits(corpus, _find(corpus, report=False), split)


def stream_corpus(corpus: str | os.PathLike, split: str | None = None) -> IterableDataset:
    """Open a corpus, as in [`load_corpus`], for [`streaming_batches`]: nothing is copied to the disk or measured.

    Offline, a data set on the Hub is streamed from the files that [`load_corpus`] fetched. Raises as that does.

    Returns:
        `datasets.IterableDataset` with a column `audio`, holding `{"bytes", "path"}`, and what else the data has. Its
        shards are the Parquet files, the archives, or a hundred audio files each, in the order of their names.
    """
    found = _find(corpus, report=False)
    names = choose_splits(corpus, found, split)
    chosen = {"all": [file for name in names for file in found.files[name]]}
    return name_audio_column(corpus, open_files(replace(found, files=chosen), streaming=True))


def _find(corpus: str | os.PathLike, report: bool) -> SourceFiles:
    """The files of a corpus by split; of a manifest or local folder of audio, its tracks."""
    found = find_files(corpus)
    if found.on_hub or found.kind not in ("manifest", "audiofolder"):
        return found
    listing = list_tracks(corpus, found, folder_splits=True)
    for path, reason in listing.rejects if report else ():
        logger.warning("%s: %s", path, reason)
    splits: dict[str, list] = {}
    for track in listing.tracks:
        splits.setdefault(track.split, []).append(track)
    return replace(found, kind="tracks", files=splits, metadata_types=listing.metadata_types)


def open_files(found: SourceFiles, streaming: bool) -> Dataset | IterableDataset:
    """The rows of all files of a source, nothing decoded.

    With `streaming` they are read while iterating, those on the Hub where they are, instead of turning all into one
    Arrow file in the cache first. Raises ValueError if the Hub does not give a file, or an archive is damaged.
    """
    files = [file for files in found.files.values() for file in files]
    if str(files[0]).startswith("hf://") and (is_offline_mode() or not streaming):
        files = download_files(files)
    if found.kind not in ("tracks", "webdataset", "audiofolder"):
        return load_dataset(found.kind, data_files={"train": files}, split="train", streaming=streaming)
    columns = Features.from_arrow_schema(pa.schema(found.metadata_types))
    rows = [{}] * len(files)
    if found.kind == "tracks":
        columns = {"track_id": Value("string"), **columns}
        rows = [{"track_id": track.track_id, **track.metadata} for track in files]
        files = [os.fspath(track.path) for track in files]
    # Date and size are part of the cache's key: a changed file is read anew.
    sources = [(file, row, _stamp(file)) for file, row in zip(files, rows, strict=True)]
    read, per_shard = (_read_archives, 1) if found.kind == "webdataset" else (_read_files, FILES_PER_SHARD)
    settings = {
        "features": Features({"audio": CLIP, **columns}),
        "gen_kwargs": {"shards": [sources[first : first + per_shard] for first in range(0, len(sources), per_shard)]},
    }
    if streaming:
        return IterableDataset.from_generator(read, **settings)
    try:
        return Dataset.from_generator(read, **settings)
    except DatasetGenerationError as error:
        raise ValueError(f"{os.path.commonpath(files)} cannot be read: {error.__cause__ or error}") from error


def _read_files(shards: list[list[tuple[str, dict, str]]]) -> Iterator[dict]:
    """One row for each audio file: its path, its metadata, and its bytes where it is behind a URL."""
    for path, metadata, _ in chain.from_iterable(shards):
        data, name = None, printable(path)
        # A name that is not UTF-8 cannot be stored either: what the file holds is.
        if name != path or "://" in path:
            with open_file(path) as file:
                data = file.read()
        yield {"audio": {"bytes": data, "path": name}, **metadata}


def _read_archives(shards: list[list[tuple[str, dict, str]]]) -> Iterator[dict]:
    """Every audio file of some .tar archives, in their order; files of other kinds are passed over."""
    for path, *_ in chain.from_iterable(shards):
        for member, data in walk_archive(path, "r|*", is_audio_file):
            if data is not None:
                yield {"audio": {"bytes": data, "path": f"{path}/{member.name}"}}


def _stamp(file: str) -> str:
    if not os.path.exists(file):
        return ""
    status = os.stat(file)
    return f"{status.st_mtime_ns} {status.st_size}"


# ---- measuring ----


def clip_lengths(dataset: Dataset) -> np.ndarray:
    """Samples of every clip at 16 kHz, by its `duration`: int64 `[clips]`."""
    # Sliced, a column comes as one array; else every number would become a Python object first.
    return np.rint(np.asarray(dataset["duration"][:]) * SAMPLING_RATE).astype(np.int64)


def measure_clips(dataset: Dataset, num_proc: int | None = None, report: bool = True) -> Dataset:
    """Add `duration`, `clip_mean` and `clip_std`; leave out what cannot be decoded.

    Every clip is decoded once, which costs what preparing it costs. The result is kept in the cache of `datasets`
    beside the data, so that the next run finds it. A truncated file counts with the part that can be decoded.

    Args:
        dataset (`datasets.Dataset`): with a column `audio` of `{"bytes", "path"}`. Columns that are named like the
            three are replaced: what foreign data calls a duration need not be seconds of this clip.
        report (`bool`): log each file that is left out, and how many.

    Raises:
        ValueError: if no clip can be decoded.
    """
    measured = dataset.select_columns("audio").map(
        _measure_row,
        with_indices=True,
        remove_columns="audio",
        features=MEASURES,
        num_proc=num_proc,
        desc="measuring clips",
    )
    durations = np.asarray(measured["duration"], dtype=np.float64)
    kinds = Counter(kind for kind, duration in zip(measured["kind"], durations, strict=True) if duration == 0)
    counts = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    if report:
        for problem in filter(None, measured["problem"]):
            logger.warning("%s", problem)
        if kinds:
            logger.warning("%d of %d clips are left out: %s.", kinds.total(), len(durations), counts)
    if not durations.any():
        raise ValueError(
            f"None of the {len(durations)} clips can be decoded ({counts or 'there are none'}); try one with "
            "`music2vec prepare`, which says what is wrong with it."
        )
    dataset = dataset.remove_columns([name for name in STATISTICS if name in dataset.column_names])
    dataset = concatenate_datasets([dataset, measured.select_columns(list(STATISTICS))], axis=1)
    return dataset if durations.all() else dataset.select(np.flatnonzero(durations))


def _measure_row(row: dict, index: int) -> dict:
    audio, problem = row["audio"] or {}, None
    try:
        with AudioReader(encoded_audio(audio), audio_name(audio) or f"row {index}") as reader:
            length, total, squares = 0, 0.0, 0.0
            for block in reader.blocks():
                block = block.astype(np.float64)
                length, total, squares = length + len(block), total + block.sum(), squares + np.square(block).sum()
        if length == 0:
            raise AudioError(reader.name, "empty", "it holds no samples.")
    except AudioError as error:
        return {**dict.fromkeys(STATISTICS, 0.0), "kind": error.kind, "problem": f"{error} It is left out."}
    if reader.shortfall:
        problem = f"{reader.name}: {reader.shortfall} That part is kept."
    mean = total / length
    deviation = math.sqrt(max(0.0, squares / length - mean**2))
    values = zip(STATISTICS, (length / SAMPLING_RATE, mean, deviation), strict=True)
    return {**dict(values), "kind": None, "problem": problem}


# ---- reading ----


def read_clip(example: dict) -> np.ndarray:
    """Decode the whole clip of one row: float32 `[num_samples]` at 16 kHz. Raises AudioError as `read_audio`."""
    return read_audio(encoded_audio(example["audio"]), name=audio_name(example["audio"]))


def read_crop(example: dict, start_sample: int, num_samples: int) -> np.ndarray:
    """Decode a part of the clip of one row, counted at 16 kHz, and no more than that part: float32 `[num_samples]`.

    Raises:
        ValueError: if the crop does not lie inside the clip.
        AudioError: if the clip cannot be decoded.
    """
    encoded, name = encoded_audio(example["audio"]), audio_name(example["audio"])
    if not isinstance(encoded, str):
        if _is_corpus_flac(encoded):
            return read_flac_crop(encoded, start_sample, num_samples)
        crop = read_wav_crop(encoded, start_sample, num_samples)
        if crop is not None:
            return crop
    # A data set that `prepare_corpus` did not make: any format and rate, at the price of resampling.
    if start_sample < 0 or num_samples < 1:
        raise ValueError(f"a crop of {num_samples} samples from sample {start_sample} makes no sense.")
    crop = read_audio(encoded, start_sample / SAMPLING_RATE, num_samples / SAMPLING_RATE, name)
    if len(crop) < num_samples:
        raise ValueError(
            f"a crop of {num_samples} samples from sample {start_sample} does not lie inside the clip, which ends "
            f"{num_samples - len(crop)} samples earlier."
        )
    return crop


def _is_corpus_flac(encoded: bytes) -> bool:
    """Whether these are mono FLAC bytes at 16 kHz, read from the stream info at its fixed place."""
    if encoded[:4] != b"fLaC" or len(encoded) < 22:
        return False
    packed = int.from_bytes(encoded[18:21], "big")  # 20 bits of rate, 3 bits of channels - 1, 1 bit of depth
    return packed >> 4 == SAMPLING_RATE and (packed >> 1) & 0b111 == 0
