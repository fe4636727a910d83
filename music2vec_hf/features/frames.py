"""Features of single frames: all of a track, heard as they are needed, or a sample of each track, to be kept.

Frames of all layers are many: 30 s of a base model are 30 MB in float16. So only a sample of the tracks that a probe
is trained and chosen on is kept, `MAX_FRAMES` in all, by [`FeatureStore`] as means over windows are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from music2vec_hf.audio.reading import read_audio
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.features.encoders import Encoder
from music2vec_hf.features.spectral import SPECTRAL_FRAMES, SPECTRAL_HOPS, SpectralEncoder
from music2vec_hf.features.store import FeatureRows
from music2vec_hf.features.windows import hear_tracks

# All layers of a base model in float16: 1.2 GB.
MAX_FRAMES = 60_000


@dataclass(frozen=True)
class FrameEncoder:
    """Frames of an encoder, to be asked by [`FeatureStore`] as an encoder is.

    Args:
        encoder: a model's, or spectral features.
        frames_per_track (`int`): how many of a track's frames are kept, drawn at random by their number only.
    """

    encoder: Encoder | SpectralEncoder
    frames_per_track: int
    window_seconds: float = 30.0
    precision: str = "fp32"
    hears_whole_rows = True

    @property
    def period(self) -> float:
        """Seconds from one frame to the next."""
        if isinstance(self.encoder, SpectralEncoder):
            return SPECTRAL_HOPS[self.encoder.kind] / SAMPLING_RATE
        return self.encoder.front_end.inputs_to_logits_ratio / self.encoder.sampling_rate

    def identity(self, window_seconds: float | None, precision: str = "fp32") -> str:
        """All that the kept frames of a file depend on beside its content."""
        return f"{self.encoder.identity(self.window_seconds, self.precision)}\n{self.frames_per_track} frames"

    def hear(
        self, paths: Sequence[str | Path], layers: Sequence[str] | None = None
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """For each file the times of its frames in seconds `[T]`, and layer to frames `[T, C]`, float32.

        Spectral frames come with their difference from the frame before: one alone does not show an onset.

        Raises ValueError for a file that cannot be heard, or a model that does not tell where its frames lie.
        """
        encoder = self.encoder
        if isinstance(encoder, SpectralEncoder):
            for path in paths:
                frames = SPECTRAL_FRAMES[encoder.kind](read_audio(path))
                frames = np.concatenate([frames, np.diff(frames, axis=0, prepend=frames[:1])], axis=1)
                yield np.arange(len(frames)) * SPECTRAL_HOPS[encoder.kind] / SAMPLING_RATE, {encoder.kind: frames}
            return
        layers, plan = encoder.check_layers(layers), encoder.plan(self.window_seconds, times=True)
        for track in hear_tracks(encoder, paths, plan, layers, "none", self.precision):
            windows = list(track.windows)
            times = np.concatenate([plan.frame_times(window) for window in windows])
            yield times, {layer: np.concatenate([window.features[layer] for window in windows]) for layer in layers}

    def rows(
        self, paths: Sequence[str | Path], window_seconds: float | None = None, precision: str = "fp32"
    ) -> FeatureRows:
        """The kept frames of files, a row for each, in float16; `seconds` of a row is the frame's time."""
        return FeatureRows.joined([self._sample(times, frames) for times, frames in self.hear(paths)])

    def _sample(self, times: np.ndarray, frames: dict[str, np.ndarray]) -> FeatureRows:
        size = min(self.frames_per_track, len(times))
        chosen = np.sort(np.random.default_rng(len(times)).choice(len(times), size, replace=False))
        features = {layer: values[chosen].astype(np.float16) for layer, values in frames.items()}
        return FeatureRows(features, np.array([0, size]), np.ones(size, np.int64), times[chosen])
