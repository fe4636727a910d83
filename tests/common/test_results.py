"""`results.json`, `metrics.jsonl`, `run.json`: what is read, what is refused and by which sentence."""

import json

import pytest

from music2vec_hf.common.files import read_metrics, read_results, read_run, write_results


def test_results_come_back_from_file_or_folder(tmp_path):
    path = write_results(tmp_path, {"records": []})
    assert read_results(path) == read_results(tmp_path) == {"format_version": 1, "records": []}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "not JSON"),
        (b"\xff{}", "not JSON"),
        (b"[]", "format 1"),
        (b"{}", "format 1"),
        (b'{"format_version": 2, "records": []}', "format 1"),
        (b'{"format_version": 1, "records": [{"task": "key"}]}', "a record without one of metric, source,"),
    ],
)
def test_other_files_are_refused(tmp_path, text, words):
    (tmp_path / "results.json").write_bytes(text)
    with pytest.raises(ValueError, match=words) as caught:
        read_results(tmp_path)
    assert "results.json" in str(caught.value) and "music2vec probe" in str(caught.value)


def test_missing_results(tmp_path):
    with pytest.raises(FileNotFoundError, match="music2vec probe"):
        read_results(tmp_path)


def test_metrics_leave_out_a_last_line_that_was_cut(tmp_path):
    records = [{"step": 1, "loss": 0.1}, {"step": 2, "loss": None}]
    text = "\n".join(map(json.dumps, records))
    for end in ("\n", '\n{"step": 3, "lo', '\n{"note": 1}\n'):
        (tmp_path / "metrics.jsonl").write_text(text + end)
        assert read_metrics(tmp_path) == read_metrics(tmp_path / "metrics.jsonl") == records
    (tmp_path / "metrics.jsonl").write_text('{"step": 1\n' + text)
    with pytest.raises(ValueError, match="Line 1 of"):
        read_metrics(tmp_path)
    assert read_metrics(tmp_path / "none") == []


def test_run_record(tmp_path):
    assert read_run(tmp_path) is None
    (tmp_path / "run.json").write_text('{"recipe": "tiny"}')
    assert read_run(tmp_path) == {"recipe": "tiny"}
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json"):
        read_run(tmp_path)
