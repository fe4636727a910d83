"""The report on toy results: numbers, computed sentences, notices, figures, several files side by side."""

import json

import numpy as np
import pytest

from music2vec_hf.common.metrics import key_score_table
from music2vec_hf.probing import report
from music2vec_hf.probing.report_figures import KEYS_BY_FIFTHS
from music2vec_hf.probing.report_tables import comparison, layer_guide, layer_guide_rows, published_rows
from music2vec_hf.probing.scores import Predictions

SETTINGS = {"kind": "linear", "learning_rate": 0.01, "dropout": 0.0, "dropout_input": 0.25}


def record(source, kind, task, metric, value, **changes):
    is_chance = kind == "chance"
    return {
        "source": source,
        "source_kind": kind,
        "task": task,
        "metric": metric,
        "synthetic": task.startswith("synthetic"),
        "protocol": "quick",
        "value": value,
        "spread": 0.012,
        "interval": [value - 0.05, value + 0.05],
        "split_sizes": {"train": 1200, "validation": 300, "test": 500},
        "excluded_tags": {},
        "differences": [],
        "layer": None if is_chance else "2",
        "probe_settings": None if is_chance else SETTINGS,
        "validation_metric": "accuracy",
        "validation_score": None if is_chance else value,
        "validation_by_layer": {} if is_chance else {"conv": 0.2, "0": 0.3, "1": 0.4, "2": value},
        "seeds": [] if is_chance else [0, 1, 2],
        "model_hash": "abc123" if kind == "model" else None,
        "library_versions": {"torch": "2.x"},
        "predictions": f"predictions/{source}--{task}.npz",
    } | changes


def toy_results(folder, difference=(0.10, 0.20)):
    low, high = difference
    kinds = (("pretrained", "model", 0.456), ("random-init", "random-init", 0.3), ("chance", "chance", 0.1))
    records = [record(name, kind, "synthetic-genre", "accuracy", value) for name, kind, value in kinds]
    records += [
        record(name, kind, "synthetic-tags", "roc_auc", value, excluded_tags={"test": ["tuba"], "validation": []})
        for name, kind, value in kinds
    ]
    content = {
        "format_version": 1,
        "records": records,
        "averages": [
            {
                "source": name,
                "source_kind": kind,
                "tasks": ["synthetic-genre", "synthetic-tags"],
                "task_mean": value,
                "flat_mean": value,
                "task_mean_interval": [value - 0.03, value + 0.03],
            }
            for name, kind, value in kinds
        ],
        "comparisons": [
            {
                "source": "pretrained",
                "baseline": "random-init",
                "task": task,
                "value": (low + high) / 2,
                "interval": [low, high],
            }
            for task in ("synthetic-genre", "synthetic-tags", "task_mean")
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    path.write_text(json.dumps(content))
    rng = np.random.default_rng(0)
    outputs = rng.standard_normal((2, 20, 3))
    ids = tuple(str(number) for number in range(20))
    predictions = Predictions("synthetic-genre", ("rock", "jig", "waltz"), ids, rng.integers(0, 3, 20), outputs)
    predictions.save(folder / "predictions" / "pretrained--synthetic-genre.npz")
    tags = rng.integers(0, 2, (20, 3)).astype(np.float32)
    tags[:, 2] = 0  # cannot be scored
    Predictions("synthetic-tags", ("loud", "slow", "tuba"), ids, tags, outputs).save(
        folder / "predictions" / "pretrained--synthetic-tags.npz"
    )
    return path


def test_data_that_differs_from_the_benchmark_is_named_once(tmp_path):
    results = json.loads(toy_results(tmp_path).read_text())
    for record in results["records"]:
        record["differences"] = ["test: 289 tracks, the benchmark has 290."] if "genre" in record["task"] else []
    (line,) = [line for line in report.notices(results) if "comparable" in line]
    assert line.endswith("not comparable with published scores: test: 289 tracks, the benchmark has 290.")


def test_table_holds_scores_intervals_and_means(tmp_path):
    table = report.format_table(json.loads(toy_results(tmp_path).read_text()))
    lines = table.splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[2:5]] == ["pretrained", "random-init", "chance"]
    assert "| genre: accuracy" in table and "0.456 [0.41, 0.51]" in table and "0.100 [0.05, 0.15]" in table
    assert any(line.startswith("| task mean") for line in lines) and any("flat mean" in line for line in lines)
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    "difference, said",
    [
        ((0.10, 0.20), "pretrained is better than random-init on genre (+0.150, 95 % +0.100 to +0.200)"),
        ((-0.20, -0.10), "pretrained is worse than random-init on genre (-0.150, 95 % -0.200 to -0.100)"),
        ((-0.10, 0.20), "pretrained is not separable from random-init on genre (+0.050, 95 % -0.100 to +0.200)"),
    ],
)
def test_verdict_follows_from_the_interval(tmp_path, difference, said):
    (sentence,) = report.verdicts(json.loads(toy_results(tmp_path, difference).read_text()))
    assert sentence.startswith(said)
    assert ("beats random-init on none of the tasks" in sentence) == (difference[0] <= 0)


