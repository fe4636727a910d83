"""Does bf16 learn as float32 does? `python benchmarks/loss_curves.py [--device cuda] [--output F.md]`

Pretrains a small model on synthetic music for some hundred steps: in float32 from several seeds, whose spread is the
noise, and in bf16 autocast from the same seeds. Curves are means of ten steps.
"""

import argparse
import json
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from music2vec_hf.corpus.prepare import prepare_corpus
from music2vec_hf.pretraining.arguments import load_recipe
from music2vec_hf.pretraining.loop import pretrain
from music2vec_hf.synthetic.generator import synthesize_corpus

SMALL = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 3, "average_top_k_layers": 2}


def loss_curve(corpus: Path, output: Path, seed: int, precision: str, steps: int, crops: int) -> np.ndarray:
    """Loss of every tenth of `steps`, mean of ten steps each."""
    recipe = load_recipe(
        "tiny",
        seed=seed,
        precision=precision,
        max_steps=steps,
        log_every=1,
        save_every=steps,
        batch_seconds=4.8 * crops,
        mask_group_seconds=4.8 * crops,
        conv_dim=[48] * 7,
        **SMALL,
    )
    pretrain(recipe, corpus, output)
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return np.array([record["loss"] for record in records]).reshape(-1, 10).mean(1)


def compare(exact: np.ndarray, fast: np.ndarray) -> str:
    """Curves `[seeds, points]` as a table, and the difference of precisions beside that of seeds."""
    lines = [
        "| steps | float32, mean of seeds | bf16, mean of seeds | spread of seeds |",
        "| --- | ---: | ---: | ---: |",
    ]
    for point in range(0, exact.shape[1], max(1, exact.shape[1] // 10)):
        lines.append(
            f"| {10 * point + 1} to {10 * point + 10} | {exact[:, point].mean():.4f} | {fast[:, point].mean():.4f} | "
            f"{exact[:, point].std(ddof=1):.4f} |"
        )
    noise = np.abs(exact - exact.mean(0)).mean() * (len(exact) / (len(exact) - 1)) ** 0.5
    lines += [
        "",
        f"Mean distance of bf16 from float32 of the same seed: {np.abs(fast - exact).mean():.4f}; of a float32 run "
        f"from the mean of float32 runs: {noise:.4f}; mean signed difference of bf16: {(fast - exact).mean():+.4f}.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Read the command line, train, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="a multiple of ten (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--crops", type=int, default=5, help="crops of 4.8 s in an update (default: %(default)s)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--output", help="Markdown file to write")
    args = parser.parse_args()
    os.environ["ACCELERATE_USE_CPU"] = str(args.device == "cpu")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        synthesize_corpus(root / "synthetic", 200, 0)
        prepare_corpus(root / "synthetic" / "audio" / "train", root / "corpus")
        curves = {
            precision: np.stack(
                [
                    loss_curve(root / "corpus", root / f"{precision}-{seed}", seed, precision, args.steps, args.crops)
                    for seed in range(1, args.seeds + 1)
                ]
            )
            for precision in ("fp32", "bf16")
        }
    device = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    text = (
        f"{args.steps} steps of {args.crops} crops, {args.seeds} seeds, {SMALL}, {device}, {platform.system()}, "
        f"torch {version('torch')}\n\n{compare(curves['fp32'], curves['bf16'])}"
    )
    print(text)
    if args.output:
        Path(args.output).write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
