"""Loading a corpus, or any Parquet data set with audio, and reading clips and crops: row 3 of the data's way."""

import json
import os
from pathlib import Path

import numpy as np
from datasets import Audio, Dataset, DatasetDict, concatenate_datasets, load_dataset

from .audio import SAMPLING_RATE, read_audio, read_flac_crop
from .prepare import prepare_corpus
from .sources import SPLIT_ORDER

__all__ = ["load_corpus", "prepare_corpus", "read_clip", "read_crop"]


def load_corpus(path: str | os.PathLike, split: str | None = None) -> Dataset:
    """Load a corpus for random access, memory-mapped, without decoding anything.

    The shards are turned into one Arrow file in the cache of `datasets` (`HF_DATASETS_CACHE`) the first time, and
    mapped from there ever after. A local folder needs no network.

    Args:
        path: a folder made by `prepare_corpus`, a folder of Parquet files, or the id of a data set on the Hub.
        split (`str`, *optional*): "train", "validation", "test" or "all"; may be left out where there is only one.

    Returns:
        `datasets.Dataset` whose `audio` column holds `{"bytes", "path"}`.

    Raises:
        ValueError: if a local corpus is incomplete, holds no audio, or the split is missing or must be named.
    """
    folder = Path(path)
    if folder.is_dir():
        splits = load_dataset("parquet", data_files=_shards_by_split(folder))
    else:
        if folder.is_absolute() or os.fspath(path).count("/") > 1:
            raise ValueError(f"{path} is not a folder; make a corpus with `music2vec prepare SOURCE {path}`.")
        splits = load_dataset(os.fspath(path))
    dataset = _choose_split(path, splits, split)
    if "audio" not in dataset.column_names:
        raise ValueError(f"{path} has the columns {dataset.column_names} but no column `audio`.")
    return dataset.cast_column("audio", Audio(sampling_rate=SAMPLING_RATE, decode=False))


def read_clip(example: dict) -> np.ndarray:
    """Decode the whole clip of one row: float32 `[num_samples]` at 16 kHz. Raises AudioError as `read_audio`."""
    return read_audio(_encoded(example))


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
    encoded = _encoded(example)
    if isinstance(encoded, bytes) and _is_corpus_flac(encoded):
        return read_flac_crop(encoded, start_sample, num_samples)
    # A data set that `prepare_corpus` did not make: any format and rate, at the price of resampling.
    if start_sample < 0 or num_samples < 1:
        raise ValueError(f"a crop of {num_samples} samples from sample {start_sample} makes no sense.")
    crop = read_audio(encoded, start_sample / SAMPLING_RATE, num_samples / SAMPLING_RATE)
    if len(crop) < num_samples:
        raise ValueError(
            f"a crop of {num_samples} samples from sample {start_sample} does not lie inside the clip, which ends "
            f"{num_samples - len(crop)} samples earlier."
        )
    return crop


def _encoded(example: dict) -> bytes | str:
    audio = example["audio"]
    return audio["bytes"] if audio.get("bytes") is not None else audio["path"]


def _is_corpus_flac(encoded: bytes) -> bool:
    """Whether these are mono FLAC bytes at 16 kHz, read from the stream info at its fixed place."""
    if encoded[:4] != b"fLaC" or len(encoded) < 22:
        return False
    packed = int.from_bytes(encoded[18:21], "big")  # 20 bits of rate, 3 bits of channels - 1, 1 bit of depth
    return packed >> 4 == SAMPLING_RATE and (packed >> 1) & 0b111 == 0


def _shards_by_split(folder: Path) -> dict[str, list[str]]:
    """The Parquet files of a local folder by split; a folder that `prepare_corpus` left unfinished is refused."""
    shards = sorted(path for path in folder.rglob("*.parquet") if ".staging" not in path.parts)
    unfinished = (folder / ".staging").exists() or (folder / "rejects.csv").exists()
    if not (folder / "corpus.json").exists() and (unfinished or not shards):
        raise ValueError(
            f"{folder} holds no finished corpus (corpus.json is missing); run `music2vec prepare SOURCE {folder}` "
            "to its end, started again it goes on where it stood."
        )
    by_split: dict[str, list[str]] = {}
    for shard in shards:
        name = shard.name.split("-")[0] if "-of-" in shard.name else "train"
        by_split.setdefault(name, []).append(os.fspath(shard))
    if (folder / "corpus.json").exists():
        _check_complete(folder, by_split)
    order = {name: rank for rank, name in enumerate(SPLIT_ORDER)}
    return dict(sorted(by_split.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))


def _check_complete(folder: Path, by_split: dict[str, list[str]]) -> None:
    splits = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))["splits"]
    for name, split in splits.items():
        found = len(by_split.get(name, []))
        if found != split["shards"]:
            raise ValueError(
                f"{folder} should hold {split['shards']} shards of the split {name} but holds {found}; "
                "copy it again, or remove it and prepare it anew."
            )


def _choose_split(path: str | os.PathLike, splits: DatasetDict, split: str | None) -> Dataset:
    names = list(splits)
    if split == "all":
        return concatenate_datasets([splits[name] for name in names])
    if split is None and len(names) > 1:
        raise ValueError(f"{path} has the splits {', '.join(names)}; name one of them, or 'all'.")
    if split is not None and split not in names:
        raise ValueError(f"{path} has no split {split!r}, only {', '.join(names)}.")
    return splits[split or names[0]]
