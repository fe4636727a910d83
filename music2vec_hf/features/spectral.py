"""Spectral statistics in the shape of an encoder: baselines beside a learned representation.

They follow JukeMIR: mean and standard deviation over time of the feature and of its first and second differences.
Chroma is the variant that did best on the synthetic corpus: the square root of the magnitude of a long Fourier
transform between 60 and 1,000 Hz, averaged per pitch class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from music2vec_hf.audio.reading import read_audio
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.features.store import FeatureRows
from music2vec_hf.model.feature_extraction_music2vec import cut_windows

SPECTRAL_VERSION = "1"
NUM_MFCC, MFCC_WINDOW, MFCC_HOP, NUM_MEL_BANDS = 20, 1024, 512, 64
NUM_MEL_FEATURES, MEL_WINDOW, MEL_HOP = 128, 2048, 512
CHROMA_WINDOW, CHROMA_HOP = 8192, 2048


def time_statistics(frames: np.ndarray) -> np.ndarray:
    """Mean and standard deviation over time of a feature `[T, C]`, then of its first and of its second differences:
    `[6 * C]`, float32; a clip too short for a difference gets zeros."""
    parts = []
    for order in range(3):
        values = np.diff(frames, n=order, axis=0) if len(frames) > order else np.zeros_like(frames[:1])
        parts.extend([values.mean(axis=0), values.std(axis=0)])
    return np.concatenate(parts).astype(np.float32)


@cache
def _mfcc_transform():
    from torchaudio.transforms import MFCC

    mel = {"n_fft": MFCC_WINDOW, "hop_length": MFCC_HOP, "n_mels": NUM_MEL_BANDS}
    return MFCC(sample_rate=SAMPLING_RATE, n_mfcc=NUM_MFCC, melkwargs=mel)


def mfcc_frames(audio: np.ndarray) -> np.ndarray:
    """20 mel-frequency cepstral coefficients every 32 ms: audio `[N]` at 16 kHz to `[T, 20]`."""
    return _mfcc_transform()(torch.as_tensor(_at_least(audio, MFCC_WINDOW))).T.numpy()


@cache
def _mel_transform():
    from torchaudio.transforms import MelSpectrogram

    # A window of 1024 leaves the lowest of 128 bands without a bin.
    return MelSpectrogram(SAMPLING_RATE, n_fft=MEL_WINDOW, hop_length=MEL_HOP, n_mels=NUM_MEL_FEATURES)


def mel_frames(audio: np.ndarray) -> np.ndarray:
    """Logarithm of the power in 128 mel bands every 32 ms: audio `[N]` at 16 kHz to `[T, 128]`."""
    power = _mel_transform()(torch.as_tensor(_at_least(audio, MEL_WINDOW)))
    return torch.log(power.T + 1e-6).numpy()  # the floor is about 110 dB below a full-scale tone


@cache
def _pitch_class_matrix() -> tuple[torch.Tensor, torch.Tensor]:
    frequencies = torch.arange(CHROMA_WINDOW // 2 + 1) * SAMPLING_RATE / CHROMA_WINDOW
    inside = (frequencies >= 60) & (frequencies <= 1000)
    # 69 is the MIDI number of A at 440 Hz; pitch class 0 is C.
    pitch_classes = torch.round(69 + 12 * torch.log2(frequencies[inside] / 440)).long() % 12
    members = torch.nn.functional.one_hot(pitch_classes, 12).to(torch.float32)
    return inside, members / members.sum(dim=0)


def chroma_frames(audio: np.ndarray) -> np.ndarray:
    """Chroma every 128 ms: audio `[N]` at 16 kHz to `[T, 12]`, C first, scaled so that the clip's mean is 1."""
    inside, matrix = _pitch_class_matrix()
    samples = torch.as_tensor(_at_least(audio, CHROMA_WINDOW))
    window = torch.hann_window(CHROMA_WINDOW)
    spectrum = torch.stft(samples, CHROMA_WINDOW, CHROMA_HOP, window=window, return_complex=True)
    chroma = spectrum[inside].abs().sqrt().T @ matrix  # [T, 12]
    # Level is no property of the harmony: a quiet clip gets the same chroma as a loud one.
    return (chroma / chroma.mean().clamp_min(1e-8)).numpy()


def _at_least(audio: np.ndarray, num_samples: int) -> np.ndarray:
    """Pad a very short clip with silence to one window."""
    audio = np.asarray(audio, dtype=np.float32)
    return np.pad(audio, (0, max(0, num_samples - len(audio))))


SPECTRAL_HOPS = {"mfcc": MFCC_HOP, "chroma": CHROMA_HOP, "mel": MEL_HOP}
SPECTRAL_FRAMES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mfcc": mfcc_frames,
    "chroma": chroma_frames,
    "mel": mel_frames,
}


@dataclass(frozen=True)
class SpectralEncoder:
    """A spectral feature, to be asked as an [`Encoder`](music2vec_hf.features.encoders.Encoder) is.

    Args:
        kind (`str`): one of `SPECTRAL_FRAMES`, also the name of its only layer.
    """

    kind: str
    hears_whole_rows = True

    @property
    def hash(self) -> str:
        """Name and version of the feature's definition."""
        return f"{self.kind}-{SPECTRAL_VERSION}"

    def identity(self, window_seconds: float | None, precision: str = "fp32") -> str:
        """All that the features of a file depend on beside its content."""
        return f"{self.hash}, pieces of {window_seconds} s"

    def rows(
        self, paths: Sequence[str | Path], window_seconds: float | None = None, precision: str = "fp32"
    ) -> FeatureRows:
        """Statistics over time of audio files, or of pieces of `window_seconds` of them: a row for each, `6 * C` wide
        (mfcc 120, chroma 72, mel 768). `precision` has no say."""
        return FeatureRows.joined([self._rows_of_file(path, window_seconds) for path in paths])

    def _rows_of_file(self, path: str | Path, window_seconds: float | None) -> FeatureRows:
        samples = read_audio(path)
        window = len(samples) if window_seconds is None else round(window_seconds * SAMPLING_RATE)
        pieces = [samples[start:stop] for start, stop in cut_windows(len(samples), window, shortest=1)]
        frames = [SPECTRAL_FRAMES[self.kind](piece) for piece in pieces]
        features = {self.kind: np.stack([time_statistics(each) for each in frames])}
        seconds = np.array([len(piece) / SAMPLING_RATE for piece in pieces])
        return FeatureRows(features, np.array([0, len(pieces)]), np.array([len(each) for each in frames]), seconds)
