"""What to do next on this GPU: `python benchmarks/gpu.py [--output FILE.md]`, at most ten minutes.

Times the update of base size on one GPU: precisions, torch.compile, two sizes of a pass; its parts and kernels; the
positional convolution in two ways; and ends with what the numbers say. What there was no time for is named.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from pretrain_step import counted_by_hand, in_turns, make_batch, our_update, parts, product_rate
from torch.profiler import ProfilerActivity, profile

from music2vec_hf.common.computing import float32_products
from music2vec_hf.pretraining.arguments import Recipe, load_recipe

DEVICE = torch.device("cuda")
PEAK = 989e12  # dense bf16 of an H100 or H200; of another GPU give --peak
ENOUGH = 0.35  # of the peak
ROWS = (47, 94)


class Course:
    """The measurements, each of them only while there is time.

    Args:
        limit_s (`float`): no measurement begins later.
        settings (`dict`): of the recipe, beside those that are compared.
        counting: makes a context for a measurement; on a real GPU nothing.
        pairs (`int`): calls of each update that are timed.
        rows (`tuple[int, ...]`): crops of a pass.
    """

    def __init__(
        self,
        limit_s: float = 600.0,
        settings: dict | None = None,
        counting: Callable[[], AbstractContextManager] = nullcontext,
        pairs: int = 5,
        rows: tuple[int, ...] = ROWS,
    ):
        self.ends, self.counting, self.pairs, self.rows = time.monotonic() + limit_s, counting, pairs, rows
        self.settings = settings or {}
        self.left_out: list[str] = []
        self.shares: dict[tuple, float] = {}

    def recipe(self, rows: int, **settings) -> Recipe:
        """One update of so many crops in one pass."""
        sizes = dict.fromkeys(("batch_seconds", "mask_group_seconds", "max_seconds_per_device"), 5.0 * rows)
        return load_recipe("crop5s", layerdrop=0.0, max_steps=100_000, **sizes, **settings, **self.settings)

    def has_time_for(self, what: str) -> bool:
        """Whether there is; else it is noted."""
        if time.monotonic() < self.ends:
            return True
        self.left_out.append(what)
        return False

    def updates(self, peak: float) -> list[str]:
        """A line for each precision, size and torch.compile."""
        lines = ["| precision | compiled | crops | seconds | audio s/s | of the peak |"]
        lines.append("| --- | --- | --: | --: | --: | --: |")
        for precision in ("bf16", "tf32", "fp32"):
            for compiled in (False, True):
                for rows in self.rows:
                    what = f"{precision}{', compiled' if compiled else ''}, {rows} crops"
                    if not self.has_time_for(what):
                        continue
                    seconds, operations = self._update(precision, compiled, rows)
                    share = operations / seconds / peak
                    self.shares[precision, compiled, rows] = share
                    lines.append(
                        f"| {precision} | {'yes' if compiled else 'no'} | {rows} | {seconds:.4f} | "
                        f"{5 * rows / seconds:.0f} | {share:.0%} |"
                    )
        return lines

    def _batch(self, recipe: Recipe) -> dict[str, torch.Tensor]:
        with self.counting():
            return make_batch(recipe)

    def _update(self, precision: str, compiled: bool, rows: int) -> tuple[float, float]:
        recipe = self.recipe(rows, precision=precision, compile=compiled)
        batch = self._batch(recipe)
        with float32_products(precision, "cuda"):
            run, _ = our_update(recipe, DEVICE, batch)
            with self.counting():
                run()  # compiles, and makes the optimiser's state
                seconds = statistics.median(in_turns({"ours": run}, self.pairs, DEVICE)["ours"])
        masked = int(0.39 * batch["mask_time_indices"].numel())
        operations = counted_by_hand(recipe.model_config(), recipe.num_samples, rows, masked)
        return seconds, sum(operations.values())

    def by_part(self) -> dict[str, float]:
        """Seconds of each part of the update alone, forward and backward, in bf16."""
        recipe = self.recipe(self.rows[0], precision="bf16", compile=False)
        batch = self._batch(recipe)
        _, state = our_update(recipe, DEVICE, batch)
        with self.counting():
            times = in_turns(parts(recipe, state, batch, DEVICE), self.pairs, DEVICE)
        return {name: statistics.median(values) for name, values in times.items()}

    def kernels(self, activities: list[ProfilerActivity]) -> list[tuple[str, float]]:
        """The longest kernels of a compiled update in bf16, and their seconds."""
        recipe = self.recipe(self.rows[0], precision="bf16", compile=True)
        run, _ = our_update(recipe, DEVICE, self._batch(recipe))
        with self.counting():
            run()
            with profile(activities=activities) as found:
                run()
        events = sorted(found.key_averages(), key=lambda event: -event.self_device_time_total)
        return [(event.key[:80], event.self_device_time_total / 1e6) for event in events[:15]]

    def positions(self) -> dict[str, float]:
        """Seconds of one layer of the positional convolution, forward and backward, in bf16: as a grouped convolution,
        and as products of its groups."""
        config = self.recipe(self.rows[0]).model_config()
        width, kernel, groups = config.hidden_size, config.conv_pos_kernel_size, config.num_conv_pos_embedding_groups
        with self.counting():
            values = torch.randn(self.rows[0], width, 249, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
            shape = width, width // groups, kernel
            weight = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)

            def grouped() -> None:
                F.conv1d(values, weight, padding=kernel // 2, groups=groups).sum().backward()

            def products() -> None:
                windows = F.pad(values, (kernel // 2, kernel // 2)).unfold(2, kernel, 1).unflatten(1, (groups, -1))
                # [groups, B * T, C / groups * kernel]
                windows = windows.permute(1, 0, 3, 2, 4).flatten(3).flatten(1, 2)
                torch.bmm(windows, weight.unflatten(0, (groups, -1)).flatten(2).mT).sum().backward()

            times = in_turns({"grouped convolution": grouped, "products of windows": products}, self.pairs, DEVICE)
        return {name: statistics.median(found) for name, found in times.items()}


def advice(course: Course, by_part: dict[str, float], positions: dict[str, float]) -> list[str]:
    """What the numbers say, one sentence each."""
    said = []
    best = max(course.shares, key=course.shares.get, default=None)
    if best is not None:
        precision, compiled, rows = best
        said.append(
            f"Train with `--precision {precision} --compile {str(compiled).lower()}` and about "
            f"`--max_seconds_per_device {5 * rows}`: {course.shares[best]:.0%} of the peak."
        )
        if course.shares[best] < ENOUGH:
            longest = max(by_part, key=by_part.get, default=None)
            said.append(
                f"That is less than {ENOUGH:.0%}: begin with the part that takes longest alone ({longest}) and the "
                "first kernels of the table."
            )
    gains = [
        course.shares[precision, True, rows] / share
        for (precision, compiled, rows), share in course.shares.items()
        if not compiled and course.shares.get((precision, True, rows)) and share
    ]
    if gains:
        gain = statistics.median(gains)
        said.append(f"torch.compile is {gain:.2f} times as fast{'' if gain > 1 else ': look why before it stays on'}.")
    if positions:
        fast = min(positions, key=positions.get)
        said.append(f"Of the positional convolution {fast} is the faster form; the library has the grouped one.")
    said += [f"Not measured, for lack of time: {what}." for what in course.left_out]
    return said


def report(course: Course, peak: float, activities: list[ProfilerActivity]) -> str:
    """The whole course, and its page as Markdown."""
    lines = [f"# One update on {torch.cuda.get_device_name()}", "", *course.updates(peak), ""]
    by_part = course.by_part() if course.has_time_for("the parts") else {}
    lines += ["| part, alone, bf16, not compiled | seconds |", "| --- | --: |"]
    lines += [f"| {name} | {seconds:.4f} |" for name, seconds in by_part.items()]
    kernels = course.kernels(activities) if course.has_time_for("the kernels") else []
    lines += ["", "| kernel of a compiled update, bf16 | seconds |", "| --- | --: |"]
    lines += [f"| `{name}` | {seconds:.4f} |" for name, seconds in kernels]
    positions = course.positions() if course.has_time_for("the positional convolution") else {}
    lines += ["", "| positional convolution, one layer, bf16 | seconds |", "| --- | --: |"]
    lines += [f"| {name} | {seconds:.5f} |" for name, seconds in positions.items()]
    with course.counting():
        rate = product_rate("bf16", DEVICE)
    lines += ["", f"A bare product in bf16 reaches {rate / 1e12:.0f} TFLOP/s.", "", "## What to do next", ""]
    lines += [f"- {sentence}" for sentence in advice(course, by_part, positions)]
    command = f"python benchmarks/gpu.py {' '.join(sys.argv[1:])}".strip()
    versions = f"torch {version('torch')}, transformers {version('transformers')}"
    lines += ["", f"- command: `{command}`", f"- versions: {versions}"]
    return "\n".join(lines)


def main() -> None:
    """Read the command line, measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds after which no measurement begins")
    parser.add_argument("--peak", type=float, default=PEAK, help="the GPU's dense bf16 operations a second")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    args = parser.parse_args()
    text = report(Course(args.limit), args.peak, [ProfilerActivity.CPU, ProfilerActivity.CUDA])
    print(text)
    if args.output:
        args.output.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
