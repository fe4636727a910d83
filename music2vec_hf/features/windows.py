"""The one way of audio through a frozen encoder: tracks are read, normalised as a whole, cut into windows, and heard
in batches of windows of one length.

Nothing is padded: padding would change the features of whatever is padded, so a track's features do not depend on what
it was batched with. A track that is too long to be held is decoded twice, once for its mean and deviation and once for
its windows, so that ten hours cost no more memory than ten minutes.
"""

import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from music2vec_hf.audio.decoding import AudioError, AudioSource, source_name
from music2vec_hf.audio.reading import AudioReader
from music2vec_hf.common.computing import autocast
from music2vec_hf.features.store import FeatureRows
from music2vec_hf.model.configuration_music2vec import Music2VecConfig
from music2vec_hf.model.feature_extraction_music2vec import cut_windows, window_samples

if TYPE_CHECKING:
    from music2vec_hf.features.encoders import Encoder

HELD_SECONDS = 300.0

# Audio among which windows of equal length are looked for; frames that nobody pools are many, so less of it.
READ_AHEAD_SECONDS = {"mean": 300.0, "none": 60.0}
_BATCH_SECONDS = {"cpu": 60.0, "mps": 60.0, "cuda": 300.0}
# cuDNN's attention, which some GPUs take first in half precision, makes a plan for every new length.
_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_DECODING_THREADS = 4


@dataclass
class Window:
    """A piece of a track that the model hears at once.

    Args:
        start, stop (`int`): its samples.
        skip (`int`): frames at its start that the window before it gives.
        num_frames (`int`, *optional*): frames that it gives; None: all, known when the model has heard it.
        features (`dict[str, np.ndarray]`): layer -> float32: `[C]`, the mean over the frames that it gives, or these,
            `[T, C]`; empty until the model has heard it.
    """

    start: int
    stop: int
    skip: int = 0
    num_frames: int | None = None
    features: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def frames(self) -> slice:
        """Which of the model's frames it gives."""
        return slice(self.skip, self.skip + self.num_frames)


