"""Micro-batches of a training run from a corpus with random access (stages 3 to 5): every choice is a pure function of
(seed, epoch or step, index), so that a run does not depend on workers, processes or interruptions.
"""

import logging
from collections import Counter, deque
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice

import fsspec.asyn
import numpy as np
import torch
from datasets import IterableDataset as ClipStream
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from music2vec_hf.audio.containers import audio_name, encoded_audio
from music2vec_hf.audio.decoding import AudioError
from music2vec_hf.audio.reading import AudioReader
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.corpus.crops import (
    CROP_STREAM,
    ORDER_STREAM,
    Address,
    BatchPlan,
    EncodedClips,
    FailedClips,
    OpenClip,
    read_crops,
    warn_of_failure,
)
from music2vec_hf.corpus.loading import STATISTICS, clip_lengths, read_clip, read_crop


class CropDataset(Dataset):
    """Random crops of a corpus, addressed by `(step, row)`.

    The groups of rows that [`BatchPlan`] numbers are an endless sequence of epochs; each epoch is a permutation of the
    clips that are at least one crop long, one clip for each group. Only the crops are decoded. For a clip that cannot
    be read, the next one in the epoch's order stands in.

    Args:
        corpus (`datasets.Dataset`): from [`load_corpus`], with `audio`, `duration`, `clip_mean` and `clip_std`.
        max_failed_share (`float`): share of the clips that may fail, see [`FailedClips`].

    Raises:
        ValueError: if no clip is as long as a crop; while reading, if too many clips fail.
    """

    def __init__(self, corpus, plan: BatchPlan, max_failed_share: float = 0.01):
        self.corpus, self.plan = corpus, plan
        self.lengths = clip_lengths(corpus)
        self.means, self.stds = (np.asarray(corpus[name][:]) for name in ("clip_mean", "clip_std"))
        self.usable = np.flatnonzero(self.lengths >= plan.num_samples)
        self.failed = FailedClips(len(self.lengths), len(self.usable), max_failed_share)
        self._clips = EncodedClips(corpus)
        self._epoch, self._order = -1, None
        if len(self.usable) == 0:
            raise ValueError(
                f"None of the corpus' {len(self.lengths)} clips is as long as a crop "
                f"({plan.num_samples / SAMPLING_RATE:g} s); the longest has "
                f"{self.lengths.max(initial=0) / SAMPLING_RATE:g} s. "
                "Use a shorter `crop_seconds` or prepare longer clips."
            )

    @property
    def num_too_short(self) -> int:
        """Clips that are never used because they are shorter than a crop."""
        return len(self.lengths) - len(self.usable)

    def locate(self, step: int, row: int) -> tuple[int, int]:
        """Which clip and which first sample row `row` of step `step` reads, unless another clip stands in."""
        group, place = divmod(self.plan.number(step, row), self.plan.crops_per_clip)
        clips, rng = self._candidates(group)
        clip = next(clips)
        return clip, self.plan.starts(rng, self.lengths[clip])[place]

    def __getitem__(self, address: Address) -> tuple[Address, np.ndarray]:
        """`(step, row)` -> `(address, samples [N])`, normalised and augmented."""
        return self.__getitems__([address])[0]

    def __getitems__(self, addresses: list[Address]) -> list[tuple[Address, np.ndarray]]:
        """The items of some rows; a clip that several of them come from is opened once."""
        crops = {}
        for group, places in self.plan.groups(addresses):
            clips, rng = self._candidates(group)
            found = read_crops(self.plan, rng, places, clips, self._open, self._report)
            crops.update((group * self.plan.crops_per_clip + place, crop) for place, crop in found.items())
        return [(address, self.plan.augmented(address, crops)) for address in addresses]

    def _candidates(self, group: int) -> tuple[Iterator[int], np.random.Generator]:
        """The clip of a group, then those that stand in for it: the epoch's order from there on, and round."""
        number = len(self.usable)
        epoch, index = divmod(group, number)
        if epoch != self._epoch:
            order = np.random.default_rng([self.plan.seed, ORDER_STREAM, epoch]).permutation(number)
            self._epoch, self._order = epoch, order
        order = self._order
        clips = (int(self.usable[order[(index + offset) % number]]) for offset in range(number))
        return clips, np.random.default_rng([self.plan.seed, CROP_STREAM, epoch, index])

    def _open(self, clip: int) -> OpenClip:
        read = partial(read_crop, self._clips[clip])
        return OpenClip(int(self.lengths[clip]), float(self.means[clip]), float(self.stds[clip]), read)

    def _report(self, clip: int, error: ValueError) -> None:
        self.failed.add(clip, self._clips.name(clip), error)


