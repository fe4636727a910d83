"""What several devices gain: `python benchmarks/scaling.py [--output FILE.md]`.

Measured: an update on one process of the CPU and on two with gloo, one thread and the same crops each, in turns. And
arithmetic, not measured: the update of `crop5s` on 1, 8 and 2 x 8 GPUs, from its operations and the gradient's bytes.
"""

import argparse
import itertools
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from data import cpu_model
from pretrain_step import SIZES, Silent, counted_by_hand, make_batch

from music2vec_hf import Music2VecForPreTraining
from music2vec_hf.pretraining.arguments import load_recipe
from music2vec_hf.pretraining.loop import accumulate, optimise
from music2vec_hf.pretraining.starting import count_micro_steps, make_accelerator, prepare_training

# Dense bf16 of an H100 or H200, and the share of it that is left where bytes and products do not overlap: computed by
# benchmarks/gpu_bytes.py, not measured.
PEAK, REACHED = 989e12, 0.37
NVLINK = 450e9  # bytes a second each way, nominal
NETWORKS_GBIT = (400, 100, 25)  # of a host, each way
MICRO_STEPS = (1, 2)


def work(size: str, rows: int) -> None:
    """A process of the measurement: an update for each line on the standard input, which says its micro-batches."""
    recipe = load_recipe(
        "crop5s",
        batch_seconds=5.0 * rows,
        mask_group_seconds=5.0 * rows,
        precision="fp32",
        layerdrop=0.0,
        **SIZES[size],
    )
    accelerator = make_accelerator(recipe, Path())
    state = prepare_training(recipe, accelerator, None)
    model, batches = accelerator.prepare_model(state.student), itertools.repeat(make_batch(recipe))
    for line in sys.stdin:
        started = time.perf_counter()
        masked = accumulate(accelerator, recipe, model, state, batches, int(line), Silent())
        optimise(accelerator, recipe, state, masked)
        state.step += 1
        print(time.perf_counter() - started, flush=True)


