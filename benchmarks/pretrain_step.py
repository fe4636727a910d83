"""What one pretraining update costs: `python benchmarks/pretrain_step.py [--device cuda] [--output FILE.md]`.

Ours and the same objective written in the plainest way on transformers' Data2VecAudio take turns, update by update, in
one process, on the same crops and masks; numbers are medians, the speed-up is the median of the ratios of neighbours.
"""

import argparse
import copy
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode
from transformers import Data2VecAudioConfig, Data2VecAudioModel

from music2vec_hf import Music2VecConfig, sample_mask_group
from music2vec_hf.common.computing import autocast, choose_precision
from music2vec_hf.pretraining.arguments import load_recipe
from music2vec_hf.pretraining.loop import accumulate, optimise
from music2vec_hf.pretraining.starting import prepare_training

SIZES = {
    "base": {},
    "small": {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
        "conv_dim": [256] * 7,
        "average_top_k_layers": 3,
    },
}

DROPOUTS = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout")


class Silent:
    """The monitor of the loop on a step that is not logged."""

    def wait_for(self, stream):
        """The next batch."""
        return next(stream)

    def add(self, output, mask_time_indices, num_masked):
        """Nothing is taken in."""


def our_update(recipe, device: torch.device, batch: dict) -> tuple[Callable[[], None], object]:
    """`run()` is one update by the library's own loop, without data and logging; and the training state."""
    accelerator = Accelerator(cpu=device.type == "cpu")
    state = prepare_training(recipe, accelerator, None)

    def stream():
        while True:
            yield batch

    batches = stream()

    def run() -> None:
        masked = accumulate(accelerator, recipe, state.student, state, batches, 1, Silent())
        optimise(accelerator, recipe, state, masked)
        state.step += 1

    return run, state


def plain_update(recipe, device: torch.device, batch: dict) -> Callable[[], None]:
    """The same update on transformers' modules: hooks for the targets, a loop over parameters for the teacher."""
    config = recipe.model_config()
    known = Data2VecAudioConfig().to_dict()
    fields = {key: value for key, value in config.to_dict().items() if key in known and key != "model_type"}
    fields.pop("architectures", None)
    model = Data2VecAudioModel(Data2VecAudioConfig(**fields)).to(device).train()
    head = torch.nn.Linear(config.hidden_size, config.hidden_size).to(device)
    teacher = copy.deepcopy(model.encoder).eval().requires_grad_(False)
    results = []
    for layer in teacher.layers[-config.average_top_k_layers :]:
        layer.feed_forward.register_forward_hook(lambda module, inputs, output: results.append(output))
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, recipe.learning_rate, recipe.adam_betas, 1e-6, weight_decay=0.01)
    input_values, mask = (batch[name].to(device) for name in ("input_values", "mask_time_indices"))

    def run() -> None:
        with autocast(recipe.precision, device.type):
            features = model.feature_extractor(input_values).transpose(1, 2)
            hidden_states, _ = model.feature_projection(features)
            with torch.no_grad():
                results.clear()
                teacher(hidden_states.clone())
                layers = [F.instance_norm(result.float().transpose(1, 2)).transpose(1, 2) for result in results]
                targets = torch.stack(layers).mean(0)
            student = hidden_states.clone()
            student[mask] = model.masked_spec_embed.to(student.dtype)
            predictions = head(model.encoder(student).last_hidden_state)
        loss = ((predictions.float() - targets)[mask] ** 2).sum() / config.hidden_size**0.5 / mask.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for ours, theirs in zip(teacher.parameters(), model.encoder.parameters(), strict=True):
                ours.mul_(0.999).add_(theirs, alpha=0.001)

    return run