class UpdateSampler(Sampler):
    """Addresses `(step, row)` of the micro-batches of one process, from `first_step` on.

    The rows of an update are cut into `num_processes * micro_steps` runs of nearly equal length; process `p` takes
    every `num_processes`-th of them. Raises ValueError if an update has fewer rows than that.
    """

    def __init__(self, rows_per_update, first_step, max_steps, micro_steps=1, process_index=0, num_processes=1):
        if rows_per_update < num_processes * micro_steps:
            raise ValueError(
                f"An update has {rows_per_update} crops but {num_processes} processes with {micro_steps} micro-steps "
                "each. Use a larger `batch_seconds`, fewer processes or a larger `max_seconds_per_device`."
            )
        self.steps = range(first_step, max_steps)
        self.cuts = np.array_split(np.arange(rows_per_update), num_processes * micro_steps)[
            process_index::num_processes
        ]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            for rows in self.cuts:
                yield [(step, int(row)) for row in rows]

    def __len__(self) -> int:
        return len(self.steps) * len(self.cuts)


def loader_options(num_workers: int) -> dict:
    """The `DataLoader` options that both kinds of corpus share."""
    return {
        "num_workers": num_workers,
        "pin_memory": torch.cuda.is_available(),
        "prefetch_factor": 4 if num_workers else None,
    }


def training_batches(dataset: CropDataset, *place: int, num_workers: int = 0, **more: int) -> DataLoader:
    """Loader over the micro-batches of one process: `micro_steps` of them for each step from `first_step` on.

    `place` and `more` are `first_step`, `max_steps` and what else [`UpdateSampler`] takes; so many workers read.
    Raises ValueError if an update has fewer rows than processes times micro-steps.
    """
    plan = dataset.plan
    sampler = UpdateSampler(plan.rows_per_update, *place, **more)
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=plan.collate, **loader_options(num_workers))


logger = logging.getLogger(__name__)


# ---- from a stream ----

# Random streams beside those of crops.py, and those of the loop.
SHARD_STREAM, BUFFER_STREAM = 5, 6

# Clips read from a shard at a time, and clips that may stand in for one that cannot be decoded.
ROWS_PER_READ, STAND_INS = 16, 4


