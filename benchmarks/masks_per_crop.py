"""Probe score against compute for 1, 2, 4 and 8 masks a crop: `python benchmarks/masks_per_crop.py DEMO OUTPUT`.

DEMO is the output of `music2vec demo`; its `synthetic` and `corpus` are used. Every run takes the recipe `tiny`, one
of the numbers of updates asked for, and as many crops in each as come nearest to the operations of one mask a crop,
counted by hand: more masks, fewer crops. Each is pretrained from several seeds and probed with `quick`. Stopped, it
goes on.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from pretrain_step import counted_by_hand

from music2vec_hf.pretraining.arguments import load_recipe
from music2vec_hf.probing.results import read_results


def operations(recipe) -> float:
    """Operations of one update."""
    masked = recipe.rows_per_update * recipe.masks_per_crop * recipe.num_frames // 2
    counts = counted_by_hand(
        recipe.model_config(), recipe.num_samples, recipe.rows_per_update, masked, recipe.masks_per_crop
    )
    return sum(counts.values())


def settings(masks: int, steps: int) -> dict[str, float]:
    """Recipe values of a run of `masks` masks a crop: the crops that come nearest to the operations of one mask."""
    whole = load_recipe("tiny")
    seconds = whole.crop_seconds
    rows = min(
        range(1, whole.rows_per_update + 1),
        key=lambda rows: abs(
            operations(load_recipe("tiny", masks_per_crop=masks, batch_seconds=rows * seconds)) - operations(whole)
        ),
    )
    return {
        "masks_per_crop": masks,
        "batch_seconds": rows * seconds,
        "mask_group_seconds": rows * seconds,
        "max_steps": steps,
        "save_every": steps,
    }


def run(*words) -> None:
    """One command of the library."""
    subprocess.run([sys.executable, "-m", "music2vec_hf", *map(str, words)], check=True)


def scores(demo: Path, output: Path, masks: int, steps: int, seed: int, baselines: list[str]) -> dict[str, float]:
    """Pretrain and probe one run where that is not done; source and task to its score."""
    folder = output / f"steps-{steps}" / f"masks-{masks}-seed-{seed}"
    values = settings(masks, steps)
    if not (folder / "model.safetensors").exists():
        options = [word for name, value in values.items() for word in (f"--{name}", value)]
        where = ["--corpus", demo / "corpus", "--output", folder, "--resume"]
        run("pretrain", "--recipe", "tiny", *where, "--seed", seed, *options)
    if not (folder / "probes" / "results.json").exists():
        where = ["--data", demo / "synthetic", "--output", folder / "probes", "--random-init-seed", seed]
        run("probe", folder, "--task", "synthetic", *where, "--precision", "auto", "--baselines", *baselines)
    found = {}
    for average in read_results(folder / "probes")["averages"]:
        found[f"{average['source_kind']} task_mean"] = average["task_mean"]
    for record in read_results(folder / "probes")["records"]:
        found[f"{record['source_kind']} {record['task']} {record['metric']}"] = record["value"]
    return found


def cells(kind: str, names: list[str], runs: list[dict[str, float]]) -> str:
    """Cells of a Markdown row: mean over runs, the lowest and the highest."""
    texts = []
    for name in names:
        values = [run[f"{kind} {name}"] for run in runs]
        texts.append(f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    return " | ".join(texts)


def table(results: dict[tuple[int, int], list[dict[str, float]]]) -> list[str]:
    """Rows of a Markdown table, one for each number of updates and of masks; the last is of random weights."""
    first = next(iter(results.values()))
    names = [name.removeprefix("model ") for name in first[0] if name.startswith("model ")]
    lines = [
        f"| updates | masks a crop | crops an update | PFLOP | {' | '.join(names)} |",
        f"| ---: | ---: | ---: | ---: | {' | '.join('---:' for _ in names)} |",
    ]
    for (steps, masks), runs in results.items():
        recipe = load_recipe("tiny", **settings(masks, steps))
        compute = operations(recipe) * steps / 1e15
        lines.append(
            f"| {steps} | {masks} | {recipe.rows_per_update} | {compute:.3f} | {cells('model', names, runs)} |"
        )
    return [*lines, f"| 0 | | | 0 | {cells('random-init', names, first)} |"]


def main() -> None:
    """Read the command line, run what is missing, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("demo", type=Path)
    parser.add_argument("output", type=Path, help="folder for the runs")
    parser.add_argument("--masks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, nargs="+", default=[300], help="updates of a run (default: 300)")
    parser.add_argument("--report", type=Path, help="Markdown file to write")
    args = parser.parse_args()
    results = {(steps, masks): [] for steps in args.steps for masks in args.masks}
    for seed in args.seeds:
        for number, (steps, masks) in enumerate(results):
            baselines = [] if number else ["random-init"]
            results[steps, masks].append(scores(args.demo, args.output, masks, steps, seed, baselines))
            print(json.dumps({"steps": steps, "masks": masks, "seed": seed} | results[steps, masks][-1]), flush=True)
    lines = [
        *table(results),
        "",
        f"Seeds {', '.join(map(str, args.seeds))}: mean, lowest and highest. 0 updates are random weights.",
        "",
        f"- command: `python benchmarks/masks_per_crop.py {' '.join(sys.argv[1:])}`, {os.cpu_count()} cores",
    ]
    print("\n".join(lines))
    if args.report:
        args.report.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