@dataclass(frozen=True)
class WindowPlan:
    """How tracks are cut.

    Without overlap one window begins where the last one ends, and the frame that would lie across is missing; a rest
    too short for a frame is left out. With overlap, windows begin at whole frames, every frame of the track is given
    once, and of the frames that two windows share each gives those that are nearer to its own middle.

    Args:
        window (`int`): samples of a window.
        hop (`int`): samples from the start of one to the start of the next.
    """

    config: Music2VecConfig
    window: int
    hop: int
    sampling_rate: int

    @classmethod
    def from_seconds(
        cls, config: Music2VecConfig, window_seconds: float, overlap_seconds: float = 0.0, sampling_rate: int = 16_000
    ) -> "WindowPlan":
        """The plan for windows of `window_seconds` that share `overlap_seconds`, at most half, with the next one,
        or up to a frame more, so that windows begin at whole frames. Raises ValueError for what is out of range."""
        window = hop = window_samples(window_seconds, sampling_rate, config.receptive_field)
        if not 0 <= overlap_seconds <= window_seconds / 2:
            raise ValueError(
                f"`overlap_seconds` is {overlap_seconds}. Use a value from 0 to half of the window, "
                f"{window_seconds / 2:g} s."
            )
        if overlap_seconds > 0:
            stride = config.inputs_to_logits_ratio
            hop = max(1, int((window_seconds - overlap_seconds) * sampling_rate / stride)) * stride
        return cls(config, window, hop, sampling_rate)

    def windows(self, num_samples: int) -> list[Window]:
        """The windows of a track of `num_samples` samples, in order; each gives a frame at least."""
        bounds = cut_windows(num_samples, self.window, self.config.receptive_field, self.hop)
        if self.hop == self.window:
            return [Window(start, stop) for start, stop in bounds]
        stride = self.config.inputs_to_logits_ratio
        windows: list[Window] = []
        for start, stop in bounds:
            num_frames = int(self.config.num_frames(stop - start))
            shared = 0
            if windows:
                last = windows[-1]
                shared = max(0, last.start // stride + last.skip + last.num_frames - start // stride)
                if num_frames <= shared:
                    break  # nothing new, up to the end of the track
                last.num_frames -= shared - (shared + 1) // 2
            skip = (shared + 1) // 2
            windows.append(Window(start, stop, skip, num_frames - skip))
        return windows

    def frame_times(self, window: Window) -> np.ndarray:
        """Where in the track the frames that a window gives lie: the centre of what each sees, in seconds."""
        times = self.config.frame_times(window.skip + window.num_frames, self.sampling_rate)
        return window.start / self.sampling_rate + times[window.skip :]


class LoadedTrack:
    """One track, ready to be read in windows.

    Args:
        source: what [`AudioReader`] takes, or `np.ndarray` of shape `(num_samples,)`: mono at the encoder's rate.
        encoder ([`Encoder`]): it decides on rate and normalisation.

    Attributes:
        num_samples (`int`): at the encoder's rate.
        truncated, cancelled (`str` or `None`): a sentence, if the file gave less audio than it states; if its channels
            cancel each other.

    Raises:
        ValueError: if the audio cannot be decoded, is not finite, or is shorter than one frame.
    """

    def __init__(self, source: AudioSource | np.ndarray, encoder: "Encoder", number: int = 0):
        self.source, self.number, self._encoder = source, number, encoder
        self.truncated = self.cancelled = None
        self.num_samples, total, squares = 0, 0.0, 0.0
        held: list[np.ndarray] = []
        # Extractors of others normalise whole tracks only.
        limit = HELD_SECONDS * encoder.sampling_rate if encoder.is_ours else np.inf
        for block in self._blocks():
            self.num_samples += len(block)
            held.append(block)
            if self.num_samples > limit:
                # Sums in double precision: ten hours of float32 samples would lose digits.
                for exact in (each.astype(np.float64) for each in held):
                    total, squares = total + exact.sum(), squares + exact @ exact
                held.clear()
        self._prepared: np.ndarray | None = None
        if self.num_samples > limit:
            self._mean = total / self.num_samples
            self._variance = max(0.0, squares / self.num_samples - self._mean**2)
            return
        try:
            self._prepared = encoder.prepare(np.concatenate(held) if held else np.zeros(0, np.float32))
        except ValueError as error:
            if isinstance(source, np.ndarray):
                raise
            raise ValueError(f"{source_name(source)}: {error}") from error

    def windows(self, plan: WindowPlan) -> Iterator[tuple[Window, np.ndarray]]:
        """The windows of the track with their normalised samples, float32 `[num_samples]`."""
        blocks, extractor = self._blocks(), self._encoder.extractor
        if self._prepared is not None:
            blocks = iter([self._prepared])
        elif extractor.do_normalize:
            blocks = (extractor.standardize(block, self._mean, self._variance) for block in blocks)
        held, first = next(blocks), 0
        for window in plan.windows(self.num_samples):
            held, first = held[window.start - first :], window.start
            length = window.stop - window.start
            while len(held) < length:
                block = next(blocks, None)
                if block is None:
                    raise AudioError(source_name(self.source), "unreadable", "it became shorter while it was read.")
                held = np.concatenate([held, block])
            yield window, held[:length]

    def _blocks(self) -> Iterator[np.ndarray]:
        if isinstance(self.source, np.ndarray):
            yield self.source
            return
        with AudioReader(self.source, target_rate=self._encoder.sampling_rate) as reader:
            yield from reader.blocks()
            self.truncated, self.cancelled = reader.shortfall, reader.cancellation


@dataclass
class HeardTrack:
    """A track and what the encoder made of it.

    Attributes:
        windows (iterator of [`Window`]): with their features; gone when the next track is asked for.
    """

    number: int
    seconds: float
    truncated: str | None
    plan: WindowPlan
    windows: Iterator[Window]


def window_rows(windows: Iterable[Window], sampling_rate: int) -> FeatureRows:
    """The means of the windows of one track, as a row each."""
    windows = list(windows)
    return FeatureRows(
        {layer: np.stack([window.features[layer] for window in windows]) for layer in windows[0].features},
        np.array([0, len(windows)]),
        np.array([window.num_frames for window in windows]),
        np.array([(window.stop - window.start) / sampling_rate for window in windows]),
    )


def hear_tracks(
    encoder: "Encoder",
    sources: Iterable,
    plan: WindowPlan,
    layers: Sequence[str],
    pool: str = "mean",
    precision: str = "fp32",
    refuse: Callable[[int, Exception], None] | None = None,
) -> Iterator[HeardTrack]:
    """Let the encoder hear tracks window by window, in order; of any track only a few windows are in memory.

    Args:
        sources (iterable): what [`LoadedTrack`] takes; read as they are needed, some ahead while a GPU computes.
        refuse: called with the number of a source that cannot be used, and the error. By default that is raised, and
            for a truncated file there is a warning.

    Raises:
        ValueError: for an unknown pooling or precision, or where torch.compile fails.
    """
    if pool not in READ_AHEAD_SECONDS:
        raise ValueError(f"`pool` is {pool!r}. Use 'mean' or 'none'.")
    hear = partial(_hear_together, encoder, layers, pool, precision)
    heard = _heard_windows(load_tracks(sources, encoder, refuse), plan, hear, READ_AHEAD_SECONDS[pool])
    for track, heard_together in groupby(heard, key=itemgetter(0)):
        seconds, windows = track.num_samples / plan.sampling_rate, map(itemgetter(1), heard_together)
        yield HeardTrack(track.number, seconds, track.truncated, plan, windows)


def load_tracks(
    sources: Iterable, encoder: "Encoder", refuse: Callable[[int, Exception], None] | None = None
) -> Iterator[LoadedTrack]:
    """Load tracks in order; the arguments are those of [`hear_tracks`]."""
    # A CPU needs all its cores for the model.
    num_threads = 0 if encoder.device.type == "cpu" else _DECODING_THREADS
    jobs = (partial(LoadedTrack, source, encoder, number) for number, source in enumerate(sources))
    for number, result in enumerate(_ahead(jobs, num_threads)):
        try:
            track = result()
        except (OSError, ValueError) as error:
            if refuse is None:
                raise
            refuse(number, error)
            continue
        for problem in filter(None, (track.truncated if refuse is None else None, track.cancelled)):
            warnings.warn(f"{source_name(track.source)}: {problem}", stacklevel=2)
        yield track


def _ahead(jobs: Iterable[Callable], num_threads: int) -> Iterator[Callable]:
    """Work on jobs in threads, a few ahead of the one that is asked for. Yields functions, in the order of the jobs,
    that give a job's result or raise its error."""
    if num_threads == 0:
        yield from jobs
        return
    pool = ThreadPoolExecutor(num_threads)
    waiting: deque = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(job).result)
            if len(waiting) > num_threads:
                yield waiting.popleft()
        yield from waiting
    finally:
        pool.shutdown(cancel_futures=True)


