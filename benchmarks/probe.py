"""How fast the grid of `jukemir` trains: `python benchmarks/probe.py [--device cuda] [--output FILE.md]`.

All 216 settings on a task of GTZAN's size, for a fixed number of steps each: together (`train_probes`), and one after
another the plain PyTorch way, in turn, round by round, in one process. Beside them the bare matrix products. Also what
the search `quick` costs. On a CPU the time is processor time: other work on the machine disturbs it less than it
disturbs the clock. `OMP_NUM_THREADS` sets the number of threads; processor time counts their waiting for each other,
too, so one thread is the fairest comparison.
"""

import argparse
import copy
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import torch
from torch import nn

from music2vec_hf.probing.probes import PROBE_KINDS, ProbeData, ProbeJob, ProbeSettings, get_search
from music2vec_hf.probing.training import train_probes

NUM_TRAIN, NUM_VALIDATION, NUM_FEATURES, NUM_CLASSES = 443, 197, 768, 10
JUKEMIR, QUICK = get_search("jukemir"), get_search("quick")
FEWEST_STEPS = JUKEMIR.eval_every * JUKEMIR.patience  # of a setting that never gets better


def synthesise() -> ProbeData:
    """Ten classes that overlap, in features as uneven as those of a transformer layer."""
    rng = np.random.default_rng(0)
    means, scales = rng.standard_normal((NUM_CLASSES, NUM_FEATURES)), rng.uniform(0.05, 1.5, NUM_FEATURES)
    classes = rng.integers(0, NUM_CLASSES, NUM_TRAIN + NUM_VALIDATION)
    features = rng.standard_normal((len(classes), NUM_FEATURES)) + 0.12 * means[classes]
    features = (features * scales).astype(np.float32)
    train, validation = np.split(features, [NUM_TRAIN])
    targets = np.split(classes, [NUM_TRAIN])
    kind = "single_label_classification"
    return ProbeData({"6": train}, targets[0], {"6": validation}, targets[1], kind, NUM_CLASSES, "accuracy")


def train_alone(settings: ProbeSettings, data: ProbeData, steps: int, device: str) -> float:
    """One probe as anyone would write it; returns its best validation accuracy."""
    features, validation = data.features["6"], data.validation_features["6"]
    if settings.standardise:
        mean, scale = features.mean(0), features.std(0)
        features, validation = (features - mean) / scale, (validation - mean) / scale
    features, validation = torch.as_tensor(features, device=device), torch.as_tensor(validation, device=device)
    targets = torch.as_tensor(data.targets, device=device)
    references = torch.as_tensor(data.validation_targets, device=device)
    layers = [nn.Dropout(settings.dropout_input)]
    if settings.kind == "mlp":
        layers += [nn.Linear(NUM_FEATURES, settings.hidden_size), nn.ReLU(), nn.Dropout(settings.dropout)]
    layers += [nn.Linear(settings.hidden_size if settings.kind == "mlp" else NUM_FEATURES, NUM_CLASSES)]
    model = nn.Sequential(*layers).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    best, state = -1.0, None
    for step in range(steps + 1):
        if step % JUKEMIR.eval_every == 0:
            model.eval()
            with torch.no_grad():
                accuracy = (model(validation).argmax(1) == references).float().mean().item()
            model.train()
            if accuracy > best:
                best, state = accuracy, copy.deepcopy(model.state_dict())
        rows = torch.randperm(NUM_TRAIN, device=device)[: settings.batch_size]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(features[rows]), targets[rows]).backward()
        optimizer.step()
    model.load_state_dict(state)
    return best


def bare_products(kind: str, batch_size: int, hidden: int, device: str) -> Callable[[], None]:
    """`run()` takes the products of one step of one setting, forward and backward, and nothing else; weights are
    `[outputs, inputs]`, which makes the narrow products faster."""
    sizes = (NUM_FEATURES, hidden, NUM_CLASSES) if kind == "mlp" else (NUM_FEATURES, NUM_CLASSES)
    inputs = [torch.randn(batch_size, size, device=device) for size in sizes]
    weights = [torch.randn(following, size, device=device) for size, following in pairwise(sizes)]

    def run() -> None:
        for index, weight in enumerate(weights):
            inputs[index] @ weight.T
            inputs[index + 1].T @ inputs[index]
            if index > 0:
                inputs[index + 1] @ weight

    return run