class StreamingCrops(IterableDataset):
    """The micro-batches of one process, read from a stream.

    The stream is an endless sequence of epochs. In each, the shards are permuted, the clips go through a shuffle
    buffer, and each clip that is at least one crop long gives one crop, or `crops_per_clip`: clip `i` of that sequence
    gives the rows of group `i` (see [`BatchPlan`]). Every worker of every process walks through the whole sequence and
    decodes only the rows that are its own.

    What is guaranteed: with the same data in the same shards, `plan`, `buffer_size` and version of numpy, the
    batches are the same bit for bit, whatever the number of workers and wherever a run is resumed; with another
    number of processes or micro-steps the same rows are cut into other batches. The order is another one than that
    of [`CropDataset`], which permutes all clips: here only clips within the buffer's reach meet.

    What it costs: every worker of every process reads all of the stream, and the headers of what it does not decode.
    Take one or two workers, and [`load_corpus`] where the corpus fits on the disk. A run that resumes within its
    first epoch reads up to where it was, without decoding; later on it reads one whole epoch, to count it, and then
    its own epoch up to where it was. The buffer holds encoded clips, in each worker: with 1 MB a clip, 512 take 0.5
    GB.

    A clip whose header cannot be read is left out, named and counted. In streams without `duration`, `clip_mean` and
    `clip_std` the header is believed, and the whole clip is decoded for its crops, which are drawn from what there
    is. If a crop cannot be read, a clip beside it in the stream stands in, and the failure is named once in a worker.

    Args:
        sampler ([`UpdateSampler`]): which rows are wanted, in rising order.
        buffer_size (`int`): clips in the shuffle buffer.
        report (`bool`): log what the first epoch leaves out; for one of several processes.

    Raises:
        ValueError: if rows are to be mixed, as a stream does not keep an update's rows; while iterating, if no clip is
            as long as a crop, or none stands in for one that cannot be decoded.
    """

    def __init__(
        self, corpus: ClipStream, plan: BatchPlan, sampler: UpdateSampler, buffer_size: int = 512, report: bool = True
    ):
        if buffer_size < 1:
            raise ValueError(f"`buffer_size` is {buffer_size}; it must be at least 1, which does not shuffle.")
        if plan.mix_prob:
            raise ValueError(
                f"`mix_prob` is {plan.mix_prob:g}, but a stream does not keep the other rows of an update. "
                "Use `mix_prob` 0, or `streaming` false."
            )
        self.measured = set(STATISTICS) <= set(corpus.features)
        self.corpus = corpus.select_columns(["audio", *STATISTICS] if self.measured else ["audio"])
        self.plan, self.sampler, self.buffer_size, self.report = plan, sampler, buffer_size, report
        self._failed: set[str] = set()

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield `input_values [b, N]` and `mask_time_indices [b, T]`: worker `w` of `W` yields every `W`-th."""
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        if worker:
            # Remote files may have been opened before the fork.
            fsspec.asyn.reset_lock()
        items, item = None, (-1, None)
        for batch in islice(self.sampler, first, None, stride):
            crops = {}
            for group, places in self.plan.groups(batch):
                if items is None:
                    items = self._items(group, self.report and first == 0)
                if item[0] != group:
                    item = next(one for one in items if one[0] == group)
                epoch, index, clips = item[1]
                rng = np.random.default_rng([self.plan.seed, CROP_STREAM, epoch, index])
                found = read_crops(self.plan, rng, places, clips, self._open, self._report)
                crops.update((group * self.plan.crops_per_clip + place, crop) for place, crop in found.items())
            yield self.plan.collate([(address, self.plan.augmented(address, crops)) for address in batch])

    def _items(self, first: int, report: bool) -> Iterator[tuple[int, tuple]]:
        """`(i, (epoch, index, clips))` of the items from `first` on; `clips` are the item's own and the stand-ins."""
        epoch, before = 0, 0
        while True:
            left_out: Counter = Counter()
            clips = self._shuffled(epoch, left_out, report)
            head = list(islice(clips, 1 + STAND_INS))
            # The neighbours that may stand in: the clips before, at the epoch's beginning those after.
            recent, count = deque(head, maxlen=1 + STAND_INS), 0
            for count, clip in enumerate(chain(head, clips), start=1):
                if before + count > first:
                    yield before + count - 1, (epoch, count - 1, [clip, *(one for one in recent if one is not clip)])
                recent.append(clip)
            self._check_epoch(count, left_out, report)
            report = False
            # Every epoch has as many clips as this one: those that lie before `first` need not be read.
            passed = 1 + max(0, (first - before - count) // count)
            epoch, before = epoch + passed, before + passed * count

    def _check_epoch(self, count: int, left_out: Counter, report: bool) -> None:
        reasons = ", ".join(f"{number} {kind}" for kind, number in left_out.most_common()) or "none"
        if not count:
            raise ValueError(
                f"None of the stream's clips is as long as a crop ({self.plan.num_samples / SAMPLING_RATE:g} s; left "
                f"out: {reasons}). Use a shorter `crop_seconds` or another corpus."
            )
        if report and left_out:
            logger.warning("An epoch of the stream has %d clips; left out: %s.", count, reasons)

    def _shuffled(self, epoch: int, left_out: Counter, report: bool) -> Iterator[tuple[dict, int]]:
        """The clips of an epoch, `(row, length in samples)`, in its order."""
        shards = np.random.default_rng([self.plan.seed, SHARD_STREAM, epoch]).permutation(self.corpus.num_shards)
        rng = np.random.default_rng([self.plan.seed, BUFFER_STREAM, epoch])
        buffer: list[tuple[dict, int]] = []
        for shard in shards:
            for clip in self._usable(int(shard), left_out, report):
                if len(buffer) < self.buffer_size:
                    buffer.append(clip)
                    continue
                place = int(rng.integers(self.buffer_size))
                yield buffer[place]
                buffer[place] = clip
        for place in rng.permutation(len(buffer)):
            yield buffer[place]

    def _usable(self, shard: int, left_out: Counter, report: bool) -> Iterator[tuple[dict, int]]:
        """The clips of a shard that are long enough, by their header or their `duration`."""
        rows = self.corpus.shard(self.corpus.num_shards, shard)
        # Not `iter(rows)`: that would divide the shards among the workers.
        for columns in rows.iter(batch_size=ROWS_PER_READ):
            for values in zip(*columns.values(), strict=True):
                row = dict(zip(columns, values, strict=True))
                try:
                    length = round(row["duration"] * SAMPLING_RATE) if self.measured else header_length(row)
                except AudioError as error:
                    left_out[error.kind] += 1
                    if report:
                        logger.warning("%s It is left out.", error)
                    continue
                if length < self.plan.num_samples:
                    left_out["shorter than a crop"] += 1
                    continue
                yield row, length

    def _open(self, clip: tuple[dict, int]) -> OpenClip:
        row, length = clip
        if self.measured:
            return OpenClip(length, row["clip_mean"], row["clip_std"], partial(read_crop, row))
        samples = read_clip(row)
        if len(samples) < self.plan.num_samples:
            detail = f"only {len(samples) / SAMPLING_RATE:.2f} s can be decoded, less than a crop."
            raise AudioError(_name(row), "too short", detail)
        mean, std = float(samples.mean(dtype=np.float64)), float(samples.std(dtype=np.float64))
        return OpenClip(len(samples), mean, std, lambda first, count: samples[first : first + count])

    def _report(self, clip: tuple[dict, int], error: ValueError) -> None:
        name = _name(clip[0])
        if name not in self._failed:
            self._failed.add(name)
            warn_of_failure(name, error)


def _name(row: dict) -> str:
    return audio_name(row["audio"]) or "a clip without a name"


def header_length(row: dict) -> int:
    """Samples of a row's clip at 16 kHz as its header states them. Raises AudioError if the header cannot be read."""
    with AudioReader(encoded_audio(row["audio"] or {}), audio_name(row["audio"] or {})) as reader:
        if reader.num_samples == 0:
            raise AudioError(reader.name, "empty", "its header states no length.")
        return reader.num_samples


def streaming_batches(
    corpus: ClipStream, plan: BatchPlan, *place: int, num_workers: int = 0, buffer_size: int = 512, **more: int
) -> DataLoader:
    """What [`training_batches`] does, over a stream: see [`StreamingCrops`] for what is guaranteed and what it costs.

    Returns:
        `DataLoader` over the micro-batches of one process: `micro_steps` of them for each step, dicts of `input_values
        [b, N]` float32 and `mask_time_indices [b, T]` bool.
    """
    sampler = UpdateSampler(plan.rows_per_update, *place, **more)
    first = (more.get("process_index") or (place[3] if len(place) > 3 else 0)) == 0
    crops = StreamingCrops(corpus, plan, sampler, buffer_size, report=first)
    return DataLoader(crops, batch_size=None, **loader_options(num_workers))