def test_page_is_whole(tmp_path):
    results = toy_results(tmp_path / "run")
    log = tmp_path / "metrics.jsonl"
    lines = [
        {"step": step, "loss": 4 / step, "target_std": 0.5, "prediction_std": 0.2, "ema_decay": 0.999}
        for step in range(1, 9)
    ]
    # A killed run leaves half a line.
    log.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 9, "lo')
    path = report.write_report([results, log], tmp_path / "report")
    page = path.read_text()
    for text in (
        "0.456",
        "± 0.012",
        "[0.406, 0.506]",
        "synthetic",
        "Protocol quick",
        "1200/300/500",
        "3 seeds",
        "abc123",
    ):
        assert text in page
    assert "tags: tags that cannot be scored on test (1): tuba" in page
    assert "pretrained is better than random-init" in page
    assert "http" not in page.replace("http-equiv", "")
    figures = sorted(figure.name for figure in (tmp_path / "report" / "figures").iterdir())
    assert figures == [
        "confusion-0-pretrained-synthetic-genre.png",
        "layers-0.png",
        "layers-1.png",
        "scores.png",
        "tags-0-pretrained-synthetic-tags.png",
        "training.png",
        "validation-test.png",
    ]
    assert page.count("data:image/png;base64,") == len(figures)
    text = (tmp_path / "report" / "report.md").read_text()
    assert all(f"](figures/{figure})" in text for figure in figures)
    assert report.format_table(json.loads(results.read_text())) in text
    for written in (page, text):
        assert "None of the four tasks of the paper is among these results" in written
    (genre, tags) = json.loads((tmp_path / "report" / "layer_guide.json").read_text())["layers"]
    assert (genre["task"], genre["layer"], genre["probe_settings"]) == ("synthetic-genre", "2", SETTINGS)
    assert tags["test"] == {"roc_auc": {"value": 0.456, "interval": [0.406, 0.506]}}


def test_several_files_stand_side_by_side(tmp_path):
    paths = [toy_results(tmp_path / name) for name in ("first", "second")]
    page = report.write_report(paths, tmp_path / "report").read_text()
    assert "first/pretrained" in page and "second/pretrained" in page


def test_a_source_on_other_tasks_in_another_file_keeps_its_name():
    first = {"records": [record("ours", "model", "gtzan", "accuracy", 0.7)]}
    second = {"records": [record("ours", "model", "emomusic", "r2_arousal", 0.6)]}
    names = [[row["source"] for row in part["records"]] for part in report.distinct_sources([first, second], "ab")]
    assert names == [["ours"], ["ours"]]
    for change in ({"model_hash": "other"}, {"protocol": "jukemir"}, {"task": "gtzan"}):
        changed = {"records": [second["records"][0] | change]}
        parts = report.distinct_sources([first, changed], "ab")
        assert [part["records"][0]["source"] for part in parts] == ["a/ours", "b/ours"], change


def test_the_papers_averages_are_two_different_means():
    rows = {row["name"]: row["scores"] for title, row in published_rows() if "Table 1" in title}
    assert len(rows) == 15
    for name, scores in rows.items():
        mean = "flat_mean" if name.startswith("Music2Vec") else "task_mean"
        assert scores[mean] == pytest.approx(scores["average"], abs=0.1), name
    assert rows["Music2Vec base30s"]["task_mean"] == pytest.approx(52.74, abs=0.005)
    assert rows["Jukebox"]["flat_mean"] == pytest.approx(68.85, abs=0.005)


def paper_results(protocol, tags="magnatagatune", **changes):
    scores = {
        ("gtzan", "accuracy"): 0.7,
        (tags, "roc_auc"): 0.9,
        (tags, "average_precision"): 0.3,
        ("giantsteps", "weighted_key_score"): 0.5,
        ("giantsteps", "symmetric_key_score"): 0.55,
        ("emomusic", "r2_arousal"): 0.6,
        ("emomusic", "r2_valence"): 0.4,
        ("synthetic-genre", "accuracy"): 0.99,
    }
    records = [
        record("ours", "model", task, metric, value, protocol=protocol, **changes.get(task, {}))
        for (task, metric), value in scores.items()
    ]
    return {"records": [*records, record("chance", "chance", "gtzan", "accuracy", 0.1)]}


