"""What an update costs a GPU at least, without one: `python benchmarks/gpu_bytes.py [--rows 47] [--output F.md]`.

The library's own update on CUDA tensors without data (`benchmarks/fake_cuda`): the bytes of its kernels by part, and
the waits. Needs a C++ compiler, and torch with CUDA.
"""

import argparse
import sys
from collections import defaultdict
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import torch
from fake_cuda import missing, run_again
from fake_cuda.counting import Gpu
from pretrain_step import Silent, counted_by_hand

from music2vec_hf.pretraining.arguments import Recipe, load_recipe
from music2vec_hf.pretraining.checkpoints import TrainingState
from music2vec_hf.pretraining.loop import accumulate, optimise
from music2vec_hf.pretraining.starting import prepare_training

BYTES_A_SECOND, OPERATIONS_A_SECOND = 4.0e12, 700e12  # of an H200: what large copies and bf16 products reach


class OneGpu:
    """What the loop asks of accelerate, for one process."""

    device = torch.device("cuda")
    num_processes, process_index = 1, 0

    def no_sync(self, model):
        """There is nobody to wait for."""
        return nullcontext()

    def reduce(self, values: torch.Tensor, how: str) -> torch.Tensor:
        """The sum over one process."""
        return values


def batches(recipe: Recipe, rows: int):
    """Micro-batches without data."""
    views = (recipe.masks_per_crop,) if recipe.masks_per_crop > 1 else ()
    while True:
        yield {
            "input_values": torch.empty(rows, recipe.num_samples),
            "mask_time_indices": torch.zeros(rows, *views, recipe.num_frames, dtype=torch.bool),
        }


def one_update(gpu: Gpu, recipe: Recipe, state: TrainingState, rows: int) -> int:
    """An update of one micro-batch; how many operations its passes took, before those of the optimiser."""
    masked = accumulate(OneGpu(), recipe, state.student, state, batches(recipe, rows), 1, Silent())
    passes = len(gpu.operations)
    optimise(OneGpu(), recipe, state, masked)
    state.step += 1
    return passes


def counted(recipe: Recipe, rows: int) -> tuple[Gpu, int]:
    """The GPU after an update that was not the first, and how many of its operations are those of the passes."""
    with Gpu() as gpu:
        state = prepare_training(recipe, OneGpu(), None)
        for _ in range(2):
            with gpu.count():
                passes = one_update(gpu, recipe, state, rows)
    return gpu, passes


def report(rows: int, precision: str) -> str:
    """Count, and return the table as Markdown."""
    found = {}
    for name in (False, True):
        recipe = load_recipe("crop5s", precision=precision, layerdrop=0.0, compile=name)
        found[name] = counted(recipe, rows)
    masked = int(0.39 * rows * recipe.num_frames)
    operations = sum(counted_by_hand(recipe.model_config(), recipe.num_samples, rows, masked).values())
    lines = [
        f"# Bytes of an update of {rows} crops of 5 s at base size, {precision}",
        "",
        "Counted on CUDA tensors without data; not measured on a GPU.",
        "",
        "| compiled | kernels and calls | waits | GB of the passes | GB of optimiser and average | GB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, (gpu, passes) in found.items():
        sizes = [operation.bytes / 1e9 for operation in gpu.operations]
        lines.append(
            f"| {'yes' if name else 'no'} | {len(sizes)} | {sum(gpu.waits.values())} | {sum(sizes[:passes]):.1f} "
            f"| {sum(sizes[passes:]):.1f} | {sum(sizes):.1f} |"
        )
    gpu, passes = found[True]
    sums = defaultdict(lambda: [0, 0.0])
    for operation in gpu.operations:
        sums[operation.name][0] += 1
        sums[operation.name][1] += operation.bytes / 1e9
    lines += [
        "",
        "The compiled one by operation, from 0.3 GB on:",
        "",
        "| operation | number | GB |",
        "| --- | ---: | ---: |",
    ]
    for name, (number, size) in sorted(sums.items(), key=lambda item: -item[1][1]):
        if size >= 0.3:
            lines.append(f"| {name} | {number} | {size:.2f} |")
    total = sum(operation.bytes for operation in gpu.operations)
    moved, computed = total / BYTES_A_SECOND * 1e3, operations / OPERATIONS_A_SECOND * 1e3
    lines += [
        "",
        f"At {BYTES_A_SECOND / 1e12:.1f} TB/s the bytes take {moved:.1f} ms, at {OPERATIONS_A_SECOND / 1e12:.0f} "
        f"TFLOP/s the {operations / 1e12:.1f} TFLOP {computed:.1f} ms: an update takes at least "
        f"{max(moved, computed):.0f} ms, and {moved + computed:.0f} ms where the two do not overlap, which is "
        f"{computed / (moved + computed):.0%} of the rate of products.",
        "",
        f"- command: `python benchmarks/gpu_bytes.py {' '.join(word for word in sys.argv[1:] if word != '--inside')}`",
        f"- versions: torch {version('torch')}, transformers {version('transformers')}",
    ]
    return "\n".join(lines)


def main() -> None:
    """Read the command line, count, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=47)
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    parser.add_argument("--inside", action="store_true", help="the process sees a GPU already")
    args = parser.parse_args()
    if reason := missing():
        sys.exit(f"benchmarks/gpu_bytes.py: {reason}; nothing was counted.")
    if not args.inside:
        sys.exit(run_again(__file__, [*sys.argv[1:], "--inside"]))
    text = report(args.rows, args.precision)
    print(text)
    if args.output:
        args.output.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
