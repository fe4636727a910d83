"""From any array of audio to the model's input: one channel, 16 kHz, zero mean and unit variance per clip."""

import math
import os
from fractions import Fraction
from numbers import Real

import numpy as np
import torch
import torch.nn.functional as F
from transformers import BatchFeature, Wav2Vec2FeatureExtractor
from transformers.utils import logging

logger = logging.get_logger(__name__)

# The resampling filter: zero crossings on either side, cut-off as a share of the lower rate's half, window's shape.
# As in the corpus (`audio/resampling.py`), so that a file gives the same samples here.
_ZERO_CROSSINGS, _ROLLOFF, _KAISER_BETA = 96, 0.965, 7.5


class Music2VecFeatureExtractor(Wav2Vec2FeatureExtractor):
    """Turn audio into `input_values` (and `attention_mask` where clips are padded).

    Takes numpy arrays, torch tensors and lists; one clip or a list of clips; float in [-1, 1] or integer PCM; any
    sampling rate (resampled to `sampling_rate`). One rule tells channels from a batch: inside a list each item is one
    clip, 1-D or 2-D with its channels on the shorter axis; a bare 2-D array with 1 or 2 rows or columns is one mono
    or stereo clip, any other bare 2-D array is a batch of mono clips, as in transformers. Channels are averaged.

    Args:
        norm_eps (`float`): added to the variance; 1e-5 is the reference's (transformers' own extractor has 1e-7).
        receptive_field (`int`): the shortest clip in samples at 16 kHz; 400 fill one frame of the base model.
        kwargs: those of `Wav2Vec2FeatureExtractor`.

    Source: fairseq `data/audio/raw_audio_dataset.py` at 3d262bb2 (whole-file `layer_norm`).
    """

    def __init__(
        self,
        feature_size=1,
        sampling_rate=16000,
        padding_value=0.0,
        return_attention_mask=True,
        do_normalize=True,
        norm_eps=1e-5,
        receptive_field=400,
        **kwargs,
    ):
        if not __name__.startswith("transformers_modules."):
            kwargs.pop("auto_map", None)  # a repository's own code, which saving this would not copy
        super().__init__(
            feature_size=feature_size,
            sampling_rate=sampling_rate,
            padding_value=padding_value,
            return_attention_mask=return_attention_mask,
            do_normalize=do_normalize,
            **kwargs,
        )
        self.norm_eps = norm_eps
        self.receptive_field = receptive_field

    def __call__(self, raw_speech, sampling_rate=None, return_tensors=None, **padding_kwargs) -> BatchFeature:
        """Prepare one clip or a list of clips.

        Args:
            raw_speech: the audio, see the class.
            sampling_rate (`int`, *optional*): of `raw_speech`, in Hz; `None` is taken as 16 kHz, with a warning.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`.
            padding, max_length, truncation, pad_to_multiple_of, return_attention_mask: as in
                `Wav2Vec2FeatureExtractor`. Clips are normalised over their own samples, before padding.

        Returns:
            `BatchFeature` with `input_values` (float32, `[B, N]` when of equal length or padded) and, when asked for,
            `attention_mask` (1 at samples that are not padding).

        Raises:
            ValueError: for empty audio, NaN or infinite samples, a shape that is neither a clip nor a batch, and audio
                shorter than one frame's receptive field, each in one sentence.
        """
        padding_kwargs.setdefault("padding", False)
        if sampling_rate is None:
            logger.warning_once(f"No `sampling_rate` was given: the audio is taken to be at {self.sampling_rate} Hz.")
        clips = [self.to_samples(clip, sampling_rate) for clip in _split_clips(raw_speech)]
        lengths = [len(clip) for clip in clips]
        truncation, max_length = padding_kwargs.get("truncation"), padding_kwargs.get("max_length")
        if self.do_normalize:
            # What is cut off has no say in the mean, as in transformers.
            clips = [self.normalize(clip, clip[:max_length] if truncation else clip) for clip in clips]
        batch = self.pad(BatchFeature({"input_values": clips}), **padding_kwargs)
        batch["input_values"] = [np.asarray(values, dtype=np.float32) for values in batch["input_values"]]
        if batch.get("attention_mask") is not None:
            batch["attention_mask"] = [np.asarray(mask, dtype=np.int32) for mask in batch["attention_mask"]]
        if return_tensors is None:
            return batch
        if len({len(values) for values in batch["input_values"]}) > 1:
            raise ValueError(
                f"The clips have {min(lengths)} to {max(lengths)} samples, which make no single tensor. "
                "Use `padding=True`, or give clips of equal length."
            )
        return batch.convert_to_tensors(return_tensors)

    def normalize(self, samples: np.ndarray, reference: np.ndarray | None = None) -> np.ndarray:
        """Zero mean and unit (population) variance over `reference` (`samples` itself by default): `[N]` -> `[N]`."""
        reference = samples if reference is None else reference
        # Sums in double precision: ten hours of float32 samples would lose digits.
        return self.standardize(samples, reference.mean(dtype=np.float64), reference.var(dtype=np.float64))

    def standardize(self, samples: np.ndarray, mean: float, variance: float) -> np.ndarray:
        """`samples [N]` -> `[N]` float32, for a mean and variance that are known."""
        return ((samples.astype(np.float64) - mean) / np.sqrt(variance + self.norm_eps)).astype(np.float32)

    def to_samples(self, clip, sampling_rate: int | None) -> np.ndarray:
        """One clip of any kind -> mono float32 `[N]` at the extractor's rate, checked but not normalised."""
        samples = _to_mono_float(clip)
        if samples.size == 0:
            raise ValueError("The audio is empty (0 samples). Give at least one frame of audio.")
        if not np.isfinite(samples).all():
            raise ValueError(
                f"The audio has {np.count_nonzero(~np.isfinite(samples))} samples that are NaN or infinite. "
                "Repair or drop this clip."
            )
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            samples = _resample(samples, sampling_rate, self.sampling_rate)
        if len(samples) < self.receptive_field:
            raise ValueError(
                f"The audio has {len(samples)} samples at {self.sampling_rate} Hz but one frame needs "
                f"{self.receptive_field} ({1000 * self.receptive_field / self.sampling_rate:.0f} ms). "
                "Give a longer clip."
            )
        return samples


