"""How many crops of 5 s a GPU holds: `python benchmarks/memory.py [--device cuda] [--output FILE.md]`.

The most memory of an update at base size, not compiled, for several numbers of crops: its slope is what a crop takes,
the rest is fixed. On a GPU it is measured. Without one it is computed: the same update runs on CUDA tensors without
data (`benchmarks/fake_cuda`), and what is alive is added up.
"""

import argparse
import platform
import sys
import weakref
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from fake_cuda import missing, run_again
from fake_cuda.counting import MASKED_SHARE, Gpu
from gpu_bytes import OneGpu
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from music2vec_hf.common.computing import autocast
from music2vec_hf.pretraining.arguments import Recipe, load_recipe
from music2vec_hf.pretraining.checkpoints import TrainingState
from music2vec_hf.pretraining.starting import prepare_training

CARDS_GB = (24, 40, 80, 141)
REFERENCE_ROWS, FREE = 47, 0.1  # the reference's pass of 237.5 s; share of a card that is left free
CASES = [(precision, masks, again) for precision in ("bf16", "fp32") for masks in (1, 4) for again in (False, True)]


class LiveBytes(TorchDispatchMode):
    """Adds up the memory of all tensors while they are alive; `peak` is the most so far."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Do it, and take in the memory that it made."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.alive:
                    self.alive[key] = weakref.finalize(storage, self.free, key, size)
                    self.now += size
        self.peak = max(self.peak, self.now)
        return result

    def free(self, key: int, size: int) -> None:
        """A tensor's memory is given back."""
        del self.alive[key]
        self.now -= size


def update(recipe: Recipe, state: TrainingState, rows: int, held: Callable[[], int]) -> int:
    """Two micro-batches of `rows` crops each, beside what Adam keeps; its step itself takes less than they do.

    Returns what is `held` between the forward and the backward pass.
    """
    reserved = [torch.empty_like(parameter) for parameter in state.student.parameters() for _ in range(2)]
    for _ in range(2):
        input_values = torch.randn(rows, recipe.num_samples, device="cuda")
        masks = torch.zeros(rows, recipe.masks_per_crop, recipe.num_frames, dtype=torch.bool, device="cuda")
        masks[..., : int(MASKED_SHARE * recipe.num_frames)] = True
        with autocast(recipe.precision, "cuda"):
            loss = state.student(input_values, None, masks, state.teacher).loss
        between = held()
        loss.backward()
    state.student.zero_grad()
    del reserved
    return between


def computed(recipe: Recipe, several_rows: list[int]) -> tuple[float, list[tuple[int, int]]]:
    """Bytes of the weights, and for each number of crops those that are alive at the worst moment of an update and
    between the passes, beside the weights; on CUDA tensors without data."""
    found = []
    with Gpu() as gpu:
        state = prepare_training(recipe, OneGpu(), None)
        for rows in several_rows:
            with gpu.count(), LiveBytes() as live:
                between = update(recipe, state, rows, lambda live=live: live.now)
            found.append((live.peak, between))
    return weights_of(state), found


def measured(recipe: Recipe, several_rows: list[int]) -> tuple[float, list[tuple[int, int]]]:
    """The same, of CUDA's allocator."""
    state, found = prepare_training(recipe, OneGpu(), None), []
    for rows in several_rows:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        between = update(recipe, state, rows, torch.cuda.memory_allocated)
        found.append((torch.cuda.max_memory_allocated() - before, between - before))
    return weights_of(state), found


def weights_of(state: TrainingState) -> int:
    """Bytes of student and teacher."""
    return sum(weight.nbytes for module in (state.student, state.teacher.encoder) for weight in module.parameters())


def of_a_crop(recipe: Recipe, device: str, several_rows: list[int]) -> tuple[float, float, float, float]:
    """Bytes that a crop keeps for the backward pass and takes at the worst moment, fixed bytes (weights included), and
    by how much the line misses the peaks, as a share."""
    weights, found = (measured if device == "cuda" else computed)(recipe, several_rows)
    peaks, between = weights + np.array(found, dtype=float).T
    slope, fixed = np.polyfit(several_rows, peaks, 1)
    return (
        np.polyfit(several_rows, between, 1)[0],
        slope,
        fixed,
        float(np.abs(np.polyval([slope, fixed], several_rows) / peaks - 1).max()),
    )


