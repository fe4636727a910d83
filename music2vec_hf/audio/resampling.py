"""Resampling a stream block by block, with the very samples that resampling the whole would give.

The filter is a Kaiser-windowed sinc. For every rate above 16 kHz it is flat within 0.01 dB up to 7.5 kHz and lets
less than -80 dB through from 8 kHz on.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
import torchaudio

SAMPLING_RATE = 16_000

# torchaudio's defaults (width 6, Hann) let a tone at 8.1 kHz through at about -10 dB.
LOWPASS_FILTER_WIDTH = 96
ROLLOFF = 0.965
KAISER_BETA = 7.5

# The filter bank has as many rows as the denominator: a rate that shares no factor with 16 000 would need gigabytes.
# A neighbouring ratio at most 1e-6 away costs 36 ms in ten hours.
MAX_DENOMINATOR = 1_000


@lru_cache(maxsize=16)
def _filter_bank(up: int, down: int) -> torchaudio.transforms.Resample:
    """torchaudio's resampling with its kernel computed once: `down` samples become `up`."""
    return torchaudio.transforms.Resample(
        down,
        up,
        resampling_method="sinc_interp_kaiser",
        lowpass_filter_width=LOWPASS_FILTER_WIDTH,
        rolloff=ROLLOFF,
        beta=KAISER_BETA,
    )


class StreamResampler:
    """Plans and runs the resampling of a mono stream from `rate` to `target_rate`.

    Time is counted in units: `down` input samples, which become `up` output samples.
    """

    def __init__(self, rate: int, target_rate: int = SAMPLING_RATE):
        ratio = Fraction(rate, target_rate).limit_denominator(MAX_DENOMINATOR)
        self.down, self.up = ratio.numerator, ratio.denominator
        # Units on either side that an output sample depends on.
        reach = LOWPASS_FILTER_WIDTH * max(self.down / self.up, 1.0) / ROLLOFF
        self.context = 0 if self.down == self.up else int(reach // self.down) + 2

    def run(
        self, read: Callable[[int], np.ndarray], seek: Callable[[int], None], first: int, block_samples: int
    ) -> Iterator[np.ndarray]:
        """Yield the output from output sample `first` to the end of the input.

        Args:
            read: `read(n)` gives the next at most `n` mono input samples, float32 `[n]`, none at the end.
            seek: `seek(i)` makes input sample `i` the next one; called only where `first` is not near the start.

        Yields:
            float32 `[n]` with `n` about `block_samples`, shorter at the end.
        """
        first_unit = first // self.up
        from_unit = max(0, first_unit - self.context)
        if from_unit:
            seek(from_unit * self.down)
        # Before the file there is silence, as there is after it.
        held = np.zeros((self.context - (first_unit - from_unit)) * self.down, np.float32)
        position = from_unit * self.down  # input samples up to the end of `held`
        done, skip = first_unit * self.up, first - first_unit * self.up
        units = max(1, -(-block_samples // self.up))
        ended = False
        while not ended:
            needed = (units + 2 * self.context) * self.down - len(held)
            block = read(needed)
            position += len(block)
            ended = len(block) < needed
            held = np.concatenate([held, block])
            if ended:
                # Whole units, and silence for the filter to run out into.
                missing = -position % self.down + self.context * self.down
                held = np.concatenate([held, np.zeros(missing, np.float32)])
                units = len(held) // self.down - 2 * self.context
            if units > 0:
                output = self._resample(held)[self.context * self.up : (self.context + units) * self.up]
                if ended:
                    output = output[: -(-position * self.up // self.down) - done]
                done += len(output)
                held = held[units * self.down :]
                if len(output) > skip:
                    yield output[skip:]
                skip = max(0, skip - len(output))

    def _resample(self, samples: np.ndarray) -> np.ndarray:
        if self.down == self.up:
            return samples
        with torch.inference_mode():
            return _filter_bank(self.up, self.down)(torch.from_numpy(samples)).numpy()
