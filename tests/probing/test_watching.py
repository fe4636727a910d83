"""A report that is written again while runs go on; time passes only where the test lets it."""

import json
import os

import pytest

from music2vec_hf.cli import main
from music2vec_hf.common.files import write_json
from music2vec_hf.probing.watching import watch_runs


@pytest.fixture
def run(tmp_path):
    """The folder of a run of 30 steps that has just begun."""
    write_json(tmp_path / "run" / "run.json", {"max_steps": 30})
    return tmp_path / "run"


def reach(run, *steps):
    with (run / "metrics.jsonl").open("a") as log:
        log.writelines(json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in steps)


def test_the_page_is_written_until_the_run_is_over(run, tmp_path):
    pages, waited, later = [], [], [(10,), (20,), (30,)]

    def sleep(seconds):
        waited.append(seconds)
        reach(run, *later.pop(0))

    for line in watch_runs([run], tmp_path / "page", 5.0, sleep):
        pages.append((tmp_path / "page" / "report.html").read_text())
        assert f"run step {10 * len(waited)} of 30, {'going on' if later else 'finished'}" in line
    assert waited == [5.0, 5.0, 5.0] and not later
    assert "Pretraining of run" not in pages[0]  # no record yet
    assert len({page for page in pages[1:] if "Pretraining of run" in page}) == 3


def test_a_run_that_writes_nothing_for_an_hour_is_over(run, tmp_path):
    reach(run, 10)
    os.utime(run / "metrics.jsonl", (0, 0))
    (line,) = watch_runs([run], tmp_path / "page", 5.0, sleep=None)
    assert "step 10 of 30, no record for an hour" in line


def test_a_run_of_an_earlier_version_is_over_when_its_model_is_there(run, tmp_path):
    write_json(run / "run.json", {})
    reach(run, 10)
    steps, end = [], lambda seconds: steps.append(write_json(run / "config.json", {}))
    lines = watch_runs([run], tmp_path / "page", 5.0, end)
    assert ["going on" in line for line in lines] == [True, False] and len(steps) == 1


def test_the_command_watches(run, tmp_path, capsys):
    reach(run, 30)
    assert main(["report", str(run), "--output", str(tmp_path / "page"), "--watch"]) == 0
    assert "run step 30 of 30, finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, sentence",
    [(["run", "--watch", "0"], "`--watch` is 0."), (["probes", "--watch"], "There is no pretraining run to watch.")],
)
def test_what_cannot_be_watched_is_refused(words, sentence, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words, "--output", "page"]) == 1
    assert sentence in capsys.readouterr().err and not (tmp_path / "page").exists()