def report(device: str, several_rows: list[int]) -> str:
    """Take all cases, and return the table as Markdown."""
    cards = " | ".join(f"{size} GB" for size in CARDS_GB)
    lines = [
        "# Memory of an update at base size, crops of 5 s",
        "",
        "| precision | masks a crop | recomputing | kept, MB a crop | peak, MB a crop | fixed, GB "
        f"| {cards} | 47 crops, GB |",
        f"| --- | ---: | --- | ---: | ---: | ---: |{' ---: |' * len(CARDS_GB)} ---: |",
    ]
    misses, needed = [], {}
    for precision, masks, again in CASES:
        recipe = load_recipe(
            "crop5s",
            precision=precision,
            masks_per_crop=masks,
            gradient_checkpointing=again,
            layerdrop=0.0,
            compile=False,
        )
        kept, slope, fixed, missed = of_a_crop(recipe, device, several_rows)
        misses.append(missed)
        needed[precision, masks, again] = (fixed + REFERENCE_ROWS * slope) / 1e9
        fitting = [int(((1 - FREE) * size * 1e9 - fixed) / slope) for size in CARDS_GB]
        lines.append(
            f"| {precision} | {masks} | {'yes' if again else 'no'} | {kept / 1e6:.0f} | {slope / 1e6:.0f} "
            f"| {fixed / 1e9:.2f} | {' | '.join(map(str, fitting))} | {needed[precision, masks, again]:.1f} |"
        )
        print(lines[-1], file=sys.stderr)
    kept, again = (needed["bf16", 1, again] for again in (False, True))
    lines += [
        "",
        f"The reference's pass of {REFERENCE_ROWS} crops (237.5 s) in bf16 takes {kept:.1f} GB, and {again:.1f} GB "
        f"with recomputing. Of a card of {CARDS_GB[0]} GB, {(1 - FREE) * CARDS_GB[0]:.1f} GB are used here at most.",
    ]
    return "\n".join([*lines, "", *notes(device, several_rows, max(misses))])


def notes(device: str, several_rows: list[int], missed: float) -> list[str]:
    """How the table was made, and on what."""
    how = (
        f"Measured: what CUDA's allocator held on {torch.cuda.get_device_name()}."
        if device == "cuda"
        else "Computed, not measured on a GPU: the update ran on CUDA tensors without data, and all that was alive "
        "was added up."
    )
    return [
        f"The columns of cards are the most crops in one pass with {FREE:.0%} of the card left free for what is not "
        "counted: the CUDA context, workspaces of kernels, the allocator's rounding, and gradient buckets (0.4 GB) "
        "where there are several processes. A crop with all its masks counts as one. Kept is what waits for the "
        "backward pass. The peak comes in that pass: where gradients of the last layers meet all that is kept or, "
        "with recomputing, where the front end's first layers are computed again.",
        "",
        f"{how} Fixed: weights, gradients, Adam's two moments, the teacher, and autocast's copies of the weights. "
        f"Lines through updates of {', '.join(map(str, several_rows))} crops in each of two micro-batches, which they "
        f"miss by {missed:.1%} at most. No layer is dropped, {MASKED_SHARE:.0%} of the frames are masked.",
        "",
        f"- command: `python benchmarks/memory.py {' '.join(word for word in sys.argv[1:] if word != '--inside')}`",
        f"- versions: Python {platform.python_version()}, torch {version('torch')}, transformers "
        f"{version('transformers')}",
    ]


def main() -> None:
    """Read the command line, take the table, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="none", choices=("none", "cuda"), help="none: computed without a GPU")
    parser.add_argument("--rows", type=int, nargs="+", default=[4, 8, 16], help="crops, three or more numbers of them")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    parser.add_argument("--inside", action="store_true", help="the process sees a GPU that is not there")
    args = parser.parse_args()
    if args.device == "none" and not args.inside:
        if reason := missing():
            sys.exit(f"benchmarks/memory.py: {reason}; nothing was counted.")
        sys.exit(run_again(__file__, [*sys.argv[1:], "--inside"]))
    text = report(args.device, args.rows)
    print(text)
    if args.output:
        args.output.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
