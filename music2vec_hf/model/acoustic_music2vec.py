"""Acoustic targets: spectra that the student can be asked to predict beside the teacher's layers, and first weights of
a front end that hears them.

A teacher that starts from random weights has little to teach until the student has learned something. Spectra are
worth predicting from the first step, as MERT (Li et al. 2023, arXiv 2306.00107) does with a constant-Q transform.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F

SAMPLING_RATE = 16_000
LOWEST_HZ, NUM_OCTAVES = 55.0, 7
NUM_SEMITONES, NUM_MEL_BANDS = 12 * NUM_OCTAVES, 40
NUM_ACOUSTIC_BINS = NUM_SEMITONES + NUM_MEL_BANDS + 12
_LONG_WINDOW, _SHORT_WINDOW = 8192, 1024  # for pitch and for timbre
_SLOWER = 4  # frames for which one long window stands
_QUALITY = 2.0 / (2.0 ** (1.0 / 12.0) - 1.0)  # a Hann window so long tells a semitone from the next


@torch.no_grad()
def acoustic_targets(input_values: torch.Tensor, num_frames: int, hop: int, receptive_field: int) -> torch.Tensor:
    """Spectra around each of the front end's frames.

    Levels in 84 semitones from 55 Hz on, in 40 mel bands and in 12 pitch classes. Each of the three kinds has, over
    all frames and bins of a row, zero mean and unit variance: it tells timbre and harmony, not loudness.

    Args:
        input_values (`torch.Tensor` of shape `(B, N)`): waveform at 16 kHz.
        num_frames (`int`): `T`, frames of the front end.
        hop, receptive_field (`int`): samples between two frames, and those that one of them sees.

    Returns:
        `torch.Tensor` of shape `(B, T, 136)`, float32.
    """
    samples, device = input_values.float(), input_values.device
    semitones, mel_bands, pitch_classes = _filters(device)
    # The long windows overlap so much that every fourth of them is enough.
    slow_frames = math.ceil(num_frames / _SLOWER)
    slow_centre = receptive_field / 2 + (_SLOWER - 1) / 2 * hop
    with torch.autocast(device.type, enabled=False):
        long = _powers(samples, _LONG_WINDOW, slow_frames, _SLOWER * hop, slow_centre)
        short = _powers(samples, _SHORT_WINDOW, num_frames, hop, receptive_field / 2)
        pitch, timbre = torch.log(long @ semitones + 1e-4), torch.log(short @ mel_bands + 1e-4)
        levels = (_stretched(pitch, num_frames), timbre, _stretched(long.pow(0.25) @ pitch_classes, num_frames))
        return torch.cat([F.layer_norm(each, each.shape[1:], eps=1e-8) for each in levels], dim=-1)


def _powers(samples: torch.Tensor, window: int, num_frames: int, hop: int, first_centre: float) -> torch.Tensor:
    """Power spectra `[B, T, window / 2 + 1]` of Hann windows every `hop` samples; that of a sine is about 1."""
    before = window // 2 - round(first_centre)
    after = (num_frames - 1) * hop + window - before - samples.shape[1]
    hann = torch.hann_window(window, device=samples.device) * (4 / window)
    spectrum = torch.fft.rfft(F.pad(samples, (before, after)).unfold(1, window, hop) * hann)
    return spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)


def _stretched(levels: torch.Tensor, num_frames: int) -> torch.Tensor:
    return levels.repeat_interleave(_SLOWER, 1)[:, :num_frames]


@cache
def _filters(device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Matrices from the bins of a spectrum to semitones, mel bands and pitch classes, made once for each device."""
    hertz = torch.arange(_LONG_WINDOW // 2 + 1) * SAMPLING_RATE / _LONG_WINDOW
    pitch = 12 * torch.log2(hertz.clamp_min(1.0) / LOWEST_HZ)
    # Triangles of a semitone to each side, and never narrower than the spectrum's own bins.
    width = torch.maximum(torch.ones(1), 12 * torch.log2(1 + SAMPLING_RATE / _LONG_WINDOW / hertz.clamp_min(1.0)))
    semitones = (1 - (pitch[:, None] - torch.arange(NUM_SEMITONES)).abs() / width[:, None]).clamp_min(0)
    inside = (hertz >= 60) & (hertz <= 2000)
    pitch_classes = F.one_hot(torch.round(pitch + 9).long() % 12, 12).float() * inside[:, None]  # C is class 0
    mel = 2595 * torch.log10(1 + torch.arange(_SHORT_WINDOW // 2 + 1) * SAMPLING_RATE / _SHORT_WINDOW / 700)
    edges = torch.linspace(0, mel[-1], NUM_MEL_BANDS + 2)
    rising = (mel[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mel[:, None]) / (edges[2:] - edges[1:-1])
    mel_bands = torch.minimum(rising, falling).clamp_min(0)
    return semitones.to(device), mel_bands.to(device), (pitch_classes / pitch_classes.sum(0)).to(device)


def log_frequency_filters(num_filters: int, kernel: int) -> torch.Tensor:
    """First weights of a front end's first layer: pairs of a cosine and a sine under a Hann window, at frequencies
    that rise by equal ratios over seven octaves from 55 Hz, each as long as it takes to tell a semitone, at most
    `kernel`.

    Args:
        num_filters (`int`): output channels of the layer, two for each frequency.
        kernel (`int`): samples that the layer sees.

    Returns:
        `torch.Tensor` of shape `(num_filters, 1, kernel)`; filters have unit energy.
    """
    number = torch.arange(num_filters)[:, None]
    frequencies = LOWEST_HZ * 2.0 ** (NUM_OCTAVES * (number // 2) / math.ceil(num_filters / 2))
    seconds = (torch.arange(kernel) - (kernel - 1) / 2) / SAMPLING_RATE
    lengths = (_QUALITY / frequencies).clamp_max(kernel / SAMPLING_RATE)
    windows = torch.cos(math.pi * seconds / lengths).square() * (seconds.abs() < lengths / 2)
    filters = windows * torch.cos(2 * math.pi * frequencies * seconds - (number % 2) * math.pi / 2)
    return F.normalize(filters, dim=-1)[:, None]


__all__ = ["NUM_ACOUSTIC_BINS", "acoustic_targets", "log_frequency_filters"]
