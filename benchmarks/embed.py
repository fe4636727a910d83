"""How fast embeddings are made: `python benchmarks/embed.py [--device cuda] [--output F.md]`.

Seconds of audio per second of clock, at base size with random weights, from FLAC files to the mean of every layer:
ours (`embed`) beside plain transformers as the model card of music2vec-v1 shows it (`Wav2Vec2FeatureExtractor`,
`output_hidden_states=True`), one file at a time, and for the folder of mixed lengths also padded batches. They take
turns, round by round, in one process; the ratio is the median of the ratios of neighbours.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import soundfile
import torch
from data import cpu_model
from transformers import Data2VecAudioConfig, Data2VecAudioModel, Wav2Vec2FeatureExtractor

from music2vec_hf import Music2VecConfig, Music2VecFeatureExtractor, Music2VecModel, embed
from music2vec_hf.common.computing import autocast, choose_precision

RATE, PADDED_ROWS = 16_000, 4
MIXED_SECONDS = (4.1, 11.3, 7.9, 2.6, 21.7, 5.2, 14.8, 9.4)


def synthesise(folder: Path, lengths: tuple[float, ...]) -> list[Path]:
    """Write noise of these lengths, in seconds, as FLAC; what it holds does not matter for the speed of a model."""
    files = []
    for number, seconds in enumerate(lengths):
        files.append(folder / f"{number}_{seconds}.flac")
        samples = 0.1 * np.random.default_rng(number).standard_normal(int(seconds * RATE))
        soundfile.write(files[-1], samples, RATE)
    return files


def plain_transformers(plain: Data2VecAudioModel, rows: int, precision: str) -> Callable[[list[Path]], np.ndarray]:
    """As the model card shows it: `rows` files at a time, padded to the longest where there are several."""
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=rows > 1)

    @torch.no_grad()
    def run(files: list[Path]) -> np.ndarray:
        means = []
        for first in range(0, len(files), rows):
            clips = [soundfile.read(file, dtype="float32")[0] for file in files[first : first + rows]]
            inputs = extractor(clips, sampling_rate=RATE, return_tensors="pt", padding=rows > 1)
            with autocast(precision, plain.device.type):
                states = plain(**inputs.to(plain.device), output_hidden_states=True).hidden_states
            counts = [int(plain._get_feat_extract_output_lengths(len(clip))) for clip in clips]
            for row, count in enumerate(counts):
                means.append(torch.stack([layer[row, :count].float().mean(0) for layer in states]).cpu().numpy())
        return np.stack(means)

    return run


def ours(model: Music2VecModel, precision: str) -> Callable[[list[Path]], np.ndarray]:
    """All layers that plain transformers gives, too."""
    extractor = Music2VecFeatureExtractor()
    layers = [str(layer) for layer in range(model.config.num_hidden_layers + 1)]

    def run(files: list[Path]) -> np.ndarray:
        return embed(model, files, layers, feature_extractor=extractor, precision=precision)

    return run


def measure(sides: dict[str, Callable], files: list[Path], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round by side. The first round warms up and is left out; each goes the other way round."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            sides[name](files)
            found[name].append(time.perf_counter() - start)
    return {name: seconds[1:] for name, seconds in found.items()}


def format_rows(case: str, precision: str, audio: float, found: dict[str, list[float]]) -> list[str]:
    """A row of the table for every side; the first one is ours."""
    own = next(iter(found.values()))
    rows = []
    for name, seconds in found.items():
        ratio = statistics.median(theirs / mine for mine, theirs in zip(own, seconds, strict=True))
        speed = audio / statistics.median(seconds)
        rows.append(f"| {case} | {precision} | {name} | {speed:.1f} | {'' if seconds is own else f'{ratio:.2f}'} |")
    return rows


def build(device: str) -> tuple[Music2VecModel, Data2VecAudioModel]:
    """Our model and transformers' with the same random weights."""
    torch.manual_seed(0)
    model = Music2VecModel(Music2VecConfig()).eval()
    known = Data2VecAudioConfig().to_dict()
    fields = {key: value for key, value in model.config.to_dict().items() if key in known and key != "model_type"}
    fields.pop("architectures", None)
    plain = Data2VecAudioModel(Data2VecAudioConfig(**fields)).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    return model.to(device), plain.to(device)


def main() -> None:
    """Measure, print, and write the report where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--output", help="file to write the report to, too")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--clips", type=int, default=2, help="clips of 30 s (default: %(default)s)")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    model, plain = build(args.device)
    precisions = ["fp32", *(["bf16"] if choose_precision("auto", args.device) == "bf16" else [])]
    lines = [
        "# Embeddings of all layers, from FLAC files: seconds of audio per second",
        "",
        "| audio | precision | by | audio seconds per second | times as long as ours |",
        "| --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as root:
        for case, lengths in (("clips of 30 s", (30.0,) * args.clips), ("folder of mixed lengths", MIXED_SECONDS)):
            folder = Path(root, case.replace(" ", "_"))
            folder.mkdir()
            files = synthesise(folder, lengths)
            for precision in precisions:
                sides = {
                    "ours": ours(model, precision),
                    "transformers, a file at a time": plain_transformers(plain, 1, precision),
                }
                if len(set(lengths)) > 1:
                    padded = f"transformers, {PADDED_ROWS} files padded (changes the features)"
                    sides[padded] = plain_transformers(plain, PADDED_ROWS, precision)
                results = [side(files[:1]) for side in sides.values()]
                assert all(np.abs(result - results[0]).max() < 0.1 for result in results)
                lines += format_rows(case, precision, sum(lengths), measure(sides, files, args.rounds))
    gpu = f"{torch.cuda.get_device_name()}, " if args.device == "cuda" else ""
    lines += [
        "",
        f"Medians of {args.rounds} rounds of the clock; the last column is the median of the ratios within a round. "
        f"Mixed lengths: {', '.join(map(str, MIXED_SECONDS))} s. Base size, random weights."
        + ("" if len(precisions) > 1 else " bf16 is left out: this processor has no instructions for it."),
        "",
        f"- command: `{' '.join(['python benchmarks/embed.py', *sys.argv[1:]])}`",
        f"- machine: {gpu}{cpu_model()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; load {load:.1f} "
        f"before and {os.getloadavg()[0]:.1f} after: above the number of threads, other work took part of the cores",
        f"- versions: Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "soundfile", "numpy")),
    ]
    report = "\n".join(lines) + "\n"
    print(report)
    if args.output:
        Path(args.output).write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
