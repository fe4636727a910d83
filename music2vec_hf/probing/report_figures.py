"""Which figures a report has: drawn from records and, where they lie beside the results, from stored predictions."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from music2vec_hf.probing import figures
from music2vec_hf.probing.metrics import KEY_LABELS, macro_average_precision
from music2vec_hf.probing.report_tables import metric_title, source_kinds, table_rows, task_title
from music2vec_hf.probing.results import Predictions, file_stem
from music2vec_hf.probing.tasks.loading import TASKS

# Neighbours lie a fifth apart; each minor key stands where its relative major does.
FIFTHS = [7 * step % 12 for step in range(12)]
KEYS_BY_FIFTHS = FIFTHS + [12 + (tonic + 9) % 12 for tonic in FIFTHS]


def draw_all(
    results: Mapping, sources: Sequence[tuple[Path, Mapping]], runs: Mapping[str, list[dict]], output: Path
) -> list[dict]:
    """Draw every figure that there is something for.

    Args:
        results (`Mapping`): content of all results files side by side.
        sources (`Sequence[tuple[Path, Mapping]]`): folder and content of each file, with source names as in `results`.
        runs (`Mapping[str, list[dict]]`): name of a pretraining run -> lines of its metrics.jsonl.
        output (`Path`): figures are written into its folder `figures`.

    Returns:
        `list[dict]`: `heading` (empty for a figure that belongs to the one before), `caption`, `file` relative to
        `output`, and `data`, the PNG in base64.
    """
    folder = output / "figures"
    drawn = []
    for heading, group in (
        ("Scores beside the baselines", _scores(results, folder)),
        ("Layers", _layers(results, folder)),
        ("Validation against test", _validation_against_test(results, folder)),
        ("Confusion", _confusion(sources, folder)),
        ("Tags", _tags(sources, folder)),
        ("Emotion", _scatter(sources, folder)),
        ("Pretraining", _curves(runs, folder)),
    ):
        for number, (path, caption) in enumerate(group):
            data = base64.b64encode(path.read_bytes()).decode()
            file = path.relative_to(output).as_posix()
            drawn.append({"heading": "" if number else heading, "caption": caption, "file": file, "data": data})
    return drawn


def _scores(results: Mapping, folder: Path) -> Iterator[tuple[Path, str]]:
    rows = [row for row in table_rows(results) if row["counts_in_mean"]]
    if rows:
        path = figures.draw_scores(rows, folder / "scores.png")
        yield path, "Test scores with 95 % intervals; models in blue, baselines in grey, chance dashed."


def _layers(results: Mapping, folder: Path) -> Iterator[tuple[Path, str]]:
    kinds = source_kinds(results)
    for number, source in enumerate(name for name, kind in kinds.items() if kind in ("model", "random-init")):
        table, chosen = {}, {}
        for record in results["records"]:
            if record["source"] == source and record["task"] not in table:
                name = f"{task_title(record['task'])}, {metric_title(record['validation_metric'])}"
                table[name], chosen[name] = record["validation_by_layer"], record["layer"]
        path = figures.draw_layers(table, chosen, f"{source}: validation score", folder / f"layers-{number}.png")
        caption = f"{source}: validation score of the best probe of each layer; the chosen layer is framed. "
        yield path, caption + "Colours are scaled within a row."


def _validation_against_test(results: Mapping, folder: Path) -> Iterator[tuple[Path, str]]:
    """The chosen probe's validation score against its test score in the same metric; of R2, the mean over outputs."""
    scores: dict[tuple[str, str], dict] = {}
    for record in results["records"]:
        if record["validation_score"] is not None:
            scores.setdefault((record["source"], record["task"]), {"record": record})[record["metric"]] = record
    points = []
    for (source, task), metrics in scores.items():
        record = metrics.pop("record")
        name = record["validation_metric"]
        wanted = [row for metric, row in metrics.items() if metric == name or metric.startswith(f"{name}_")]
        if wanted:
            points.append(
                (source, task_title(task), record["validation_score"], np.mean([r["value"] for r in wanted]))
            )
    if points:
        path = figures.draw_validation_against_test(points, folder / "validation-test.png")
        caption = "Score of the chosen probe on validation, by which it was chosen, and on test, in the same metric. "
        yield path, caption + "Far below the diagonal: the choice fitted the validation split."


