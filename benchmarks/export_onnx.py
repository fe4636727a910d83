"""What ONNX brings, and what 8-bit weights cost: `python benchmarks/export_onnx.py [--probe MODEL --data SYNTHETIC]`.

Speed: torch, ONNX in float32 and ONNX with 8-bit weights take turns, round by round, on one clip of 30 s at base size
with random weights, all hidden states; ratios are medians of the ratios within a round. Accuracy: with `--probe`, the
last layers of MODEL are computed by torch and by the 8-bit file and probed on the tasks of a synthetic corpus.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from data import cpu_model
from embed import measure
from tqdm import tqdm

from music2vec_hf import Music2VecConfig, Music2VecFeatureExtractor, Music2VecModel
from music2vec_hf.audio.reading import read_audio
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.features.embeddings import embed
from music2vec_hf.hub.onnx_export import INT8_FILE, MODEL_FILE, OnnxExport, export_onnx, load_graph, open_session
from music2vec_hf.probing.evaluation import probe
from music2vec_hf.probing.tasks.loading import load_task, resolve_tasks

CLIP_SECONDS = 30.0


def sides(model: Path, export: OnnxExport) -> dict[str, Callable[[np.ndarray], list[np.ndarray]]]:
    """Each way to compute all outputs for clips `[B, N]`, with as many threads."""
    graph, _ = load_graph(model)

    @torch.no_grad()
    def by_torch(clips: np.ndarray) -> list[np.ndarray]:
        return [output.numpy() for output in graph(torch.from_numpy(clips))]

    def by_onnx(file: str) -> Callable[[np.ndarray], list[np.ndarray]]:
        session = open_session(export.folder / file, torch.get_num_threads())
        return lambda clips: session.run(None, {"input_values": clips})

    return {"torch": by_torch, "ONNX": by_onnx(MODEL_FILE), "ONNX int8": by_onnx(INT8_FILE)}


def speed(rounds: int, folder: Path) -> list[str]:
    """Lines on time, size and int8's error at base size."""
    torch.manual_seed(0)
    Music2VecModel(Music2VecConfig()).save_pretrained(folder / "base")
    Music2VecFeatureExtractor().save_pretrained(folder / "base")
    export = export_onnx(folder / "base", folder / "base-onnx", "int8")
    noise = np.random.default_rng(0).standard_normal((1, round(CLIP_SECONDS * SAMPLING_RATE))).astype(np.float32)
    found = measure(sides(folder / "base", export), noise, rounds)
    megabytes = {"ONNX": export.bytes[MODEL_FILE] / 1e6, "ONNX int8": export.bytes[INT8_FILE] / 1e6}
    megabytes["torch"] = (folder / "base" / "model.safetensors").stat().st_size / 1e6
    lines = ["| by | audio seconds per second | times as fast as torch | MB |", "| --- | ---: | ---: | ---: |"]
    for name, seconds in found.items():
        ratios = [theirs / mine for theirs, mine in zip(found["torch"], seconds, strict=True)]
        lines.append(
            f"| {name} | {CLIP_SECONDS / statistics.median(seconds):.1f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {megabytes[name]:.0f} |"
        )
    return [
        *lines,
        "",
        f"Medians of {rounds} rounds of the clock (in brackets the smallest and the largest ratio): one clip of 30 s, "
        "float32, base size, random weights, all hidden states.",
        f"ONNX in float32 differs from torch by at most {export.difference:.1e} of the largest value of an output. "
        f"int8, with random weights: {export.int8.sentence()}",
    ]


