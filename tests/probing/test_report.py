"""The report on real results of a toy model, with values put into them where a test is about values."""

import copy
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from music2vec_hf.common.files import read_results, write_results
from music2vec_hf.common.metrics import key_score_table
from music2vec_hf.probing import report
from music2vec_hf.probing import report_tables as tables
from music2vec_hf.probing.report import KEYS_BY_FIFTHS

EXAMPLES = Path(__file__).parents[2] / "examples" / "results"
SETTINGS = {"kind": "linear", "learning_rate": 0.01, "dropout": 0.0, "dropout_input": 0.25}


@pytest.fixture
def results(probed):
    return read_results(probed / "probes")


@pytest.fixture
def record(results):
    """`record(source, task, metric, value, **changes)`: a real record of that source with other values."""
    first = {each["source"]: each for each in reversed(results["records"])}

    def make(source, task, metric, value, **changes):
        named = {"source": "ours" if source == "pretrained" else source, "task": task, "metric": metric}
        return copy.deepcopy(first[source]) | named | {"value": value} | changes

    return make


def test_data_that_differs_from_the_benchmark_is_named_once(results):
    for each in results["records"]:
        each["differences"] = ["test: 289 tracks, the benchmark has 290."] if "genre" in each["task"] else []
    (line,) = [line for line in tables.notices(results) if "comparable" in line]
    assert line.endswith("not comparable with published scores: test: 289 tracks, the benchmark has 290.")


def test_the_summary_has_the_model_random_weights_and_the_best_spectra(results):
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables.format_summary(results).splitlines()]
    assert [row[0] for row in rows[2:]] == ["pretrained", "random-init", "chroma"]
    means = {each["source"]: each["task_mean"] for each in results["averages"]}
    for name, value, *by_task in rows[2:]:
        assert value == f"{means[name]:.3f}" and len(by_task) == len(results["averages"][0]["tasks"])
        assert sum(map(float, by_task)) / len(by_task) == pytest.approx(means[name], abs=1e-3)


def test_table_holds_scores_intervals_and_means(results):
    results["records"][0] |= {"value": 0.456, "interval": [0.406, 0.5149]}
    lines = tables.format_table(results).splitlines()
    sources = ["pretrained", "random-init", "chroma", "chance"]
    assert [cell.strip() for cell in lines[0].split("|")[2:-1]] == sources
    assert "| genre: accuracy" in lines[2] and "0.456 [0.41, 0.51]" in lines[2]
    assert any(line.startswith("| task mean") for line in lines) and any("flat mean" in line for line in lines)
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    "interval, said",
    [
        ([0.1, 0.2], "pretrained is better than random-init on genre (+0.150, 95 % +0.100 to +0.200)"),
        ([-0.2, -0.1], "pretrained is worse than random-init on genre (+0.150, 95 % -0.200 to -0.100)"),
        ([-0.1, 0.2], "pretrained is not separable from random-init on genre (+0.150, 95 % -0.100 to +0.200)"),
    ],
)
def test_verdict_follows_from_the_interval(results, interval, said):
    for row in results["comparisons"]:
        row |= {"value": 0.15, "interval": interval}
    sentence = tables.verdicts(results)[0]
    assert sentence.startswith(said)
    assert ("beats random-init on none of the tasks" in sentence) == (interval[0] < 0)


def test_page_is_whole(probed, results, tmp_path):
    log = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "loss": 4 / step, "target_std": 0.5, "prediction_std": 0.2} for step in range(1, 9)]
    log.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 9, "lo')  # the run was killed
    path = report.write_report([probed / "probes", log], tmp_path / "report")
    page, text = path.read_text(), (tmp_path / "report" / "report.md").read_text()
    genre = results["records"][0]
    low, high = genre["interval"]
    for fact in (f"{genre['value']:.3f}", f"± {genre['spread']:.3f}", f"[{low:.3f}, {high:.3f}]", genre["model_hash"]):
        assert fact in page
    sizes = "/".join(str(genre["split_sizes"][split]) for split in ("train", "validation", "test"))
    for written in (page, text):
        for fact in (
            "The data is synthetic",
            "Protocol quick",
            f"genre {sizes}",
            "2 seeds",
            *tables.verdicts(results)[:1],
        ):
            assert fact in written
        assert "None of the four tasks of the paper is among these results" in written
        written = re.sub(r"base64,[^\"]+", "", written)  # letters by chance
        assert "{{" not in written and "None" not in written.replace("None of the four", "")
    assert "http" not in page
    figures = {file.name for file in (tmp_path / "report" / "figures").iterdir()}
    drawn = {f"{kind}-0-pretrained-synthetic-{task}.png" for kind, task in (
        ("confusion", "genre"), ("confusion", "key"), ("tags", "tags"), ("scatter", "emotion"))}  # fmt: skip
    assert figures == drawn | {"layers-0.png", "layers-1.png", "scores.png", "training.png", "validation-test.png"}
    assert page.count("data:image/png;base64,") == len(figures)
    assert all(f"](figures/{figure})" in text for figure in figures)
    assert tables.format_table(results) in text
    guide = json.loads((tmp_path / "report" / "layer_guide.json").read_text())["layers"]
    assert [entry["task"] for entry in guide] == list(dict.fromkeys(each["task"] for each in results["records"]))
    assert (guide[0]["layer"], guide[0]["probe_settings"]) == (genre["layer"], genre["probe_settings"])
    assert guide[0]["test"] == {"accuracy": {"value": genre["value"], "interval": genre["interval"]}}