def _stored(sources: Sequence[tuple[Path, Mapping]], problem_type: str) -> Iterator[tuple[str, dict, Predictions]]:
    """Models' predictions for tasks of one type, with a name for files and the records by metric."""
    for number, (base, content) in enumerate(sources):
        groups: dict[tuple[str, str], dict] = {}
        for record in content["records"]:
            task = TASKS.get(record["task"])
            if record["source_kind"] == "model" and task is not None and task.problem_type == problem_type:
                groups.setdefault((record["source"], record["task"]), {})[record["metric"]] = record
        for (source, task), records in groups.items():
            path = base / next(iter(records.values()))["predictions"]
            if path.is_file():
                yield f"{number}-{file_stem(source)}-{task}.png", records, Predictions.load(path)


def _name(records: Mapping) -> str:
    record = next(iter(records.values()))
    return f"{record['source']}: {task_title(record['task'])}"


def _confusion(sources: Sequence[tuple[Path, Mapping]], folder: Path) -> Iterator[tuple[Path, str]]:
    for file, records, stored in _stored(sources, "single_label_classification"):
        keys = tuple(stored.labels) == KEY_LABELS
        order = KEYS_BY_FIFTHS if keys else range(len(stored.labels))
        place = np.argsort(order)
        references = np.tile(place[stored.references], len(stored.outputs))
        estimates = place[stored.outputs.argmax(axis=2).flatten()]
        labels = [stored.labels[index] for index in order]
        path = folder / f"confusion-{file}"
        figures.draw_confusion(references, estimates, labels, _name(records), path, block=12 if keys else None)
        caption = f"{_name(records)}: test tracks, all seeds; shares of each reference class."
        if keys:
            caption += (
                " Keys in the order of the circle of fifths: beside the diagonal lies a fifth, on the diagonals of "
                "the other two blocks the relative key."
            )
        yield path, caption


def _tags(sources: Sequence[tuple[Path, Mapping]], folder: Path) -> Iterator[tuple[Path, str]]:
    for file, records, stored in _stored(sources, "multi_label_classification"):
        scores = [macro_average_precision(stored.references, outputs).per_tag for outputs in stored.outputs]
        path = folder / f"tags-{file}"
        figures.draw_tags(stored.labels, np.mean(scores, axis=0), stored.references.mean(axis=0), _name(records), path)
        caption = (
            f"{_name(records)}: average precision of each tag on test tracks, mean over seeds. The mark is the share "
        )
        yield (
            path,
            caption + "of tracks with the tag, which guessing reaches; tags that cannot be scored are left out.",
        )


def _scatter(sources: Sequence[tuple[Path, Mapping]], folder: Path) -> Iterator[tuple[Path, str]]:
    for file, records, stored in _stored(sources, "regression"):
        titles = []
        for label in stored.labels:
            score = records.get(f"r2_{label}")
            titles.append(f"{label} (R2 {score['value']:.3f})" if score else label)
        path = folder / f"scatter-{file}"
        figures.draw_scatter(stored.references, stored.outputs[0], titles, _name(records), path)
        yield path, f"{_name(records)}: test tracks, probe of the first seed; R2 is the mean over seeds."


def _curves(runs: Mapping[str, list[dict]], folder: Path) -> Iterator[tuple[Path, str]]:
    if any(runs.values()):
        path = figures.draw_curves(runs, folder / "training.png")
        caption = (
            f"Pretraining of {', '.join(runs)}. Standard deviations near zero, a rank near one or a position share "
        )
        yield path, caption + "near one mean collapse."