def counted_by_hand(
    config: Music2VecConfig, num_samples: int, rows: int, masked: int, views: int = 1
) -> dict[str, float]:
    """Floating-point operations of one update by part: two per multiplication and addition of the matrix products.

    A product costs twice as much backward as forward; the front end's first layer needs no gradient of its input. The
    teacher runs forward only, once for all `views` (masks) of a crop. Norms, activations and sums are not counted.
    """
    frames, front, width = num_samples, [], 1
    for size, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True):
        frames = (frames - kernel) // stride + 1
        front.append(2.0 * frames * kernel * width * size)
        width = size
    c, inner, t = config.hidden_size, config.intermediate_size, frames
    position = 2.0 * t * config.conv_pos_kernel_size * c * c / config.num_conv_pos_embedding_groups
    position *= config.num_conv_pos_embeddings
    attention = config.num_hidden_layers * (4 * 2.0 * t * c * c + 2 * 2.0 * t * t * c)
    feed_forward = config.num_hidden_layers * 2 * 2.0 * t * c * inner
    return {
        "front end": rows * (3 * sum(front) - front[0]),
        "projection": rows * 3 * 2.0 * t * width * c,
        "positional convolution": rows * (1 + 3 * views) * position,
        "attention": rows * (1 + 3 * views) * attention,
        "feed-forward": rows * (1 + 3 * views) * feed_forward,
        "prediction head": 3 * 2.0 * masked * c * c,
    }


