"""Optional augmentations of normalised crops, off by default: mixing the rows of an update, and gain."""

from dataclasses import dataclass

import numpy as np


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


def draw_augmentation(
    rng: np.random.Generator,
    row: int,
    rows_per_update: int,
    mix_prob: float,
    mix_snr_db: tuple[float, float],
    gain_db: float,
) -> Augmentation:
    """Draw a row's augmentation. All numbers are always drawn, so that one setting does not change another's draw.

    Args:
        rng (`np.random.Generator`): of this row and step.
        row (`int`): which row of the update.
        rows_per_update (`int`): rows to choose the partner from.
        mix_prob (`float`): share of the rows to which a partner, any other row with equal chance, is added.
        mix_snr_db (`tuple[float, float]`): lowest and highest level of the row over its partner's, in dB.
        gain_db (`float`): the gain lies between minus and plus so many dB.
    """
    mixed, snr_db, gain = rng.random(), rng.uniform(*mix_snr_db), rng.uniform(-gain_db, gain_db)
    partner = None
    if mixed < mix_prob:
        partner = (row + 1 + int(rng.integers(rows_per_update - 1))) % rows_per_update
    return Augmentation(partner, float(snr_db), float(gain))


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


__all__ = ["Augmentation", "augment", "draw_augmentation", "mix"]
