"""Crops of a corpus; where a clip cannot be read, those of a clip that takes its place (row 3 of the data's way)."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

from music2vec_hf.audio.decoding import AudioError
from music2vec_hf.corpus.batch_plan import BatchPlan

logger = logging.getLogger(__name__)

# So many clips may fail whatever share of the corpus they are.
MIN_FAILED_CLIPS = 10

Candidate = TypeVar("Candidate")


class UnreadableCorpus(ValueError):
    """Too much of a corpus cannot be read. Its text is one sentence."""

    def __init__(self, text: str):
        # A DataLoader raises a worker's error anew, with the worker's traceback before the sentence.
        super().__init__(text.rpartition(f"{type(self).__name__}: ")[2].strip())


class EncodedClips:
    """The encoded clips of a corpus by number: `clips[i]` is its row `{"audio": {"bytes", "path"}}`.

    `bytes` is a view of the mapped file where it can be, so that a crop costs no copy of its clip.

    Args:
        corpus (`datasets.Dataset`): from [`load_corpus`].
    """

    def __init__(self, corpus: Dataset):
        self._corpus = corpus.select_columns("audio")
        chunks = self._corpus.data.column("audio").chunks
        self._starts = np.cumsum([0, *map(len, chunks)])
        self._parts = [_views(chunk) for chunk in chunks]
        # Of a selection of rows, their numbers in the table.
        self._numbers = getattr(self._corpus, "_indices", None)

    def __reduce__(self):
        return EncodedClips, (self._corpus,)  # a worker that is not forked maps the file, too

    def __getitem__(self, clip: int) -> dict:
        number = clip if self._numbers is None else self._numbers.column(0)[clip].as_py()
        chunk = int(np.searchsorted(self._starts, number, side="right")) - 1
        offsets, data, paths = self._parts[chunk]
        row = number - int(self._starts[chunk])
        part = None if offsets is None else data[offsets[row] : offsets[row + 1]]
        return {"audio": {"bytes": part, "path": paths[row].as_py()}}

    def name(self, clip: int) -> str:
        """What messages call a clip."""
        return self[clip]["audio"]["path"] or f"clip {clip}"


def _views(chunk: pa.StructArray) -> tuple[np.ndarray | None, memoryview, pa.Array]:
    """Offsets of the rows' bytes, None where they are paths alone; the bytes; and the paths."""
    encoded, paths = chunk.field("bytes"), chunk.field("path")
    if encoded.null_count:
        return None, memoryview(b""), paths
    _, offsets, data = encoded.buffers()
    kind = np.int64 if pa.types.is_large_binary(encoded.type) else np.int32
    rows = np.frombuffer(offsets, kind)[encoded.offset : encoded.offset + len(encoded) + 1]
    return rows, memoryview(data or b""), paths


@dataclass(frozen=True)
class OpenClip:
    """A clip that crops are read from.

    Args:
        length (`int`): samples at 16 kHz.
        mean, std (`float`): of the whole clip.
        read (`Callable`): `read(first, count)` gives that part, float32 `[count]`. Raises ValueError if it cannot.
    """

    length: int
    mean: float
    std: float
    read: Callable[[int, int], np.ndarray]


def read_crops(
    plan: BatchPlan,
    rng: np.random.Generator,
    places: list[int],
    candidates: Iterable[Candidate],
    open_clip: Callable[[Candidate], OpenClip],
    report: Callable[[Candidate, ValueError], None],
) -> dict[int, np.ndarray]:
    """Read some of the crops of a group, each from the first candidate that it can be read from.

    Crops that overlap are decoded together. What a crop holds does not depend on which others are asked for.

    Args:
        plan ([`BatchPlan`]).
        rng (`np.random.Generator`): of the group; draws `crops_per_clip` starts from each candidate.
        places (`list[int]`): which of the group's crops are wanted.
        candidates (`Iterable`): the group's clip, then those that may take its place.
        open_clip (`Callable`): candidate -> [`OpenClip`], or a ValueError if there is none.
        report (`Callable`): is told of each failure.

    Returns:
        `dict[int, np.ndarray]`: place -> crop `[N]`, normalised.

    Raises:
        UnreadableCorpus: if a crop can be read from none of the candidates.
    """
    crops: dict[int, np.ndarray] = {}
    tried, failure = 0, None
    for candidate in candidates:
        tried += 1
        try:
            clip = open_clip(candidate)
        except ValueError as error:
            report(candidate, error)
            failure = error
            continue
        starts = plan.starts(rng, clip.length)
        for first, end in _spans(starts, plan.num_samples):
            inside = [place for place in places if place not in crops and first <= starts[place] < end]
            if not inside:
                continue
            try:
                audio = clip.read(first, end - first)
            except ValueError as error:
                report(candidate, error)
                failure = error
                continue
            for place in inside:
                crop = audio[starts[place] - first :][: plan.num_samples]
                crops[place] = plan.normalised(crop, clip.mean, clip.std)
        if len(crops) == len(places):
            return crops
    raise UnreadableCorpus(
        f"{tried} clips beside each other cannot be decoded, the last says: {failure} Prepare a corpus from this "
        "data, or leave these files out."
    )


def _spans(starts: list[int], num_samples: int) -> Iterator[tuple[int, int]]:
    """The parts of a clip, from their first sample to their end, that crops at `starts` cover together."""
    first = end = None
    for start in sorted(starts):
        if end is not None and start > end:
            yield first, end
            first = start
        first, end = (start if first is None else first), start + num_samples
    yield first, end


def warn_of_failure(name: str, error: ValueError, more: str = "") -> None:
    """Log that a clip cannot be read, with its name and the reason."""
    logger.warning("%s: %s Another clip stands in for it%s.", name, _reason(error), more)


def _reason(error: ValueError) -> str:
    return error.detail if isinstance(error, AudioError) else str(error)


class FailedClips:
    """Which clips of a corpus have failed, in all workers of a process together; each is logged once.

    A clip that has failed is one byte in memory that the workers share, so the count is exact. (Two workers that meet
    the same clip in the same moment may both log it.) It starts at zero in each run, and in each process of a run.

    Args:
        num_clips (`int`): rows of the corpus.
        num_usable (`int`): clips that are read at all.
        max_share (`float`): share of them that may fail; [`MIN_FAILED_CLIPS`] may in any case.
    """

    def __init__(self, num_clips: int, num_usable: int, max_share: float):
        self.num_usable, self.max_share = num_usable, max_share
        self._failed = torch.zeros(num_clips, dtype=torch.uint8).share_memory_()

    @property
    def count(self) -> int:
        """Clips that have failed so far."""
        return int(self._failed.sum())

    def add(self, clip: int, name: str, error: ValueError) -> None:
        """Note that a clip has failed. Raises UnreadableCorpus if more have than may."""
        if self._failed[clip]:
            return
        self._failed[clip] = 1
        count = self.count
        warn_of_failure(name, error, f"; {count} of {self.num_usable} clips failed so far")
        if count > max(MIN_FAILED_CLIPS, self.max_share * self.num_usable):
            raise UnreadableCorpus(
                f"{count} of {self.num_usable} clips cannot be read, more than `max_failed_share` {self.max_share:g} "
                f"allows; the last is {name}: {_reason(error)} Prepare the corpus anew, or raise `max_failed_share`."
            )