def _heard_windows(tracks, plan, hear, read_ahead_seconds) -> Iterator[tuple[LoadedTrack, Window, np.ndarray]]:
    """All windows with their features, heard together with what follows within so many seconds."""
    waiting: list[tuple[LoadedTrack, Window, np.ndarray]] = []
    num_samples = 0
    for track in tracks:
        for window, samples in track.windows(plan):
            waiting.append((track, window, samples))
            num_samples += len(samples)
            if num_samples >= read_ahead_seconds * plan.sampling_rate:
                hear(waiting)
                yield from waiting
                waiting, num_samples = [], 0
    hear(waiting)
    yield from waiting


@torch.no_grad()
def _hear_together(encoder, layers, pool, precision, waiting) -> None:
    """Fill in the features of some windows, in batches of equal length."""
    device = encoder.device
    by_length = defaultdict(list)
    for _, window, samples in waiting:
        by_length[len(samples)].append((window, samples))
    for length, pairs in by_length.items():
        size = max(1, int(_BATCH_SECONDS.get(device.type, 60.0) * encoder.sampling_rate / length))
        for batch in (pairs[start : start + size] for start in range(0, len(pairs), size)):
            together = [window for window, _ in batch]
            input_values = torch.from_numpy(np.stack([values for _, values in batch])).to(device)
            # The precision is ours, also where the caller computes under autocast.
            outer = torch.autocast(device.type, enabled=False)
            with outer, autocast(precision, device.type), sdpa_kernel(_ATTENTION):
                frames = wanted_layers(layers, encoder.frames(input_values))
                kept = {layer: _keep(values.float(), together, pool) for layer, values in frames}
            # Only now: a GPU that is asked for results after every layer waits each time.
            for layer, values in kept.items():
                for window, row in zip(together, values.cpu().numpy(), strict=True):
                    window.features[layer] = row if pool == "mean" else row[window.frames]


def wanted_layers(layers, frames) -> Iterator[tuple[str, torch.Tensor]]:
    """Those of the layers that are asked for; what lies above the last one is not computed."""
    missing = set(layers)
    while missing:
        layer, values = next(frames)
        if layer in missing:
            missing.remove(layer)
            yield layer, values


def _keep(frames: torch.Tensor, windows: Sequence[Window], pool: str) -> torch.Tensor:
    """Frames `[B, T, C]`, or the mean of those that each window gives, `[B, C]`."""
    for window in windows:
        if window.num_frames is None:
            window.num_frames = frames.shape[1]
    if pool == "none":
        return frames
    return torch.stack([row[window.frames].mean(0) for row, window in zip(frames, windows, strict=True)])
