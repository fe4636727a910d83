"""Weights of 8 bits for an exported model, and what they cost in accuracy."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from music2vec_hf.audio.decoding import AudioError
from music2vec_hf.audio.reading import read_audio
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.model.feature_extraction_music2vec import Music2VecFeatureExtractor
from music2vec_hf.synthetic.generator import synthesize_clip

INPUT, LOGITS = "input_values", "logits"
_SYNTHETIC_CLIPS, _SYNTHETIC_SEED, _LONGEST_CLIP_SECONDS = 16, 0, 30.0


@dataclass(frozen=True)
class Int8Cost:
    """How the answers with 8-bit weights differ from those in float32, over some clips.

    Attributes:
        clips (`str`): what was heard.
        errors (`dict[str, float]`): output to the relative error of embeddings (means over frames): the norm of the
            difference over the norm, as a mean over clips.
        agreement (`float` or `None`): share of clips, or of frames, whose first label is the same; None without a
            head and where labels do not exclude each other.
        logit_difference (`float` or `None`): the largest one, in the units of the logits; None without a head.
        rejects (`list[tuple[str, str]]`): files that could not be heard, and why.
    """

    clips: str
    errors: dict[str, float]
    agreement: float | None
    logit_difference: float | None
    rejects: list[tuple[str, str]]

    def sentence(self) -> str:
        """All of it but the rejects, in words."""
        worst, last = max(self.errors, key=self.errors.get), list(self.errors)[-1]
        text = f"Over {self.clips}, embeddings (means over frames) of `{last}` are off by {self.errors[last]:.1%} of "
        text += f"their norm, those of the worst output, `{worst}`, by {self.errors[worst]:.1%}"
        if self.agreement is not None:
            text += f"; the first label is the same for {self.agreement:.1%}"
        if self.logit_difference is not None:
            text += f"; the largest difference of a logit is {self.logit_difference:.3g}"
        return f"{text}."


def quantize_int8(source: Path, target: Path) -> None:
    """onnxruntime's dynamic quantisation of the products of activations and weights; all else stays in float32.

    Args:
        source (`Path`): ONNX file in float32.
        target (`Path`): file to write.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(dir=target.parent) as aside:
        prepared = Path(aside, source.name)
        quant_pre_process(source, prepared, skip_symbolic_shape=True, skip_optimization=True)
        # Weights without a sign: x86 processors without VNNI add signed ones in 16 bits, which overflows.
        quantize_dynamic(
            prepared,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QUInt8,
        )


def measure_int8(
    exact, rough, extractor: Music2VecFeatureExtractor, files: Sequence[Path] | None = None, exclusive: bool = True
) -> Int8Cost:
    """Compare two sessions clip by clip.

    Args:
        exact, rough (`onnxruntime.InferenceSession`): of the file in float32, and of that with 8-bit weights.
        extractor ([`Music2VecFeatureExtractor`]): of the model.
        files (`Sequence[Path]`, *optional*): audio, of which the first 30 s are heard; by default synthetic clips.
        exclusive (`bool`): whether a clip has exactly one label.

    Returns:
        [`Int8Cost`].

    Raises:
        ValueError: if none of the files can be heard.
    """
    names = [output.name for output in exact.get_outputs()]
    errors: dict[str, list[float]] = {name: [] for name in names if name != LOGITS}
    agreements, differences, rejects = [], [], []
    for inputs in _inputs(extractor, files, rejects):
        reference, values = (dict(zip(names, session.run(names, inputs), strict=True)) for session in (exact, rough))
        for name, found in errors.items():
            mean = reference[name].mean(1)
            found.append(np.linalg.norm(values[name].mean(1) - mean) / np.linalg.norm(mean))
        if LOGITS in names:
            agreements.append(np.mean(reference[LOGITS].argmax(-1) == values[LOGITS].argmax(-1)))
            differences.append(np.abs(reference[LOGITS] - values[LOGITS]).max())
    num_clips = len(errors[names[-1]])
    if num_clips == 0:
        raise ValueError(f"None of the {len(rejects)} files can be heard; the first: {rejects[0][0]}: {rejects[0][1]}")
    return Int8Cost(
        f"{num_clips} {'synthetic clips of 10 s' if files is None else 'clips'}",
        {name: float(np.mean(found)) for name, found in errors.items()},
        float(np.mean(agreements)) if agreements and exclusive else None,
        float(np.max(differences)) if differences else None,
        rejects,
    )


def _inputs(
    extractor: Music2VecFeatureExtractor, files: Sequence[Path] | None, rejects: list[tuple[str, str]]
) -> Iterator[dict[str, np.ndarray]]:
    """The graph's input, clip by clip; a file that cannot be heard is added to `rejects`."""
    for clip in tqdm(range(_SYNTHETIC_CLIPS) if files is None else files, desc="int8 beside float32", unit="clip"):
        try:
            samples = (
                synthesize_clip(_SYNTHETIC_SEED, clip)[0]
                if files is None
                else read_audio(clip, seconds=_LONGEST_CLIP_SECONDS)
            )
            yield {INPUT: extractor(samples, sampling_rate=SAMPLING_RATE, return_tensors="np").input_values}
        except (AudioError, ValueError) as error:  # unreadable, or shorter than a frame
            rejects.append((str(clip), " ".join(str(error).split())))


__all__ = ["INPUT", "LOGITS", "Int8Cost", "measure_int8", "quantize_int8"]