def window_samples(window_seconds: float, sampling_rate: int, shortest: int) -> int:
    """Samples of a window of `window_seconds`; ValueError if they are fewer than `shortest`, those of one frame."""
    window = round(window_seconds * sampling_rate) if 0 < window_seconds < math.inf else 0
    if window < shortest:
        raise ValueError(
            f"`window_seconds` is {window_seconds}. Use at least {shortest / sampling_rate} s, one frame."
        )
    return window


def cut_windows(num_samples: int, window: int, shortest: int, hop: int | None = None) -> list[tuple[int, int]]:
    """Where the windows of a track begin and end, in samples.

    Args:
        num_samples (`int`): of the track.
        window (`int`): of a window; the last one may be shorter.
        shortest (`int`): a rest of fewer samples, too few for one frame, is left out.
        hop (`int`, *optional*): from the start of a window to the start of the next; by default they do not overlap.
    """
    starts = range(0, max(0, num_samples - shortest + 1), hop or window)
    return [(start, min(start + window, num_samples)) for start in starts]


def _split_clips(audio) -> list:
    """One entry per clip, by the rule of the class."""
    if isinstance(audio, (list, tuple)):
        if len(audio) == 0:
            raise ValueError("The audio is empty (an empty list). Give at least one clip.")
        _refuse_no_samples(audio[0])
        return [np.asarray(audio)] if np.ndim(audio[0]) == 0 else [_to_array(clip) for clip in audio]
    array = _to_array(audio)
    if array.ndim == 2 and min(array.shape) > 2:
        return list(array)
    if array.ndim == 2 and array.shape[0] == 2:
        logger.warning_once("A bare (2, n) array is read as one stereo clip. For a batch of two give a list of two.")
    if array.ndim == 3:
        return list(array)
    if array.ndim not in (1, 2):
        raise ValueError(
            f"The audio has shape {array.shape}. Give `(num_samples,)`, `(channels, num_samples)` or a list of clips."
        )
    return [array]