def timed(run: Callable[[], None], device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turns(runs: dict[str, Callable[[], None]], pairs: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each call, after one that is not counted."""
    for run in runs.values():
        run()
    times = {name: [] for name in runs}
    for _ in range(pairs):
        for name, run in runs.items():
            times[name].append(timed(run, device))
    return times


def parts(recipe, state, batch: dict, device: torch.device) -> dict[str, Callable[[], None]]:
    """Calls that do one part of the update alone, forward and backward, on inputs of the update's shapes."""
    model, teacher, config = state.student.data2vec_audio, state.teacher, state.student.config
    input_values, mask = (batch[name].to(device) for name in ("input_values", "mask_time_indices"))
    rows, frames = mask.shape
    hidden = torch.randn(rows, frames, config.hidden_size, device=device)
    raw = torch.randn(rows, frames, config.conv_dim[-1], device=device)
    layers = model.encoder.layers

    def both(function: Callable, values: torch.Tensor) -> Callable[[], None]:
        def run() -> None:
            leaf = values.clone().requires_grad_(values is not input_values)
            with autocast(recipe.precision, device.type):
                result = function(leaf)
            result.backward(torch.ones_like(result))

        return run

    def attention(values):
        for layer in layers:
            values = layer.layer_norm(values + layer.dropout(layer.attention(values)[0]))
        return values

    def feed_forward(values):
        for layer in layers:
            values = layer.final_layer_norm(values + layer.feed_forward(values))
        return values

    def predict(values):
        return (state.student.final_proj(values[mask]).float() ** 2).sum()

    def targets() -> None:
        with autocast(recipe.precision, device.type):
            teacher.targets(hidden)

    def optimizer() -> None:
        for parameter in state.student.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.grad is None else parameter.grad
        state.optimizer.step()

    return {
        "front end": both(model.feature_extractor, input_values),
        "projection": both(lambda values: model.feature_projection(values)[0], raw),
        "positional convolution": both(model.encoder.pos_conv_embed, hidden),
        "attention": both(attention, hidden),
        "feed-forward": both(feed_forward, hidden),
        "prediction head, loss": both(predict, hidden),
        "teacher and targets": targets,
        "optimiser": optimizer,
        "teacher's average": lambda: teacher.update(state.student, 1),
    }


def product_rate(precision: str, device: torch.device) -> float:
    """Floating-point operations per second of a bare matrix product of a feed-forward layer's size."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
        choose_precision(precision, device.type)
    ]
    size = (498, 768, 3072) if device.type == "cpu" else (16384, 4096, 4096)
    left = torch.randn(size[0], size[1], device=device, dtype=dtype)
    right = torch.randn(size[1], size[2], device=device, dtype=dtype)
    times = in_turns({"product": lambda: [left @ right for _ in range(20)]}, 9, device)["product"]
    return 20 * 2.0 * size[0] * size[1] * size[2] / statistics.median(times)


def make_batch(recipe) -> dict[str, torch.Tensor]:
    """Noise and its masks."""
    rngs = [np.random.default_rng(row) for row in range(recipe.rows_per_update)]
    masks = sample_mask_group(recipe.num_frames, recipe.mask_time_prob, recipe.mask_time_length, rngs)
    noise = np.stack([rng.standard_normal(recipe.num_samples) for rng in rngs]).astype(np.float32)
    return {"input_values": torch.from_numpy(noise), "mask_time_indices": torch.from_numpy(masks)}


def peak_gib(device: torch.device) -> float:
    """Most memory so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def peak_alone(name: str, recipe, device: torch.device, batch: dict) -> float:
    """Most memory, in GiB, of a process that does nothing but two of these updates."""
    run = our_update(recipe, device, batch)[0] if name == "ours" else plain_update(recipe, device, batch)
    run()
    run()
    return peak_gib(device)


def report(args) -> str:
    """Measure, and return the table as Markdown."""
    device = torch.device(args.device)
    recipe = load_recipe(
        "crop5s",
        batch_seconds=5.0 * args.rows,
        mask_group_seconds=5.0 * args.rows,
        precision=args.precision,
        max_steps=100_000,
        layerdrop=0.0,  # it makes updates cost differently by chance
        compile=args.compile,
        **(dict.fromkeys(DROPOUTS, 0.0) if args.no_dropout else {}),
        **SIZES[args.size],
    )
    config = recipe.model_config()
    batch = make_batch(recipe)
    peaks = {}
    for name in ("ours", "plain"):  # first: a process counts what its parent held when it was started
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            peaks[name] = process.submit(peak_alone, name, recipe, device, batch).result()
    ours, state = our_update(recipe, device, batch)
    plain = plain_update(recipe, device, batch)
    masked = int(batch["mask_time_indices"].sum())
    flops = counted_by_hand(config, recipe.num_samples, args.rows, masked)
    with FlopCounterMode(display=False) as counter:
        plain()
    times = in_turns({"ours": ours, "plain": plain}, args.pairs, device)
    by_part = in_turns(parts(recipe, state, batch, device), max(3, args.pairs // 2), device)
    rate = product_rate(args.precision, device)
    precision, total = choose_precision(args.precision, device.type), sum(flops.values())
    ratios = [slow / fast for slow, fast in zip(times["plain"], times["ours"], strict=True)]
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads, CPU"
    lines = [
        f"{args.size}, {args.rows} crops of 5 s an update, {precision}{', ours compiled' if args.compile else ''}"
        f"{', without dropout' if args.no_dropout else ''}, "
        f"{name}, {platform.system()}, "
        f"torch {version('torch')}, transformers {version('transformers')}",
        "",
        f"Counted by hand {total / 1e12:.3f} TFLOP an update (torch's counter on the plain version: "
        f"{counter.get_total_flops() / 1e12:.3f}); bare product {rate / 1e9:.0f} GFLOP/s; load average "
        f"{os.getloadavg()[0]:.1f}.",
        "",
        "| update | seconds | audio s/s | GFLOP/s | of the bare product | peak GiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, values in times.items():
        seconds = statistics.median(values)
        lines.append(
            f"| {name} | {seconds:.3f} | {5 * args.rows / seconds:.2f} | {total / seconds / 1e9:.0f} | "
            f"{total / seconds / rate:.0%} | {peaks[name]:.1f} |"
        )
    low, high = min(ratios), max(ratios)
    lines += [
        "",
        f"Ours is {statistics.median(ratios):.2f} times as fast (of {len(ratios)} pairs: {low:.2f} to {high:.2f}).",
        "",
        "| part, alone | seconds | share |",
        "| --- | ---: | ---: |",
    ]
    medians = {name: statistics.median(values) for name, values in by_part.items()}
    lines += [f"| {name} | {value:.3f} | {value / sum(medians.values()):.0%} |" for name, value in medians.items()]
    lines.append(f"| sum | {sum(medians.values()):.3f} | |")
    return "\n".join(lines)


def main() -> None:
    """Read the command line, measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16", "auto"))
    parser.add_argument("--size", default="base", choices=tuple(SIZES))
    parser.add_argument("--rows", type=int, default=2, help="crops of 5 s in an update (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="ours with torch.compile")
    parser.add_argument("--no-dropout", action="store_true", help="of any kind: what is left is not our cheap dropout")
    parser.add_argument("--output", help="Markdown file to write")
    args = parser.parse_args()
    torch.manual_seed(0)
    text = report(args)
    print(text)
    if args.output:
        Path(args.output).write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
