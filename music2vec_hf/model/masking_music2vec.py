"""Span masks over frames: which of them the student will not see (stage 5 of the data's way)."""

from collections.abc import Sequence

import numpy as np


def sample_mask_time_indices(
    num_frames: int, mask_time_prob: float, mask_time_length: int, rng: np.random.Generator
) -> np.ndarray:
    """Choose which frames of one crop the student will not see.

    Spans of `mask_time_length` frames start at distinct random frames. Spans may overlap, so on average fewer frames
    than `mask_time_prob` are masked (0.65 and 10 give about 0.49). At least one span is placed: a crop without masked
    frames would have no loss. As in the reference, the last frame is never masked.

    Args:
        num_frames (`int`): frames the front end yields for this crop (50 per second).
        mask_time_prob (`float`): upper bound on the expected share of masked frames, in [0, 1].
        mask_time_length (`int`): span length in frames (10 frames are 0.2 s).
        rng (`np.random.Generator`): source of randomness; the caller owns the seed.

    Returns:
        `np.ndarray` of shape `(num_frames,)`, bool: True where the frame is masked.

    Raises:
        ValueError: if a span does not fit into the crop, or nothing would be left unmasked.

    Source: fairseq `data/data_utils.py: compute_mask_indices` at 3d262bb2, `static`, one row.
    """
    if not 0.0 <= mask_time_prob <= 1.0 or mask_time_length < 1:
        raise ValueError(
            f"`mask_time_prob` is {mask_time_prob} and `mask_time_length` is {mask_time_length}. "
            "Use a probability from 0 to 1 and a length of at least 1 frame."
        )
    if mask_time_length >= num_frames:
        raise ValueError(
            f"`mask_time_length` is {mask_time_length} frames but the crop has only {num_frames}. "
            "Use a longer `crop_seconds` or a shorter `mask_time_length`."
        )
    # Round at random: always rounding down would mask short crops too little.
    num_spans = max(1, int(mask_time_prob * num_frames / mask_time_length + rng.random()))
    # Where spans are almost as many as frames, the reference widens the choice of starts to one more than spans.
    num_starts = max(num_frames - mask_time_length, num_spans + 1)
    starts = rng.choice(num_starts, num_spans, replace=False)
    frames = (starts[:, None] + np.arange(mask_time_length)).ravel()
    mask = np.zeros(num_frames, dtype=bool)
    mask[frames[frames < num_frames]] = True
    if mask.all():
        raise ValueError(
            f"`mask_time_prob` {mask_time_prob} with `mask_time_length` {mask_time_length} masks all {num_frames} "
            "frames of a crop. Use a longer `crop_seconds` or a smaller `mask_time_prob`."
        )
    return mask


def sample_mask_group(
    num_frames: int,
    mask_time_prob: float,
    mask_time_length: int,
    rngs: Sequence[np.random.Generator],
    require_same_masks: bool = True,
    mask_dropout: float = 0.0,
) -> np.ndarray:
    """Masks of the rows that are masked together, one generator per row.

    With `require_same_masks` every row ends with as many masked frames as the row that has the fewest: the others keep
    a random subset of single frames, which punches holes into their spans. The larger the group, the lower the masked
    share, so the group is a property of the recipe and not of the micro-batch that a machine can hold.

    Args:
        num_frames, mask_time_prob, mask_time_length: as in [`sample_mask_time_indices`].
        rngs (sequence of `np.random.Generator`): one per row.
        require_same_masks (`bool`): trim all rows to the smallest count of the group.
        mask_dropout (`float`): share of each row's masked frames that is unmasked again, in [0, 1).

    Returns:
        `np.ndarray` of shape `(len(rngs), num_frames)`, bool.

    Source: fairseq `data/data_utils.py: compute_mask_indices` at 3d262bb2.
    """
    masks = np.stack([sample_mask_time_indices(num_frames, mask_time_prob, mask_time_length, rng) for rng in rngs])
    smallest = int(masks.sum(axis=1).min())
    for mask, rng in zip(masks, rngs, strict=True):
        masked = np.flatnonzero(mask)
        keep = smallest if require_same_masks else len(masked)
        keep -= round(mask_dropout * keep)
        if keep < len(masked):
            mask[:] = False
            mask[rng.choice(masked, keep, replace=False)] = True
    return masks


__all__ = ["sample_mask_group", "sample_mask_time_indices"]