def seconds_of(run: Callable[[], object], device: str) -> float:
    """Processor time on a CPU, time by the clock on a GPU."""
    if device == "cpu":
        started = time.process_time()
        run()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(data: ProbeData, steps: int, rounds: int, device: str) -> dict[tuple[str, int], list[tuple]]:
    """Shape to, for each round, seconds of a step of all its settings: one after another, together, bare products."""
    search, taken = replace(JUKEMIR, max_steps=steps), {}
    for _, kind, batch_size in product(range(rounds), PROBE_KINDS, (64, 256)):
        settings = [one for one in JUKEMIR.settings if (one.kind, one.batch_size) == (kind, batch_size)]
        jobs, bare = [ProbeJob("6", one, 0) for one in settings], bare_products(kind, batch_size, 512, device)
        pair = (
            seconds_of(lambda jobs=jobs: train_probes(jobs, data, search, device), device),
            seconds_of(lambda all_=settings: [train_alone(one, data, steps, device) for one in all_], device),
            seconds_of(lambda bare=bare: [bare() for _ in range(100)], device),
        )
        together, alone, products = pair[0] / steps, pair[1] / steps, pair[2] / 100 * len(settings)
        taken.setdefault((kind, batch_size), []).append((alone, together, products))
        print(kind, batch_size, f"{alone:.3f} {together:.3f} {products:.3f} s a step", file=sys.stderr)
    return taken


def table(taken: dict[tuple[str, int], list[tuple]], quick_seconds: float) -> list[str]:
    """Rows of the table, and the price of `quick`."""
    in_sum = [tuple(map(sum, zip(*of_round, strict=True))) for of_round in zip(*taken.values(), strict=True)]
    rows = ["| shape | settings | one after another | together | bare products | times faster | times the products |"]
    rows += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for shape, rounds in (*taken.items(), (("all",), in_sum)):
        count = len(JUKEMIR.settings) // (1 if rounds is in_sum else len(taken))
        cells = [f"{1000 * statistics.median(column) / count:.2f}" for column in zip(*rounds, strict=True)]
        faster = statistics.median(alone / together for alone, together, _ in rounds)
        above = statistics.median(together / products for _, together, products in rounds)
        rows += [f"| {' '.join(map(str, shape))} | {count} | {' | '.join(cells)} | {faster:.1f} | {above:.1f} |"]
    whole = FEWEST_STEPS * statistics.median(together for _, together, _ in in_sum)
    counted = len(JUKEMIR.settings) * FEWEST_STEPS / (len(QUICK.settings) * QUICK.max_steps)
    rows += ["", f"`jukemir`, {FEWEST_STEPS:,} steps of each setting, the fewest possible: {whole:,.0f} s.", ""]
    share = f"1/{whole / quick_seconds:.0f} of that; by settings x steps at most 1/{counted:.0f}"
    rows += [f"`quick`: {quick_seconds:.1f} s, {share}."]
    return rows


def main() -> None:
    """Measure, print, and write the table if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=64, help="steps of each setting (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of measurements (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="write the table here as well")
    arguments = parser.parse_args()
    load, data, device = os.getloadavg()[0], synthesise(), arguments.device
    # First calls load code and pick kernels.
    train_probes([ProbeJob("6", one, 0) for one in QUICK.settings], data, replace(QUICK, max_steps=8), device)
    train_alone(QUICK.settings[-1], data, 8, device)
    taken = measure(data, arguments.steps, arguments.rounds, device)
    jobs = [ProbeJob("6", one, 0) for one in QUICK.settings]
    quick_seconds = statistics.median(
        seconds_of(lambda: train_probes(jobs, data, QUICK, device), device) for _ in range(arguments.rounds)
    )
    on_gpu = device != "cpu"
    machine = (
        torch.cuda.get_device_name()
        if on_gpu
        else f"{cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} of them used"
    )
    lines = [
        f"# Training the 216 probes of `jukemir` on {device}: milliseconds of a step of one setting",
        "",
        *table(taken, quick_seconds),
        "",
        f"Medians of {arguments.rounds} rounds, ratios within a round, of {'clock' if on_gpu else 'processor'} time, "
        f"float32. {NUM_TRAIN} training and {NUM_VALIDATION} validation tracks, {NUM_FEATURES} features, "
        f"{NUM_CLASSES} classes; {arguments.steps} steps of each setting, validation every {JUKEMIR.eval_every}.",
        "",
        f"- command: `{command(arguments)}`",
        f"- machine: {machine}, load before {load:.1f}",
        f"- versions: Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}",
    ]
    print("\n".join(lines))
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")


def cpu_name() -> str:
    """Name of the processor, where the system says it."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.is_file() else []
    return names[0].split(":")[1].strip() if names else platform.processor()


def command(arguments: argparse.Namespace) -> str:
    """The command of this run."""
    threads = os.environ.get("OMP_NUM_THREADS")
    words = [f"OMP_NUM_THREADS={threads}"] if threads else []
    words += [f"python benchmarks/probe.py --device {arguments.device} --steps {arguments.steps}"]
    words += [f"--rounds {arguments.rounds}"] + ([f"--output {arguments.output}"] if arguments.output else [])
    return " ".join(words)


if __name__ == "__main__":
    main()
