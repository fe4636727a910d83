"""Scores beside published ones: the four tasks of the paper's Table 1, ours, the paper's, and those of later papers.

A score stands beside a published one only with the same data and the same protocol. Rows that do not are in a group
of their own and say why; filtered MagnaTagATune has columns of its own; synthetic tasks are not in this table at all.
"""

from collections.abc import Mapping
from pathlib import Path

from music2vec_hf.probing.results import averages
from music2vec_hf.probing.tasks.magnatagatune import FILTERED
from music2vec_hf.probing.tasks.shared import read_table

FOLDER = Path(__file__).parent / "published_scores"
PAPER_COLUMNS = {
    "mtt_auc": ("MTT AUC", "magnatagatune", "roc_auc"),
    "mtt_ap": ("MTT AP", "magnatagatune", "average_precision"),
    "gtzan_accuracy": ("GTZAN acc.", "gtzan", "accuracy"),
    "giantsteps_score": ("GiantSteps score", "giantsteps", "weighted_key_score"),
    "emo_r2_arousal": ("EMO R2 A", "emomusic", "r2_arousal"),
    "emo_r2_valence": ("EMO R2 V", "emomusic", "r2_valence"),
}
FILTERED_COLUMNS = {
    "mtt_filtered_auc": ("MTT filtered AUC", FILTERED, "roc_auc"),
    "mtt_filtered_ap": ("MTT filtered AP", FILTERED, "average_precision"),
}
AVERAGE_COLUMNS = {"task_mean": "task mean", "flat_mean": "flat mean", "average": "as reported"}
PUBLISHED_PROTOCOLS = ("jukemir", "marble")
CONV_MARK, DATA_MARK, QUICK_MARK, LAYERS_MARK = "◇", "d", "q", "l"
FOOTNOTES = {
    CONV_MARK: "obtained from the features of the convolutional front end, as the paper marks it",
    DATA_MARK: "the data differs from the benchmark's, as said at the top: not comparable",
    QUICK_MARK: "a protocol of our own (quick: a reduced grid), which nobody has published with: not comparable",
    LAYERS_MARK: "not every layer was tried (pilot: only the one that quick chooses on validation)",
}
AVERAGES_NOTE = (
    "Task mean: mean of the four tasks, MTT and EMO each counted once with the mean of their two scores (JukeMIR, "
    "MARBLE). Flat mean: mean of the six scores. Both are computed here from the scores of the row. The column that "
    "the paper reports mixes them: its four baselines have the task mean, its Music2Vec rows the flat mean. Filtered "
    "MTT has no part in either."
)


def published_averages(scores: Mapping[str, float]) -> dict[str, float]:
    """Task mean and flat mean of a row of the table; empty if one of its six scores is missing.

    Args:
        scores (`Mapping[str, float]`): name of a column of `PAPER_COLUMNS` to score.
    """
    if not PAPER_COLUMNS.keys() <= scores.keys():
        return {}
    by_task: dict[str, dict[str, float]] = {}
    for column, (_, task, metric) in PAPER_COLUMNS.items():
        by_task.setdefault(task, {})[metric] = scores[column]
    return averages(by_task)


def _row(name: str, protocol: str, scores: Mapping[str, float], marks: Mapping[str, str] | None = None) -> dict:
    scores = dict(scores) | published_averages(scores)
    return {"name": name, "protocol": protocol, "scores": scores, "marks": dict(marks or {})}


def paper_rows() -> list[dict]:
    """Rows of the paper's Table 1, in percent: `name`, `protocol`, `scores` (column to value) and `marks`."""
    rows = []
    columns = ("approach", "setting", *PAPER_COLUMNS, "average", "conv_features")
    for line in read_table(FOLDER / "music2vec_table1.tsv", "\t", columns):
        name = line["approach"] if line["setting"] == "baseline" else f"{line['approach']} {line['setting']}"
        scores = {column: float(line[column]) for column in (*PAPER_COLUMNS, "average")}
        marks = dict.fromkeys((column for column in line["conv_features"].split(",") if column), CONV_MARK)
        rows.append(_row(name, "jukemir", scores, marks))
    return rows


def later_rows() -> dict[str, list[dict]]:
    """Scores that were published later or elsewhere, by source, rows as those of `paper_rows`."""
    groups: dict[str, list[dict]] = {}
    for line in read_table(FOLDER / "later_scores.tsv", "\t", ("approach", "source", *PAPER_COLUMNS)):
        scores = {column: float(line[column]) for column in PAPER_COLUMNS}
        protocol = next((name for name in PUBLISHED_PROTOCOLS if line["source"].lower().startswith(name)), "own")
        groups.setdefault(line["source"], []).append(_row(line["approach"], protocol, scores))
    return groups


def our_rows(results: Mapping) -> list[dict]:
    """Our scores in the columns of the table, in percent, one row per source and protocol; synthetic tasks have none.

    Args:
        results (`Mapping`): content of a results file, or of several side by side.

    Returns:
        `list[dict]`: rows as those of `paper_rows`, with `comparable`.
    """
    places = {(task, metric): name for name, (_, task, metric) in (PAPER_COLUMNS | FILTERED_COLUMNS).items()}
    scores: dict[tuple[str, str], dict] = {}
    marks: dict[tuple[str, str], dict] = {}
    for record in results["records"]:
        column = places.get((record["task"], record["metric"]))
        if column is None or record["source_kind"] == "chance":
            continue
        key = record["source"], record["protocol"]
        scores.setdefault(key, {})[column] = 100 * record["value"]
        marks.setdefault(key, {})[column] = _marks_of(record)
    return [
        _row(source, protocol, values, marks[source, protocol])
        | {"comparable": not {DATA_MARK, QUICK_MARK} & set("".join(marks[source, protocol].values()))}
        for (source, protocol), values in scores.items()
    ]


def _marks_of(record: Mapping) -> str:
    marks = DATA_MARK if record["differences"] else ""
    marks += QUICK_MARK if record["protocol"] not in PUBLISHED_PROTOCOLS else ""
    return marks + (LAYERS_MARK if record.get("layers", "all") != "all" else "")


def comparison(results: Mapping) -> dict | None:
    """The table of our scores beside published ones.

    Args:
        results (`Mapping`): content of a results file, or of several side by side.

    Returns:
        `dict`: `columns` (names to titles), `groups` (`title` and `rows`) and `footnotes` (sentences); None if no task
        of the table is among the results.
    """
    ours = our_rows(results)
    if not ours:
        return None
    columns = {name: title for name, (title, _, _) in PAPER_COLUMNS.items()}
    filtered = {name: title for name, (title, _, _) in FILTERED_COLUMNS.items()}
    if any(filtered.keys() & row["scores"].keys() for row in ours):
        columns |= filtered
    groups = [
        ("Ours, comparable with rows of the same protocol", [row for row in ours if row["comparable"]]),
        ("Ours, not comparable where marked, nor in the means", [row for row in ours if not row["comparable"]]),
        ("Music2Vec paper, Table 1 (its baselines: JukeMIR)", paper_rows()),
        *later_rows().items(),
    ]
    groups = [{"title": title, "rows": rows} for title, rows in groups if rows]
    used = set("".join(mark for group in groups for row in group["rows"] for mark in row["marks"].values()))
    footnotes = [f"{mark}: {text}." for mark, text in FOOTNOTES.items() if mark in used]
    return {"columns": columns | AVERAGE_COLUMNS, "groups": groups, "footnotes": [*footnotes, AVERAGES_NOTE]}
