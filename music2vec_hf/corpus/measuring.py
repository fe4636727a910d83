"""Length, mean and deviation of foreign clips: what `prepare_corpus` would have stored, measured once and cached."""

import logging
import math
from collections import Counter

import numpy as np
from datasets import Dataset, Features, Value, concatenate_datasets

from music2vec_hf.audio.decoding import AudioError
from music2vec_hf.audio.finding import audio_name, encoded_audio
from music2vec_hf.audio.reading import AudioReader
from music2vec_hf.audio.resampling import SAMPLING_RATE

logger = logging.getLogger(__name__)

# What training needs to know of a clip, and does not want to decode it for.
STATISTICS = ("duration", "clip_mean", "clip_std")
MEASURES = Features(
    {**dict.fromkeys(STATISTICS, Value("float64")), "kind": Value("string"), "problem": Value("string")}
)


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
        num_proc (`int`, *optional*): processes that measure.
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


__all__ = ["clip_lengths", "measure_clips"]
