"""Several runs of the demo as one result: pretrained against random weights, averaged over pretraining seeds.

    python examples/compare_seeds.py demo-1 demo-2 demo-3 --output three-seeds

Each folder is one `music2vec demo --seed S --output FOLDER`. Random weights are drawn with the run's own seed. The
test clips are the same in all runs, so differences are paired: they are resampled jointly for all runs and tasks.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from music2vec_hf.common.files import read_results
from music2vec_hf.probing.scores import Predictions, load_predictions, paired_difference_of_predictions

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("demos", nargs="+", type=Path)
parser.add_argument("--output", type=Path, required=True)


def pooled(demos: list[Path], source: str) -> dict[str, Predictions]:
    """Test outputs of one source, those of all runs side by side."""
    runs = [load_predictions(demo / "probes", source) for demo in demos]
    together = {}
    for task, first in runs[0].items():
        outputs = np.concatenate([run[task].outputs for run in runs])
        together[task] = Predictions(task, first.labels, first.track_ids, first.references, outputs)
    return together


def scores(demo: Path) -> dict[str, dict[str, float]]:
    """Source -> task and metric -> score of one run."""
    table: dict[str, dict[str, float]] = {}
    for record in read_results(demo / "probes")["records"]:
        table.setdefault(record["source"], {})[f"{record['task']} {record['metric']}"] = record["value"]
    return table


def main() -> None:
    """Print the table and write it as JSON."""
    args = parser.parse_args()
    per_run = [scores(demo) for demo in args.demos]
    sources = list(per_run[0])
    print(f"{'mean over runs':<42}" + "".join(f"{source:>14}" for source in sources))
    for name in per_run[0][sources[0]]:
        values = [np.mean([run[source][name] for run in per_run]) for source in sources]
        print(f"{name:<42}" + "".join(f"{value:>14.3f}" for value in values))
    summary = {"demos": len(args.demos), "scores": per_run, "pretrained_minus": {}}
    for baseline in sources[1:]:
        if baseline == "chance":
            continue
        differences = paired_difference_of_predictions(pooled(args.demos, sources[0]), pooled(args.demos, baseline))
        summary["pretrained_minus"][baseline] = {task: asdict(difference) for task, difference in differences.items()}
        print(f"\n{sources[0]} minus {baseline}, paired 95 % interval")
        for task, difference in differences.items():
            low, high = difference.interval
            print(f"  {task:<20}{difference.value:>+8.3f}  [{low:+.3f}, {high:+.3f}]")
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "results.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
