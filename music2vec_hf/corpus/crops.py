"""What a run draws: the crop, mask and augmentation of every row, pure functions of (seed, epoch or step, index)."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

from music2vec_hf.audio.decoding import AudioError
from music2vec_hf.model.masking_music2vec import sample_mask_group

# Names of the independent random streams under one seed; the loop has 3 and 4, a stream of clips 5 and 6.
ORDER_STREAM, CROP_STREAM, MASK_STREAM, AUGMENT_STREAM = 0, 1, 2, 7

# `(step, row)`: row `row` of the update that follows `step` steps.
Address = tuple[int, int]


@dataclass(frozen=True)
class Augmentation:
    """What is done to one row; the defaults leave it as it is.

    Args:
        partner (`int`, *optional*): the row of the same update that is added.
        snr_db (`float`): level of the row over the partner's, in dB.
        gain_db (`float`): how much louder the result is made, in dB.
    """

    partner: int | None = None
    snr_db: float = 0.0
    gain_db: float = 0.0


def augment(crop: np.ndarray, augmentation: Augmentation, other: np.ndarray | None = None) -> np.ndarray:
    """Apply an augmentation to a normalised crop `[N]`; `other` is its partner's, neither mixed nor louder."""
    if other is not None:
        crop = mix(crop, other, augmentation.snr_db)
    if augmentation.gain_db:
        crop = crop * np.float32(10 ** (augmentation.gain_db / 20))
    return crop


def mix(crop: np.ndarray, other: np.ndarray, snr_db: float) -> np.ndarray:
    """Add `other` `snr_db` below `crop`, both float32 `[N]`; the sum gets the RMS of `crop`.

    Where one of them is silent, or they cancel, there is no such sum, and `crop` stays as it is.
    """
    level, other_level = _rms(crop), _rms(other)
    if not (level and other_level):
        return crop
    mixed = crop + other * np.float32(level / other_level * 10 ** (-snr_db / 20))
    mixed_level = _rms(mixed)
    return mixed * np.float32(level / mixed_level) if mixed_level else crop


def _rms(crop: np.ndarray) -> float:
    return float(np.sqrt(np.square(crop).mean(dtype=np.float64)))