def test_our_scores_stand_beside_the_papers():
    table = comparison(paper_results("jukemir"))
    title, (row,) = next(iter(table["groups"].items()))
    assert title.startswith("Ours, comparable") and row["marks"] == dict.fromkeys(row["marks"], "")
    assert row["scores"]["task_mean"] == pytest.approx((60 + 70 + 50 + 50) / 4)
    assert row["scores"]["flat_mean"] == pytest.approx((90 + 30 + 70 + 50 + 60 + 40) / 6)
    assert 99 not in row["scores"].values() and 55 not in row["scores"].values()
    assert "mtt_filtered_ap" not in table["columns"]
    titles = list(table["groups"])
    assert len(titles) == 5 and "Table 1" in titles[1]


@pytest.mark.parametrize(
    "results, column, mark",
    [
        (paper_results("quick"), "emo_r2_arousal", "q"),
        (paper_results("marble", gtzan={"differences": ["test: 289 tracks"]}), "gtzan_accuracy", "d"),
    ],
    ids=["quick", "data"],
)
def test_what_is_not_comparable_is_marked_and_stands_apart(results, column, mark):
    table = comparison(results)
    title, (row,) = next(iter(table["groups"].items()))
    assert title.startswith("Ours, not comparable")
    assert row["marks"][column] == mark and mark in table["marks"] and column in table["marked"]


def test_layers_that_were_not_tried_are_marked_but_comparable():
    results = paper_results("jukemir", gtzan={"layers": "pilot"})
    (row,) = next(iter(comparison(results)["groups"].values()))
    assert row["comparable"] and row["marks"]["gtzan_accuracy"] == "l" and row["marks"]["mtt_ap"] == ""


def test_filtered_tags_never_enter_the_unfiltered_columns():
    table = comparison(paper_results("jukemir", tags="magnatagatune-filtered"))
    (row,) = next(iter(table["groups"].values()))
    assert row["scores"]["mtt_filtered_ap"] == 30 and not {"mtt_ap", "task_mean", "flat_mean"} & row["scores"].keys()
    assert "mtt_filtered_ap" in table["columns"]


def test_synthetic_scores_have_no_place_in_the_papers_table():
    assert comparison({"records": [record("ours", "model", "synthetic-genre", "accuracy", 0.9)]}) is None


def test_the_layer_guide_names_the_runner_up():
    layers = {"conv": 0.2, "0": 0.9, "1": 0.4, "2": 0.8}
    results = {"records": [record("ours", "model", "gtzan", "accuracy", 0.7, layer="0", validation_by_layer=layers)]}
    (entry,) = guide = layer_guide(results)
    assert entry["runner_up"] == {"layer": "2", "validation_score": 0.8}
    header, ((name, layer, probe, *_),) = layer_guide_rows(guide)
    assert len(header) == 6 and (name, layer) == ("ours, genre (gtzan)", "0")
    assert probe == "linear, learning rate 0.01, dropout 0.25 of features"


def test_keys_stand_in_the_order_of_the_circle_of_fifths():
    scores = key_score_table(symmetric=True)[np.ix_(KEYS_BY_FIFTHS, KEYS_BY_FIFTHS)]
    assert sorted(KEYS_BY_FIFTHS) == list(range(24))
    for block in (scores[:12, :12], scores[12:, 12:]):
        assert (np.diag(block, 1) == 0.5).all() and block[0, 11] == 0.5
    assert (np.diag(scores[:12, 12:]) == 0.3).all()


def test_runs_alone_share_their_axes(tmp_path):
    for name, loss in (("first", 2.0), ("second", None)):
        (tmp_path / name).mkdir()
        lines = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": loss, "target_rank": 5.0}]
        (tmp_path / name / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    page = report.write_report([tmp_path / "first", tmp_path / "second"], tmp_path / "report").read_text()
    assert "Pretraining of first, second" in page and "What the intervals say" not in page
    assert [path.name for path in (tmp_path / "report" / "figures").iterdir()] == ["training.png"]


def test_a_broken_log_names_its_line(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"Line 2 of .* is not JSON"):
        report.write_report(log, tmp_path / "report")


def test_a_file_that_is_no_results_file_is_refused(tmp_path):
    other = tmp_path / "other.json"
    other.write_text("[1, 2]")
    with pytest.raises(ValueError, match="is no results file of format 1"):
        report.write_report(other, tmp_path / "report")
