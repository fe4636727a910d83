"""Tracks of any length, piece by piece: decoded in blocks, normalised as a whole, cut into windows.

A track that is too long to be held is decoded twice, once for its mean and deviation and once for its windows, so that
ten hours cost no more memory than ten minutes.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from music2vec_hf.audio.decoding import AudioError, AudioSource, source_name
from music2vec_hf.audio.reading import AudioReader
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.features.embedding_batches import ahead
from music2vec_hf.model.configuration_music2vec import Music2VecConfig
from music2vec_hf.model.feature_extraction_music2vec import Music2VecFeatureExtractor

HELD_SECONDS = 300.0


@dataclass
class Window:
    """A piece of a track that the model hears at once.

    Args:
        start, stop (`int`): its samples.
        skip (`int`): frames at its start that the window before it gives.
        num_frames (`int`): frames that it gives.
    """

    start: int
    stop: int
    skip: int
    num_frames: int

    def frame_times(self, config: Music2VecConfig) -> np.ndarray:
        """Where in the track the frames that it gives lie: the centre of what each sees, in seconds."""
        times = config.frame_times(self.skip + self.num_frames)
        return self.start / SAMPLING_RATE + times[self.skip :]


@dataclass(frozen=True)
class WindowPlan:
    """How tracks are cut.

    Without overlap one window begins where the last one ends, and the frame that would lie across is missing; a rest
    too short for a frame is left out. With overlap, windows begin at whole frames, every frame of the track is given
    once, and of the frames that two windows share each gives those that are nearer to its own middle.

    Args:
        config ([`Music2VecConfig`]): of the model.
        window (`int`): samples of a window.
        hop (`int`): samples from the start of one to the start of the next.
    """

    config: Music2VecConfig
    window: int
    hop: int

    @classmethod
    def from_seconds(cls, config: Music2VecConfig, window_seconds: float, overlap_seconds: float = 0.0):
        """The plan for windows of `window_seconds` that share `overlap_seconds`, at most half, with the next one,
        or up to a frame more, so that windows begin at whole frames. Raises ValueError for what is out of range."""
        shortest, stride = config.receptive_field, config.inputs_to_logits_ratio
        window = round(window_seconds * SAMPLING_RATE)
        if window < shortest:
            raise ValueError(
                f"`window_seconds` is {window_seconds}. Use at least {shortest / SAMPLING_RATE} s, one frame."
            )
        if not 0 <= overlap_seconds <= window_seconds / 2:
            raise ValueError(
                f"`overlap_seconds` is {overlap_seconds}. Use a value from 0 to half of the window, "
                f"{window_seconds / 2:g} s."
            )
        if overlap_seconds == 0:
            return cls(config, window, window)
        return cls(config, window, max(1, int((window_seconds - overlap_seconds) * SAMPLING_RATE / stride)) * stride)

    def windows(self, num_samples: int) -> list[Window]:
        """The windows of a track of `num_samples` samples, in order; each gives a frame at least."""
        stride, overlaps = self.config.inputs_to_logits_ratio, self.hop < self.window
        windows: list[Window] = []
        for start in range(0, num_samples, self.hop):
            stop = min(start + self.window, num_samples)
            num_frames = int(self.config.num_frames(stop - start))
            shared = 0
            if windows and overlaps:
                last = windows[-1]
                shared = last.start // stride + last.skip + last.num_frames - start // stride
            if num_frames <= max(0, shared):
                break  # nothing new, up to the end of the track
            skip = max(0, shared + 1) // 2
            if windows:
                windows[-1].num_frames -= max(0, shared) - skip
            windows.append(Window(start, stop, skip, num_frames - skip))
        return windows


class LoadedTrack:
    """One track, ready to be read in windows.

    Args:
        source: what [`AudioReader`] takes, or `np.ndarray` of shape `(num_samples,)`: mono at 16 kHz.
        feature_extractor ([`Music2VecFeatureExtractor`]): decides on normalisation.
        number (`int`): of the track, for the caller.

    Attributes:
        source, number: as given.
        num_samples (`int`): at 16 kHz.

    Raises:
        ValueError: if the audio cannot be decoded, is not finite, or is shorter than one frame.
    """

    def __init__(
        self, source: AudioSource | np.ndarray, feature_extractor: Music2VecFeatureExtractor, number: int = 0
    ):
        self.source, self.number, self._feature_extractor = source, number, feature_extractor
        self.num_samples, total, squares = 0, 0.0, 0.0
        held: list[np.ndarray] = []
        for block in self._blocks(warn=True):
            # Sums in double precision: ten hours of float32 samples would lose digits.
            exact = block.astype(np.float64)
            self.num_samples += len(block)
            total, squares = total + exact.sum(), squares + exact @ exact
            if self.num_samples <= HELD_SECONDS * SAMPLING_RATE:
                held.append(block)
            else:
                held = []
        self._held = np.concatenate(held) if held else None
        if self._held is not None or self.num_samples == 0:
            feature_extractor.to_samples(np.zeros(0) if self._held is None else self._held, SAMPLING_RATE)
        self._mean = total / self.num_samples
        self._variance = max(0.0, squares / self.num_samples - self._mean**2)

    def windows(self, plan: WindowPlan) -> Iterator[tuple[Window, np.ndarray]]:
        """The windows of the track with their normalised samples, float32 `[num_samples]`."""
        blocks = iter([self._held]) if self._held is not None else self._blocks()
        held, first = next(blocks), 0
        for window in plan.windows(self.num_samples):
            held, first = held[window.start - first :], window.start
            length = window.stop - window.start
            while len(held) < length:
                block = next(blocks, None)
                if block is None:
                    raise AudioError(source_name(self.source), "unreadable", "it became shorter while it was read.")
                held = np.concatenate([held, block])
            samples = held[:length]
            if self._feature_extractor.do_normalize:
                samples = self._feature_extractor.standardize(samples, self._mean, self._variance)
            yield window, samples

    def _blocks(self, warn: bool = False) -> Iterator[np.ndarray]:
        if isinstance(self.source, np.ndarray):
            yield self._feature_extractor.to_samples(self.source, SAMPLING_RATE)
            return
        with AudioReader(self.source) as reader:
            yield from reader.blocks()
            if warn:
                reader.warn()


def load_tracks(
    sources: Iterable,
    feature_extractor: Music2VecFeatureExtractor,
    num_threads: int = 0,
    refuse: Callable[[int, Exception], None] | None = None,
) -> Iterator[LoadedTrack]:
    """Load tracks in order; their `number` counts the sources.

    Args:
        sources (iterable): what [`LoadedTrack`] takes.
        feature_extractor: decides on normalisation.
        num_threads (`int`): threads that decode ahead; 0 decodes each track when it is asked for.
        refuse: called with the number of a source that cannot be used, and the error, which is raised by default.
    """
    jobs = (partial(LoadedTrack, source, feature_extractor, number) for number, source in enumerate(sources))
    for number, result in enumerate(ahead(jobs, num_threads)):
        try:
            track = result()
        except (OSError, ValueError) as error:
            if refuse is None:
                raise
            refuse(number, error)
            continue
        yield track


__all__ = ["LoadedTrack", "Window", "WindowPlan", "load_tracks"]
