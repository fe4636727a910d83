"""Micro-batches of a training run from a corpus with random access (stages 3 to 5): every choice is a pure function of
(seed, epoch or step, index), so that a run does not depend on workers, processes or interruptions."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.corpus.batch_plan import CROP_STREAM, ORDER_STREAM, Address, BatchPlan
from music2vec_hf.corpus.crops import EncodedClips, FailedClips, OpenClip, read_crops
from music2vec_hf.corpus.loading import clip_lengths, read_crop


class CropDataset(Dataset):
    """Random crops of a corpus, addressed by `(step, row)`.

    The groups of rows that [`BatchPlan`] numbers are an endless sequence of epochs; each epoch is a permutation of the
    clips that are at least one crop long, one clip for each group. Only the crops are decoded. For a clip that cannot
    be read, the next one in the epoch's order stands in.

    Args:
        corpus (`datasets.Dataset`): from [`load_corpus`], with `audio`, `duration`, `clip_mean` and `clip_std`.
        plan ([`BatchPlan`]).
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
    every `num_processes`-th of them.

    Raises:
        ValueError: if an update has fewer rows than processes times micro-steps.
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

    Args:
        dataset ([`CropDataset`]).
        place, more: `first_step`, `max_steps` and what else [`UpdateSampler`] takes.
        num_workers (`int`): processes that read.

    Raises:
        ValueError: if an update has fewer rows than processes times micro-steps.
    """
    plan = dataset.plan
    sampler = UpdateSampler(plan.rows_per_update, *place, **more)
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=plan.collate, **loader_options(num_workers))
