"""What models and spectra are worth on validation clips: linear probes on means over time, to compare recipes by.

    python benchmarks/learning.py OUT/tasks RUN RUN/checkpoint-500 random-init mfcc chroma mel --cache CACHE

The folder is that of `examples/real_music/make_tiny.py`. Test clips are not read. Quicker than `music2vec probe`,
and coarser: no hidden layers, one seed, the best layer and penalty on the clips that the score is of.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from music2vec_hf.common.metrics import get_metric
from music2vec_hf.features.encoders import open_source, resolve_sources
from music2vec_hf.features.store import FeatureStore
from music2vec_hf.probing.scores import averages, value_metrics
from music2vec_hf.probing.tasks.loading import load_task

TASKS = ("synthetic-genre", "synthetic-key", "synthetic-tags", "synthetic-emotion", "soundtrack")
CLASS_PENALTIES, VALUE_PENALTIES = (0.003, 0.03, 0.3), (30.0, 300.0, 3000.0)


def outputs(classes: bool, penalty: float, features, targets, held_out) -> np.ndarray:
    """What a linear probe answers on held-out features."""
    linear = LogisticRegression(C=penalty, max_iter=500) if classes else Ridge(penalty)
    probe = make_pipeline(StandardScaler(), linear).fit(features, targets)
    return probe.predict_proba(held_out) if classes else probe.predict(held_out)


def best_scores(store: FeatureStore, data) -> dict[str, float]:
    """The task's value metrics on the validation clips, of the layer and penalty that are best there."""
    train, held_out = data.splits["train"], data.splits["validation"]
    classes = data.task.problem_type == "single_label_classification"
    metrics = {name: get_metric(name, data.task.labels) for name in value_metrics(data.task.name)}
    rows = [store.rows(split.paths).features for split in (train, held_out)]
    found = []
    for layer in rows[0]:
        for penalty in CLASS_PENALTIES if classes else VALUE_PENALTIES:
            answers = outputs(classes, penalty, rows[0][layer], train.targets, rows[1][layer])
            scores = {name: float(metric(held_out.targets, answers)) for name, metric in metrics.items()}
            found.append((np.mean(list(scores.values())), scores))
    return max(found, key=lambda one: one[0])[1]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the tasks' data")
    parser.add_argument("sources", nargs="+", help="model folders, random-init (of the first), mfcc, chroma, mel")
    parser.add_argument("--cache", type=Path, default=None)
    given = parser.parse_args()
    loaded = {name: load_task(name, given.data) for name in TASKS}
    names = [f"{task.removeprefix('synthetic-')}: {metric}" for task in TASKS for metric in value_metrics(task)]
    print("| source |", " | ".join(names), "| task mean |\n|", " | ".join(["---"] * (len(names) + 2)), "|", flush=True)
    for source in resolve_sources({name: name for name in given.sources}):
        store = FeatureStore(given.cache, open_source(source), precision="auto")
        scores = {name: best_scores(store, data) for name, data in loaded.items()}
        values = [f"{value:.3f}" for of_task in scores.values() for value in of_task.values()]
        print(f"| {source.name} |", " | ".join(values), f"| {averages(scores)['task_mean']:.3f} |", flush=True)


if __name__ == "__main__":
    main()