def _refuse_no_samples(audio) -> None:
    """An encoded file would pass for 8-bit samples, and numpy makes arrays of one object of the others."""
    if isinstance(audio, (str, os.PathLike)):
        what, how = f"a path ({os.fspath(audio)!r})", "read the file"
    elif isinstance(audio, dict):
        what, how = f"a dict with {', '.join(map(repr, audio)) or 'nothing'}", "take its array"
    elif isinstance(audio, (bytes, bytearray)) or (isinstance(audio, memoryview) and audio.format in "bBc"):
        what, how = (
            f"{len(audio)} bytes ({type(audio).__name__})",
            "decode them, or name their type by `np.frombuffer`",
        )
    elif hasattr(audio, "read"):
        what, how = f"a file ({type(audio).__name__})", "decode it"
    else:
        return
    raise ValueError(
        f"The audio is {what}, not samples. Give an array, tensor or list of samples: {how}, for example by "
        "`soundfile.read`, or hand it to the pipeline or `music2vec_hf.embed`, which read files."
    )


def _to_array(clip) -> np.ndarray:
    _refuse_no_samples(clip)
    if isinstance(clip, torch.Tensor):
        clip = clip.detach().cpu()
        clip = clip.float() if clip.is_floating_point() else clip  # numpy knows no bfloat16
        return clip.numpy()
    return np.asarray(clip)


def _to_mono_float(clip) -> np.ndarray:
    """One clip, 1-D or 2-D, of any numeric type -> float32 `[N]` in [-1, 1], channels averaged."""
    samples = _to_array(clip)
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "fiu":
        raise ValueError(
            f"A clip has shape {samples.shape} and type {samples.dtype}. Give real numbers of shape `(num_samples,)` "
            "or `(channels, num_samples)`."
        )
    if samples.size == 0:
        return np.zeros(0, dtype=np.float32)
    kind = samples.dtype
    if samples.ndim == 2:
        # A clip of one frame per channel does not exist, so the shorter axis holds the channels.
        samples = samples.mean(axis=int(np.argmin(samples.shape)), dtype=np.float64)
    if kind.kind == "f":
        return samples.astype(np.float32)
    if kind == np.uint8:  # 8-bit WAV is unsigned, with 128 as zero
        return ((samples - 128.0) / 128.0).astype(np.float32)
    full_scale = float(np.iinfo(kind).max) + 1.0
    if kind.itemsize == 8:  # Python's own integers: as wide as the PCM type that holds them
        full_scale = 2.0**15 if np.abs(samples).max() <= 2**15 else 2.0**31
    return (samples / full_scale).astype(np.float32)


def _resample(samples: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Kaiser-windowed sinc interpolation `[N] -> [ceil(N * to_rate / from_rate)]`, as torchaudio's, which need not be
    there: tones up to 7.5 kHz pass, what would alias stays below -80 dB."""
    if not isinstance(from_rate, Real) or not 1_000 <= from_rate < math.inf:  # 44.1 is meant in kHz
        raise ValueError(f"`sampling_rate` is {from_rate!r}. Give the audio's rate in Hz, for example 44100.")
    # There is a filter for each output phase: a ratio of large numbers is rounded, by 1e-6 at most.
    ratio = Fraction(int(from_rate), int(to_rate)).limit_denominator(1_000)
    down, up = ratio.numerator, ratio.denominator  # `down` input samples become `up`
    cutoff = min(down, up) * _ROLLOFF
    reach = math.ceil(_ZERO_CROSSINGS * down / cutoff)  # input samples on either side
    times = np.arange(-reach, reach + down) / down - np.arange(up)[:, None] / up  # [up, taps]
    times = np.clip(times * cutoff, -_ZERO_CROSSINGS, _ZERO_CROSSINGS)
    window = np.i0(_KAISER_BETA * np.sqrt(1 - (times / _ZERO_CROSSINGS) ** 2)) / np.i0(_KAISER_BETA)
    filters = torch.from_numpy((np.sinc(times) * window * cutoff / down).astype(np.float32))
    padded = torch.from_numpy(np.pad(samples, (reach, reach + down)))
    resampled = F.conv1d(padded[None, None], filters[:, None], stride=down)[0].T.flatten()
    return resampled[: -(-len(samples) * up // down)].numpy()


__all__ = ["Music2VecFeatureExtractor", "cut_windows", "window_samples"]