def test_results_of_earlier_versions_are_reported(tmp_path):
    """All that lie in the examples as a table, some of each kind as a page."""
    folders = sorted(path.parent for path in EXAMPLES.glob("protocols/**/results.json"))
    folders += sorted((EXAMPLES / "demo_three_seeds").glob("seed-*"))
    assert len(folders) == 24
    contents = [read_results(folder) for folder in folders]
    for content in contents:
        table = tables.format_table(content)
        assert all(f"{each['value']:.3f}" in table for each in content["records"])
    page = report.write_report(folders[::8], tmp_path).read_text()
    for content in contents[::8]:
        assert all(f"{each['value']:.3f}" in page for each in content["records"])


def test_names_of_others_are_shown_and_never_taken_for_markup(probed, results, tmp_path):
    name, tag = "a|b <x> *y* $z \udce9", "[free](jazz) & `_so_` <on>"
    shutil.copytree(probed / "probes" / "predictions", tmp_path / "predictions")
    text = json.dumps(results).replace('"pretrained"', json.dumps(name))
    changed = json.loads(text)
    for each in changed["records"]:
        each |= {"excluded_tags": {"test": [tag]}, "differences": ["less < more"]}
    write_results(tmp_path, changed)
    for path in (tmp_path / "predictions").iterdir():
        with np.load(path) as stored:
            arrays = dict(stored)
        arrays["labels"] = np.array([f"{label} $\\frac$ \udce9" for label in arrays["labels"]])
        np.savez(path, **arrays)
    page = report.write_report(tmp_path, tmp_path / "report").read_text()
    text = (tmp_path / "report" / "report.md").read_text()
    assert "a|b &lt;x&gt; *y* $z \\xe9" in page and "<x>" not in page and "<on>" not in page
    assert "a\\|b &lt;x> \\*y\\* $z \\\\xe9" in text and "\\[free\\](jazz) & \\`\\_so\\_\\` &lt;on>" in text
    assert len({line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("| ")}) <= 2
    assert "<x>" not in text and len(list((tmp_path / "report" / "figures").iterdir())) == 8


def test_a_source_on_other_tasks_in_another_file_keeps_its_name(record):
    first = {"records": [record("pretrained", "gtzan", "accuracy", 0.7)]}
    second = {"records": [record("pretrained", "emomusic", "r2_arousal", 0.6)]}
    names = [[row["source"] for row in part["records"]] for part in tables.distinct_sources([first, second], "ab")]
    assert names == [["ours"], ["ours"]]
    for change in ({"model_hash": "other"}, {"protocol": "jukemir"}, {"task": "gtzan"}):
        changed = {"records": [second["records"][0] | change]}
        parts = tables.distinct_sources([first, changed], "ab")
        assert [part["records"][0]["source"] for part in parts] == ["a/ours", "b/ours"], change


def test_the_papers_averages_are_two_different_means():
    rows = {row["name"]: row["scores"] for title, row in tables.published_rows() if "Table 1" in title}
    assert len(rows) == 15
    for name, scores in rows.items():
        mean = "flat_mean" if name.startswith("Music2Vec") else "task_mean"
        assert scores[mean] == pytest.approx(scores["average"], abs=0.1), name
    assert rows["Music2Vec base30s"]["task_mean"] == pytest.approx(52.74, abs=0.005)
    assert rows["Jukebox"]["flat_mean"] == pytest.approx(68.85, abs=0.005)


