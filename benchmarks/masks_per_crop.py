"""Probe score against compute for 1, 2, 4 and 8 masks a crop: `python benchmarks/masks_per_crop.py DEMO OUTPUT`.

DEMO is the output of `music2vec demo`; its `synthetic` and `corpus` are used. Every run takes the recipe `tiny`, one
of the numbers of updates asked for, and as many crops in each as come nearest to the operations of one mask a crop,
counted by hand: more masks, fewer crops. Each is pretrained from several seeds and probed with `quick`. Stopped, it
goes on.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from pretrain_step import counted_by_hand

from music2vec_hf.common.files import read_results
from music2vec_hf.pretraining.arguments import load_recipe
from music2vec_hf.probing.report_tables import TASK_MEAN, table_rows


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


def folder_of(output: Path, steps: int, masks: int, seed: int) -> Path:
    """Where a run goes; its probes lie in `probes` there."""
    return output / f"steps-{steps}" / f"masks-{masks}-seed-{seed}"


def pretrain_and_probe(demo: Path, output: Path, steps: int, masks: int, seed: int, baselines: list[str]) -> None:
    """One run, or what is missing of it."""
    folder = folder_of(output, steps, masks, seed)
    if not (folder / "model.safetensors").exists():
        options = [word for name, value in settings(masks, steps).items() for word in (f"--{name}", value)]
        where = ["--corpus", demo / "corpus", "--output", folder, "--resume"]
        run("pretrain", "--recipe", "tiny", *where, "--seed", seed, *options)
    if not (folder / "probes" / "results.json").exists():
        where = ["--data", demo / "synthetic", "--output", folder / "probes", "--random-init-seed", seed]
        run("probe", folder, "--task", "synthetic", *where, "--precision", "auto", "--baselines", *baselines)


def scores(probes: Path) -> dict[str, dict[str, float]]:
    """Kind of source to its scores: the mean over the tasks, and what it is the mean of."""
    found: dict[str, dict[str, float]] = {}
    for row in table_rows(read_results(probes)):
        if row["counts_in_mean"] or row["label"] == TASK_MEAN:
            for cell in row["cells"].values():
                found.setdefault(cell["kind"], {})[row["label"]] = cell["value"]
    return found


def table(output: Path, runs: list[tuple[int, int, int]]) -> list[str]:
    """Rows of a Markdown table: one for each run that is done, and for random weights where they were probed."""
    rows, names = [], []
    for steps, masks, seed in runs:
        probes = folder_of(output, steps, masks, seed) / "probes"
        if not (probes / "results.json").exists():
            continue
        recipe = load_recipe("tiny", **settings(masks, steps))
        found = scores(probes)
        compute = f"{operations(recipe) * steps / 1e12:.1f}"
        parts = {"model": [steps, masks, recipe.rows_per_update, compute, seed], "random-init": [0, "", "", 0, seed]}
        for kind in parts.keys() & found:
            names = list(found[kind])
            rows.append([*parts[kind], *(f"{value:.3f}" for value in found[kind].values())])
    lines = [
        f"| {' | '.join(['updates', 'masks a crop', 'crops an update', 'TFLOP', 'seed', *names])} |",
        f"|{' ---: |' * (5 + len(names))}",
    ]
    rows.sort(key=lambda row: (row[0], row[4]))
    return lines + [f"| {' | '.join(map(str, row))} |" for row in rows]


def main() -> None:
    """Read the command line, run what is missing, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("demo", type=Path)
    parser.add_argument("output", type=Path, help="folder for the runs")
    parser.add_argument("--masks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, nargs="+", default=[900], help="updates of a run (default: 900)")
    parser.add_argument("--done", action="store_true", help="start nothing: the table of the runs that are done")
    parser.add_argument("--report", type=Path, help="Markdown file to write")
    args = parser.parse_args()
    runs = [(steps, masks, seed) for seed in args.seeds for steps in args.steps for masks in args.masks]
    for steps, masks, seed in runs if not args.done else ():
        first = (steps, masks) == (args.steps[0], args.masks[0])
        pretrain_and_probe(args.demo, args.output, steps, masks, seed, ["random-init"] if first else [])
    lines = table(args.output, runs)
    print("\n".join(lines))
    if args.report:
        command = f"- command: `python benchmarks/masks_per_crop.py {' '.join(sys.argv[1:])}`, {os.cpu_count()} cores"
        args.report.write_text("\n".join([*lines, "", command]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