def start(processes: int, size: str, rows: int) -> list[subprocess.Popen]:
    """Start `processes` that train together."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    if processes > 1:
        environment |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, __file__, "--work", "--size", size, "--rows", str(rows)]
    return [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else environment,
        )
        for rank in range(processes)
    ]


def seconds_of(workers: list[subprocess.Popen], micro_steps: int) -> float:
    """Seconds of an update of these processes at the same time: of the slowest."""
    for worker in workers:
        worker.stdin.write(f"{micro_steps}\n")
        worker.stdin.flush()
    return max(float(worker.stdout.readline()) for worker in workers)


def measure(size: str, rows: int, pairs: int) -> dict[int, dict[str, list[float]]]:
    """Micro-batches to seconds of each update by group, in turns, after one round that is not counted."""
    alone, beside, together = start(1, size, rows), start(1, size, rows), start(2, size, rows)
    groups = {"one": alone, "apart": alone + beside, "together": together}
    taken = {micro_steps: {name: [] for name in groups} for micro_steps in MICRO_STEPS}
    try:
        for number, micro_steps in itertools.product(range(pairs + 1), MICRO_STEPS):
            for name, workers in groups.items():
                seconds = seconds_of(workers, micro_steps)
                if number > 0:
                    taken[micro_steps][name].append(seconds)
    finally:
        for worker in alone + beside + together:
            worker.stdin.close()
            worker.wait()
    return taken


def measured_part(args) -> list[str]:
    """Measure, and return the table."""
    load, taken = os.getloadavg()[0], measure(args.size, args.rows, args.pairs)
    lines = [
        "## Measured: two processes on this CPU",
        "",
        "| micro-batches | one process, s | two that do not talk, s | two that train together, s "
        "| efficiency | of it, sharing the machine | of it, exchanging gradients |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for micro_steps, times in taken.items():
        rounds = list(zip(*times.values(), strict=True))
        ratios = ([one / both for one, _, both in rounds], [one / apart for one, apart, _ in rounds])
        shares = map(statistics.median, (*ratios, [apart / both for _, apart, both in rounds]))
        medians = [f"{statistics.median(values):.2f}" for values in times.values()]
        lines.append(f"| {micro_steps} | {' | '.join(medians)} | {' | '.join(f'{share:.0%}' for share in shares)} |")
    return [
        *lines,
        "",
        f"{args.size} size, {args.rows} crops of 5 s in each micro-batch of each process (weak scaling), float32, one "
        f"thread a process, gloo. Medians of {args.pairs} rounds in turns; shares are medians of the ratios within a "
        f"round. {cpu_model()}, {os.cpu_count()} cores; load average {load:.1f} before: other programs ran too.",
        "",
    ]


def modelled_part() -> list[str]:
    """The table of GPUs, from operations and bytes."""
    recipe = load_recipe("crop5s")
    with torch.device("meta"):
        parameters = sum(p.numel() for p in Music2VecForPreTraining(recipe.model_config()).parameters())
    rows, masked = recipe.rows_per_update, int(0.39 * recipe.rows_per_update * recipe.num_frames)
    flops = counted_by_hand(recipe.model_config(), recipe.num_samples, rows, masked)
    total = sum(flops.values())
    # The student's backward pass is two of the four passes of a layer, and two of the three of all else.
    layered = sum(flops[name] for name in ("attention", "feed-forward", "positional convolution"))
    backward = layered / 2 + (total - layered) * 2 / 3
    lines = [
        "## Arithmetic, not measured: `crop5s` on GPUs",
        "",
        "| GPUs | slowest link | gradients | micro-batches | computing, ms | exchanging, ms "
        "| efficiency, not overlapped | efficiency, overlapped |",
        "| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    links = [(1, "none", None), (8, "NVLink", NVLINK)]
    links += [(16, f"{gbit} Gb/s a host", gbit * 1e9 / 8) for gbit in NETWORKS_GBIT]
    for (gpus, name, speed), size in itertools.product(links, (4, 2)):
        if speed is None and size == 2:
            continue
        micro_steps = count_micro_steps(recipe, gpus, recipe.max_seconds_per_device)
        compute = total / gpus / (REACHED * PEAK)
        exchange = 2 * (gpus - 1) / gpus * size * parameters / speed if speed else 0.0
        hidden = backward / total * compute / micro_steps
        lines.append(
            f"| {gpus if gpus < 16 else '2 x 8'} | {name} | {'float32' if size == 4 else 'bf16'} | {micro_steps} "
            f"| {1000 * compute:.1f} | {1000 * exchange:.1f} | {compute / (compute + exchange):.0%} "
            f"| {compute / (compute + max(0.0, exchange - hidden)):.0%} |"
        )
    sent, compute = 2 * 15 / 16 * 4 * parameters, total / 16 / (REACHED * PEAK)
    needed = [8e-9 * sent / seconds for seconds in (compute / 9, backward / total * compute)]
    return [*lines, "", *assumptions(total, parameters, needed)]


def assumptions(total: float, parameters: int, needed: list[float]) -> list[str]:
    """What the arithmetic rests on, and what follows; `needed` is Gb/s of a host of two, unhidden and hidden."""
    traffic = 48 * parameters / 4.8e12
    return [
        f"An update of 752 crops is {total / 1e12:.0f} TFLOP counted by hand, taken at {REACHED:.0%} of "
        f"{PEAK / 1e12:.0f} TFLOP/s. The gradient of {parameters / 1e6:.1f} M parameters is exchanged once an update "
        "(micro-batches before the last do not synchronise) in a ring, 2 (n - 1) / n of its bytes over the slowest "
        "link at its nominal speed. Not overlapped is the worst case; overlapped, all of the last micro-batch's "
        "backward pass hides it, the best case. Latencies and the start of the last bucket are left out, and so is "
        "what every GPU does alone: Adam and the teacher's average move about 48 bytes a parameter, "
        f"{1000 * traffic:.1f} ms at 4.8 TB/s.",
        "",
        f"Where it starts to hurt: two hosts keep 90 % without any overlap from {needed[0]:.0f} Gb/s on, and can hide "
        f"all of the exchange from {needed[1]:.0f} Gb/s on. Within a host it does not hurt.",
        "",
        "What helps, in this order:",
        "",
        "- `--gradient_compression bf16` (accelerate's `DistributedDataParallelKwargs(comm_hook=...)`) halves the "
        "bytes.",
        "- `--max_seconds_per_device auto`: at the same batch, fewer and larger micro-batches leave a longer last "
        "backward pass to hide in; they do not change the bytes.",
        "- A larger `batch_seconds` computes longer for the same bytes, and is another recipe.",
        "",
    ]


def main() -> None:
    """Read the command line, measure, calculate, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="base", choices=tuple(SIZES))
    parser.add_argument("--rows", type=int, default=1, help="crops of 5 s in a micro-batch (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(args.size, args.rows)
    lines = ["# Scaling over processes and GPUs", "", *measured_part(args), *modelled_part()]
    lines += [
        f"- command: `python benchmarks/scaling.py {' '.join(sys.argv[1:])}`",
        f"- versions: Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "accelerate")),
    ]
    text = "\n".join(lines)
    print(text)
    if args.output:
        args.output.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