def probed(model: str, data: str, layers: int, seeds: list[int], folder: Path) -> list[str]:
    """Lines on the probes' scores of the last layers, by torch and by the 8-bit file."""
    export = export_onnx(model, folder / "probed-onnx", "int8")
    graph, extractor = load_graph(model)
    session = open_session(export.folder / INT8_FILE, torch.get_num_threads())
    chosen = [str(layer) for layer in range(graph.model.config.num_hidden_layers + 1)][-layers:]
    outputs = [f"hidden_states_{layer}" for layer in chosen]
    tasks = {name: load_task(name, data) for name in resolve_tasks("synthetic")}
    paths = list(dict.fromkeys(path for task in tasks.values() for path in task.paths))
    embeddings = embed(graph.encoder, paths, chosen, feature_extractor=extractor)  # [files, layers, C]
    rows = []
    for path in tqdm(paths, desc="int8", unit="file"):
        samples = read_audio(path)
        if len(samples) > CLIP_SECONDS * SAMPLING_RATE:
            raise ValueError(f"{path} is longer than {CLIP_SECONDS:g} s, which torch would cut into windows.")
        values = extractor(samples, sampling_rate=SAMPLING_RATE, return_tensors="np").input_values
        rows.append([frames[0].mean(0) for frames in session.run(outputs, {"input_values": values})])
    features = {
        "torch": {layer: embeddings[:, place] for place, layer in enumerate(chosen)},
        "int8": {layer: np.stack([row[place] for row in rows]) for place, layer in enumerate(chosen)},
    }
    place = {path: number for number, path in enumerate(paths)}
    lines = ["| task | metric | torch | ONNX int8 |", "| --- | --- | --- | --- |"]
    for name, task in tasks.items():
        order = [place[path] for path in task.paths]
        results = [
            probe({layer: rows[order] for layer, rows in values.items()}, task, "quick", seeds)
            for values in features.values()
        ]
        for metric in task.task.value_metrics:
            cells = [f"{_score(result.scores[metric])}, layer {result.choice.layer}" for result in results]
            lines.append(f"| {name} | {metric} | {' | '.join(cells)} |")
    hidden = graph.model.config.hidden_size
    return [
        *lines,
        "",
        f"Protocol `quick`, layers {', '.join(chosen)} of a model of {graph.model.config.num_hidden_layers} layers, "
        f"{hidden} wide, {len(paths)} clips; test scores as means over {len(seeds)} seeds, with 95 % intervals over "
        f"tracks. {export.int8.sentence()}",
    ]


def _score(score: dict) -> str:
    low, high = score["interval"]
    return f"{score['value']:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Measure, print, and write the report where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", help="file to write the report to, too")
    parser.add_argument("--rounds", type=int, default=7, help="of speed, 0: none (default: %(default)s)")
    parser.add_argument("--probe", metavar="MODEL", help="folder of a pretrained model, to probe")
    parser.add_argument("--data", metavar="SYNTHETIC", help="synthetic corpus that it is probed on")
    parser.add_argument("--layers", type=int, default=3, help="probe so many of the last layers (default: 3)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the chosen probe")
    args = parser.parse_args()
    if (args.probe is None) != (args.data is None):
        parser.error("--probe and --data go together")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        lines = ["# ONNX and 8-bit weights beside torch", ""]
        if args.rounds:
            lines += [*speed(args.rounds, Path(folder)), ""]
        if args.probe:
            lines += [*probed(args.probe, args.data, args.layers, args.seeds, Path(folder)), ""]
    names = ("torch", "onnx", "onnxruntime", "onnxscript", "transformers", "numpy")
    lines += [
        f"- command: `{' '.join(['python benchmarks/export_onnx.py', *map(_shown, sys.argv[1:])])}`",
        f"- machine: {cpu_model()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; load {load:.1f} before "
        f"and {os.getloadavg()[0]:.1f} after: above the number of threads, other work took part of the cores",
        f"- versions: Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in names)}",
    ]
    report = "\n".join(lines) + "\n"
    print(report)
    if args.output:
        Path(args.output).write_text(report, encoding="utf-8")


def _shown(word: str) -> str:
    """An argument without the place where this machine keeps it."""
    return Path(word).name if Path(word).is_absolute() else word


if __name__ == "__main__":
    main()
