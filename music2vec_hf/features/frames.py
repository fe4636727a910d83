"""Features of single frames: all of a track, heard as they are needed, or a sample of each track, to be kept.

Frames of all layers are many: 30 s of a base model are 30 MB in float16. So only a sample of the tracks that a probe
is trained and chosen on is kept, `MAX_FRAMES` in all, by [`FeatureStore`] as means over windows are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
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
        for _, pieces in groupby(self._pieces(paths, layers), key=itemgetter(0)):
            _, _, times, frames = zip(*pieces, strict=True)
            yield np.concatenate(times), {layer: np.concatenate([one[layer] for one in frames]) for layer in frames[0]}

    def rows(
        self, paths: Sequence[str | Path], window_seconds: float | None = None, precision: str = "fp32"
    ) -> FeatureRows:
        """The kept frames of files, a row for each, in float16; `seconds` of a row is the frame's time. Of each window
        some are kept, by its length: a long track is never in memory with all its layers."""
        tracks = []
        for _, pieces in groupby(self._pieces(paths, None), key=itemgetter(0)):
            kept = [self._sample(*piece) for _, *piece in pieces]
            joined = FeatureRows.joined(kept)
            tracks.append(joined.chosen(slice(None), np.array([0, joined.offsets[-1]])))
        return FeatureRows.joined(tracks)

    def _pieces(
        self, paths: Sequence[str | Path], layers: Sequence[str] | None
    ) -> Iterator[tuple[int, float, np.ndarray, dict[str, np.ndarray]]]:
        """Of each window the number of its file, its share of the file's length, its frames' times, and the frames."""
        encoder = self.encoder
        if isinstance(encoder, SpectralEncoder):
            for number, path in enumerate(paths):
                frames = SPECTRAL_FRAMES[encoder.kind](read_audio(path))
                frames = np.concatenate([frames, np.diff(frames, axis=0, prepend=frames[:1])], axis=1)
                yield number, 1.0, np.arange(len(frames)) * self.period, {encoder.kind: frames}
            return
        layers, plan = encoder.check_layers(layers), encoder.plan(self.window_seconds, times=True)
        for track in hear_tracks(encoder, paths, plan, layers, "none", self.precision):
            for window in track.windows:
                share = (window.stop - window.start) / (track.seconds * plan.sampling_rate)
                yield track.number, share, plan.frame_times(window), window.features

    def _sample(self, share: float, times: np.ndarray, frames: dict[str, np.ndarray]) -> FeatureRows:
        size = min(max(1, round(self.frames_per_track * share)), len(times))
        chosen = np.sort(np.random.default_rng(len(times)).choice(len(times), size, replace=False))
        features = {layer: values[chosen].astype(np.float16) for layer, values in frames.items()}
        return FeatureRows(features, np.array([0, size]), np.ones(size, np.int64), times[chosen])
