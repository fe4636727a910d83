"""Loading a corpus, or any `datasets` audio corpus, and reading clips and crops: row 3 of the data's way."""

import os

import numpy as np
from datasets import Dataset, IterableDataset, concatenate_datasets

from music2vec_hf.audio.finding import (
    audio_name,
    choose_splits,
    encoded_audio,
    find_corpus,
    name_audio_column,
    open_files,
)
from music2vec_hf.audio.reading import read_audio, read_flac_crop
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.corpus.measuring import STATISTICS, measure_clips

__all__ = ["check_corpus", "load_corpus", "read_clip", "read_crop", "stream_corpus"]


def load_corpus(
    corpus: str | os.PathLike, split: str | None = None, num_proc: int | None = None, report: bool = True
) -> Dataset:
    """Load a corpus for random access, memory-mapped. One that we prepared is not decoded.

    The files are turned into one Arrow file in the cache of `datasets` (`HF_DATASETS_CACHE`) the first time, and
    mapped from there ever after; files of an audio folder stay where they are. Those of a data set on the Hub are
    fetched into its cache (`HF_HUB_CACHE`) first; what was loaded once loads offline too. Audio may have any format,
    rate and number of channels. Where the columns `duration`, `clip_mean` and `clip_std` are not all there, every
    clip is decoded once to measure them; see [`measure_clips`] for what is then left out.

    Args:
        corpus: one of
            - a folder made by `prepare_corpus`;
            - a folder of Parquet files, of .tar archives (webdataset; every audio file in them is a clip) or of audio
              files, at any depth, or a glob of such files;
            - the id of a data set on the Hub, `user/name` or `user/name:config`.
        split (`str`, *optional*): "train", "validation", "test", another name or "all". May be left out where there
            is only one, and on the Hub, where it is "train". Files of a local folder belong to the split in their
            name (`train-00000-of-00002.parquet`) or to that of the folder `train`, `validation` or `test`.
        num_proc (`int`, *optional*): processes that measure.
        report (`bool`): log the files that are left out.

    Returns:
        `datasets.Dataset` with the columns `audio`, holding `{"bytes", "path"}`, `duration` in seconds, `clip_mean`,
        `clip_std`, and what else the data has.

    Raises:
        ValueError: if there is no such corpus, the Hub does not give it, it is incomplete, holds files of several
            kinds, none or several columns of audio or nothing that can be decoded, or the split is missing or must be
            named.
    """
    found = find_corpus(corpus)
    names = choose_splits(corpus, found, split)
    parts = [open_files(found.kind, found.files[name], streaming=False) for name in names]
    dataset = name_audio_column(corpus, concatenate_datasets(parts))
    if set(STATISTICS) <= set(dataset.column_names):
        return dataset
    return measure_clips(dataset, num_proc, report)


def check_corpus(corpus: str | os.PathLike, split: str | None = None) -> None:
    """Raise the ValueError of [`load_corpus`] for a corpus or split that is not there; it reads no file."""
    choose_splits(corpus, find_corpus(corpus), split)


def stream_corpus(corpus: str | os.PathLike, split: str | None = None) -> IterableDataset:
    """Open a corpus for [`streaming_batches`]: nothing is copied to the disk, nothing is measured.

    Offline, a data set on the Hub is streamed from the files that [`load_corpus`] fetched.

    Args:
        corpus, split: as in [`load_corpus`].

    Returns:
        `datasets.IterableDataset` with a column `audio`, holding `{"bytes", "path"}`, and what else the data has. Its
        shards are the Parquet files, the archives, or a hundred audio files each, in the order of their names.

    Raises:
        ValueError: as in [`load_corpus`].
    """
    found = find_corpus(corpus)
    files = [file for name in choose_splits(corpus, found, split) for file in found.files[name]]
    return name_audio_column(corpus, open_files(found.kind, files, streaming=True))


def read_clip(example: dict) -> np.ndarray:
    """Decode the whole clip of one row: float32 `[num_samples]` at 16 kHz. Raises AudioError as `read_audio`."""
    return read_audio(encoded_audio(example["audio"]), name=audio_name(example["audio"]))


def read_crop(example: dict, start_sample: int, num_samples: int) -> np.ndarray:
    """Decode a part of the clip of one row, and no more than that part.

    Args:
        example (`dict`): a row of a corpus.
        start_sample (`int`): first sample, counted at 16 kHz.
        num_samples (`int`): how many.

    Returns:
        `np.ndarray` of shape `(num_samples,)`, float32.

    Raises:
        ValueError: if the crop does not lie inside the clip.
        AudioError: if the clip cannot be decoded.
    """
    encoded, name = encoded_audio(example["audio"]), audio_name(example["audio"])
    if isinstance(encoded, bytes) and _is_corpus_flac(encoded):
        return read_flac_crop(encoded, start_sample, num_samples)
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