@pytest.fixture
def table_of(record):
    """`table_of(protocol, tags, **changes of a task's records)`: our first row, its group, and the whole table."""

    def make(protocol, tags="magnatagatune", **changes):
        scores = {
            ("gtzan", "accuracy"): 0.7, (tags, "roc_auc"): 0.9, (tags, "average_precision"): 0.3,
            ("giantsteps", "weighted_key_score"): 0.5, ("giantsteps", "symmetric_key_score"): 0.55,
            ("emomusic", "r2_arousal"): 0.6, ("emomusic", "r2_valence"): 0.4, ("synthetic-genre", "accuracy"): 0.99,
        }  # fmt: skip
        shared = {"protocol": protocol, "layers": "all"}
        records = [
            record("pretrained", *key, score, **shared | changes.get(key[0], {})) for key, score in scores.items()
        ]
        table = tables.comparison({"records": [*records, record("chance", "gtzan", "accuracy", 0.1)]})
        title, (row,) = next(iter(table["groups"].items()))
        return row, title, table

    return make


def test_our_scores_stand_beside_the_papers(table_of, results):
    row, title, table = table_of("jukemir")
    assert title.startswith("Ours, comparable") and row["marks"] == dict.fromkeys(row["marks"], "")
    assert row["scores"]["task_mean"] == pytest.approx((60 + 70 + 50 + 50) / 4)
    assert row["scores"]["flat_mean"] == pytest.approx((90 + 30 + 70 + 50 + 60 + 40) / 6)
    assert 99 not in row["scores"].values() and 55 not in row["scores"].values()
    assert "mtt_filtered_ap" not in table["columns"] and tables.comparison(results) is None  # synthetic scores
    assert len(table["groups"]) == 5 and "Table 1" in list(table["groups"])[1]


@pytest.mark.parametrize(
    "protocol, changes, column, mark",
    [
        ("quick", {}, "emo_r2_arousal", "q"),
        ("marble", {"gtzan": {"differences": ["test: 289 tracks"]}}, "gtzan_accuracy", "d"),
        ("jukemir", {"gtzan": {"layers": "pilot"}}, "gtzan_accuracy", "l"),
    ],
    ids=["quick", "data", "layers"],
)
def test_what_is_not_comparable_is_marked_and_stands_apart(table_of, protocol, changes, column, mark):
    """Layers that were not tried are marked, and comparable."""
    row, title, table = table_of(protocol, **changes)
    assert title.startswith("Ours, not comparable") == (not row["comparable"]) == (mark != "l")
    assert row["marks"][column] == mark and mark in table["marks"] and column in table["marked"]
    assert row["marks"]["mtt_ap"] == (mark if mark == "q" else "")


def test_filtered_tags_never_enter_the_unfiltered_columns(table_of):
    row, _, table = table_of("jukemir", tags="magnatagatune-filtered")
    assert row["scores"]["mtt_filtered_ap"] == 30 and not {"mtt_ap", "task_mean", "flat_mean"} & row["scores"].keys()
    assert "mtt_filtered_ap" in table["columns"]


def test_the_page_shows_our_scores_beside_the_papers(record, tmp_path):
    scores = (("gtzan", "accuracy", 0.7123), ("emomusic", "r2_arousal", 0.6))
    write_results(tmp_path, {"records": [record("pretrained", *each) for each in scores]})
    page = report.write_report(tmp_path, tmp_path / "report").read_text()
    text = (tmp_path / "report" / "report.md").read_text()
    for written in (page, text):
        assert "71.2" in written and "Music2Vec crop5s" in written and "Ours, not comparable" in written
        assert "q: a protocol of our own" in written and "◇: obtained from the features of" in written
    assert "<td>71.2<i>ql</i></td>" in page and "71.2 ql" in text  # not all layers were tried


def test_the_layer_guide_names_the_runner_up(record):
    layers = {"conv": 0.2, "0": 0.9, "1": 0.4, "2": 0.8}
    changes = {"layer": "0", "validation_by_layer": layers, "probe_settings": SETTINGS}
    (entry,) = guide = tables.layer_guide({"records": [record("pretrained", "gtzan", "accuracy", 0.7, **changes)]})
    assert entry["runner_up"] == {"layer": "2", "validation_score": 0.8}
    header, ((name, layer, probe, *_),) = tables.layer_guide_rows(guide)
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
