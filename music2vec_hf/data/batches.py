"""Crops, masks and micro-batches of a training run (stages 3 to 5): every choice is a pure function of
(seed, epoch or step, index), so that a run does not depend on workers, processes or interruptions."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from music2vec_hf.data.audio import SAMPLING_RATE
from music2vec_hf.data.corpus import read_crop
from music2vec_hf.masking_music2vec import sample_mask_group

# Names of the independent random streams under one seed.
ORDER_STREAM, CROP_STREAM, MASK_STREAM = 0, 1, 2


@dataclass(frozen=True)
class BatchPlan:
    """How one update's rows are drawn and cut up.

    Args:
        seed (`int`): of the run.
        rows_per_update (`int`): crops in one optimiser step, over all devices and micro-batches.
        num_samples (`int`): length of a crop in samples.
        num_frames (`int`): frames of a crop.
        mask_group_rows (`int`): rows that share the equal-count rule of the masks.
        mask_time_prob, mask_time_length, require_same_masks, mask_dropout: as in [`sample_mask_group`].
        normalize (`str`): `"clip"` uses mean and deviation of the whole clip (the reference), `"crop"` the crop's own.
        norm_eps (`float`): added to the variance.
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
    normalize: str = "clip"
    norm_eps: float = 1e-5

    def masks(self, step: int, rows: list[int]) -> np.ndarray:
        """Masks `[len(rows), num_frames]` of some rows of the update that follows `step` steps."""
        masks = {}
        for group in sorted({row // self.mask_group_rows for row in rows}):
            first = group * self.mask_group_rows
            members = range(first, min(first + self.mask_group_rows, self.rows_per_update))
            rngs = [np.random.default_rng([self.seed, MASK_STREAM, step, row]) for row in members]
            group_masks = sample_mask_group(
                self.num_frames,
                self.mask_time_prob,
                self.mask_time_length,
                rngs,
                self.require_same_masks,
                self.mask_dropout,
            )
            masks.update(zip(members, group_masks, strict=True))
        return np.stack([masks[row] for row in rows])

    def normalised(self, crop: np.ndarray, clip_mean: float, clip_std: float) -> np.ndarray:
        """A crop `[N]` less its mean, over its deviation, float32: the clip's or its own, as `normalize` says."""
        mean, std = clip_mean, clip_std
        if self.normalize != "clip":
            mean, std = crop.mean(dtype=np.float64), crop.std(dtype=np.float64)
        return ((crop - mean) / np.sqrt(std**2 + self.norm_eps)).astype(np.float32)

    def collate(self, items: list[tuple[tuple[int, int], np.ndarray]]) -> dict[str, torch.Tensor]:
        """Items `((step, row), samples [N])` of one step -> `input_values [b, N]` and `mask_time_indices [b, T]`."""
        step = items[0][0][0]
        masks = self.masks(step, [row for (_, row), _ in items])
        return {
            "input_values": torch.from_numpy(np.stack([samples for _, samples in items])),
            "mask_time_indices": torch.from_numpy(masks),
        }


class CropDataset(Dataset):
    """Random crops of a corpus, addressed by `(step, row)`.

    Row `r` of step `s` is item `s * rows_per_update + r` of an endless sequence of epochs; each epoch is a permutation
    of the clips that are at least one crop long. Only the crop is decoded.

    Args:
        corpus (`datasets.Dataset`): from [`load_corpus`], with `audio`, `duration`, `clip_mean` and `clip_std`.
        plan ([`BatchPlan`]).

    Raises:
        ValueError: if no clip is as long as a crop.
    """

    def __init__(self, corpus, plan: BatchPlan):
        self.corpus, self.plan = corpus, plan
        self.lengths = np.rint(np.asarray(corpus["duration"]) * SAMPLING_RATE).astype(np.int64)
        self.usable = np.flatnonzero(self.lengths >= plan.num_samples)
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
        """Which clip and which first sample row `row` of step `step` reads."""
        epoch, index = divmod(step * self.plan.rows_per_update + row, len(self.usable))
        if epoch != self._epoch:
            order = np.random.default_rng([self.plan.seed, ORDER_STREAM, epoch]).permutation(len(self.usable))
            self._epoch, self._order = epoch, order
        clip = int(self.usable[self._order[index]])
        rng = np.random.default_rng([self.plan.seed, CROP_STREAM, epoch, index])
        return clip, int(rng.integers(self.lengths[clip] - self.plan.num_samples + 1))

    def __getitem__(self, address: tuple[int, int]):
        """`(step, row)` -> `(address, samples [N])`, normalised."""
        clip, start = self.locate(*address)
        example = self.corpus[clip]
        samples = read_crop(example, start, self.plan.num_samples)
        return address, self.plan.normalised(samples, example["clip_mean"], example["clip_std"])


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


def training_batches(
    dataset: CropDataset,
    first_step: int,
    max_steps: int,
    micro_steps: int = 1,
    process_index: int = 0,
    num_processes: int = 1,
    num_workers: int = 0,
) -> DataLoader:
    """Loader over the micro-batches of one process: `micro_steps` of them for each step from `first_step` on.

    Raises:
        ValueError: if an update has fewer rows than processes times micro-steps.
    """
    plan = dataset.plan
    sampler = UpdateSampler(plan.rows_per_update, first_step, max_steps, micro_steps, process_index, num_processes)
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=plan.collate, **loader_options(num_workers))


__all__ = ["BatchPlan", "CropDataset", "UpdateSampler", "loader_options", "training_batches"]
