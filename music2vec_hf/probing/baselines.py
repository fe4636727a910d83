"""Baselines beside a learned representation: spectral statistics as features.

The spectral features follow JukeMIR: mean and standard deviation over time of the feature and of its first and second
differences. Chroma is the variant that did best on the synthetic corpus: the square root of the magnitude of a long
Fourier transform between 60 and 1,000 Hz, averaged per pitch class.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

from music2vec_hf.probing.rows import FeatureRows, cut

SAMPLING_RATE = 16_000
NUM_MFCC = 20
CHROMA_WINDOW = 8192
CHROMA_HOP = 2048
MFCC_WINDOW = 1024
MFCC_HOP = 512
NUM_MEL_BANDS = 64
MEL_WINDOW = 2048
MEL_HOP = 512
NUM_MEL_FEATURES = 128


def time_statistics(frames: np.ndarray) -> np.ndarray:
    """Mean and standard deviation over time of a feature and of its first and second differences.

    Args:
        frames (`np.ndarray` of shape `(T, C)`): one frame or more; a clip too short for a difference gets zeros.

    Returns:
        `np.ndarray` of shape `(6 * C,)`, float32: mean and deviation of the feature, of its first, of its second
        differences.
    """
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


SPECTRAL_FRAMES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mfcc": mfcc_frames,
    "chroma": chroma_frames,
    "mel": mel_frames,
}


def spectral_rows(kind: str, paths: Sequence[str | Path], seconds: float | None = None) -> FeatureRows:
    """Statistics over time of a spectral feature, of whole audio files or of pieces of them.

    Args:
        kind (`str`): one of `SPECTRAL_FRAMES`.
        paths (`Sequence[Path]`): audio files.
        seconds (`float`, *optional*): length of a piece; the last one of a file may be shorter. None means the file.

    Returns:
        `FeatureRows`: one layer of the name `kind`, `6 * C` wide: mfcc 120, chroma 72, mel 768.
    """
    from music2vec_hf.audio.reading import read_audio

    num_samples = None if seconds is None else round(seconds * SAMPLING_RATE)
    tracks = []
    for path in paths:
        pieces = cut(read_audio(path), num_samples)
        frames = [SPECTRAL_FRAMES[kind](piece) for piece in pieces]
        features = {kind: np.stack([time_statistics(each) for each in frames])}
        lengths = np.array([len(piece) / SAMPLING_RATE for piece in pieces])
        tracks.append(
            FeatureRows(features, np.array([0, len(pieces)]), np.array([len(each) for each in frames]), lengths)
        )
    return FeatureRows.joined(tracks)