@dataclass(frozen=True)
class BatchPlan:
    """How one update's rows are drawn and cut up.

    The rows of all updates are numbered: row `r` of step `s` is number `s * rows_per_update + r`. Every
    `crops_per_clip` consecutive numbers are a group, whose crops come from one clip.

    Args:
        rows_per_update (`int`): crops in one optimiser step, over all devices and micro-batches.
        mask_group_rows (`int`): rows that share the equal-count rule of the masks.
        mask_time_prob, mask_time_length, require_same_masks, mask_dropout: as in [`sample_mask_group`].
        masks_per_crop (`int`): masks of each crop, drawn independently; all of them count for the equal-count rule.
        normalize (`str`): `"clip"` uses mean and deviation of the whole clip (the reference), `"crop"` the crop's own.
        crops_per_clip (`int`): crops that are taken from a clip each time that it is opened.
        mix_prob (`float`): share of the rows to which a partner, any other row with equal chance, is added.
        mix_snr_db (`tuple[float, float]`): lowest and highest level of the row over its partner's, in dB.
        gain_db (`float`): the gain lies between minus and plus so many dB.
    """

    seed: int
    rows_per_update: int
    num_samples: int
    num_frames: int
    mask_group_rows: int
    mask_time_prob: float
    mask_time_length: int
    require_same_masks: bool = True
    mask_dropout: float = 0.0
    masks_per_crop: int = 1
    normalize: str = "clip"
    norm_eps: float = 1e-5
    crops_per_clip: int = 1
    mix_prob: float = 0.0
    mix_snr_db: tuple[float, float] = (0.0, 0.0)
    gain_db: float = 0.0

    def __post_init__(self):
        if self.mix_prob and self.rows_per_update < 2:
            raise ValueError("`mix_prob` adds another row of the update, which has only one. Use a larger batch.")

    def groups(self, addresses: Iterable[Address]) -> list[tuple[int, list[int]]]:
        """The groups that some rows and the partners mixed into them belong to, rising, and their places in each."""
        numbers = set()
        for step, row in addresses:
            partner = self.augmentation(step, row).partner
            numbers.update(self.number(step, each) for each in (row, partner) if each is not None)
        places: dict[int, list[int]] = {}
        for number in sorted(numbers):
            places.setdefault(number // self.crops_per_clip, []).append(number % self.crops_per_clip)
        return list(places.items())

    def number(self, step: int, row: int) -> int:
        """The number of a row in the sequence of all rows."""
        return step * self.rows_per_update + row

    def starts(self, rng: np.random.Generator, length: int) -> list[int]:
        """First samples of the crops of a group in a clip of `length` samples."""
        return [int(rng.integers(length - self.num_samples + 1)) for _ in range(self.crops_per_clip)]

    def masks(self, step: int, rows: list[int]) -> np.ndarray:
        """Masks of some rows of the update that follows `step` steps: bool `[rows, T]`, or `[rows, masks, T]`."""
        masks = {}
        for group in sorted({row // self.mask_group_rows for row in rows}):
            first = group * self.mask_group_rows
            members = range(first, min(first + self.mask_group_rows, self.rows_per_update))
            addresses = [[row] if view == 0 else [row, view] for row in members for view in range(self.masks_per_crop)]
            rngs = [np.random.default_rng([self.seed, MASK_STREAM, step, *address]) for address in addresses]
            group_masks = sample_mask_group(
                self.num_frames,
                self.mask_time_prob,
                self.mask_time_length,
                rngs,
                self.require_same_masks,
                self.mask_dropout,
            )
            if self.masks_per_crop > 1:
                group_masks = group_masks.reshape(len(members), self.masks_per_crop, self.num_frames)
            masks.update(zip(members, group_masks, strict=True))
        return np.stack([masks[row] for row in rows])

    def normalised(self, crop: np.ndarray, clip_mean: float, clip_std: float) -> np.ndarray:
        """A crop `[N]` less its mean, over its deviation, float32: the clip's or its own, as `normalize` says."""
        mean, std = clip_mean, clip_std
        if self.normalize != "clip":
            mean, std = crop.mean(dtype=np.float64), crop.std(dtype=np.float64)
        return ((crop - mean) / np.sqrt(std**2 + self.norm_eps)).astype(np.float32)

    def augmentation(self, step: int, row: int) -> Augmentation:
        """What is done to a row after normalisation."""
        if not (self.mix_prob or self.gain_db):
            return Augmentation()
        rng = np.random.default_rng([self.seed, AUGMENT_STREAM, step, row])
        # All numbers are always drawn, so that one setting does not change another's draw.
        mixed, snr_db, gain = rng.random(), rng.uniform(*self.mix_snr_db), rng.uniform(-self.gain_db, self.gain_db)
        partner = None
        if mixed < self.mix_prob:
            partner = (row + 1 + int(rng.integers(self.rows_per_update - 1))) % self.rows_per_update
        return Augmentation(partner, float(snr_db), float(gain))

    def augmented(self, address: Address, crops: dict[int, np.ndarray]) -> np.ndarray:
        """A row `[N]`, from the normalised crops of the rows by their number, augmented."""
        step, row = address
        drawn = self.augmentation(step, row)
        other = None if drawn.partner is None else crops[self.number(step, drawn.partner)]
        return augment(crops[self.number(step, row)], drawn, other)

    def collate(self, items: list[tuple[Address, np.ndarray]]) -> dict[str, torch.Tensor]:
        """Items `((step, row), samples [N])` of one step -> `input_values [b, N]` and `mask_time_indices`."""
        step = items[0][0][0]
        masks = self.masks(step, [row for (_, row), _ in items])
        return {
            "input_values": torch.from_numpy(np.stack([samples for _, samples in items])),
            "mask_time_indices": torch.from_numpy(masks),
        }


# ---- reading crops ----

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
    """A clip that crops are read from: samples at 16 kHz, mean and deviation of the whole.

    `read(first, count)` gives that part, float32 `[count]`, or raises ValueError.
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
        rng (`np.random.Generator`): of the group; draws `crops_per_clip` starts from each candidate.
        places (`list[int]`): which of the group's crops are wanted.
        candidates (`Iterable`): the group's clip, then those that may take its place.
        open_clip (`Callable`): candidate -> [`OpenClip`], or a ValueError if there is none.

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
