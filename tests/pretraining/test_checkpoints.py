"""`run.json`: what a run was made of and on, for the model card."""

import functools
import json

import pytest
from accelerate import Accelerator
from toy_run import toy

from music2vec_hf.hub.card import describe_run
from music2vec_hf.pretraining import checkpoints
from music2vec_hf.pretraining.arguments import load_recipe, recipe_names
from music2vec_hf.pretraining.checkpoints import nearest_recipe, write_run_record


def test_the_nearest_recipe_and_what_was_changed_but_for_what_only_the_machine_sees(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "load_recipe", functools.cache(load_recipe))  # each is compared with all
    for name in recipe_names():
        recipe = load_recipe(name)
        found, differences = nearest_recipe(recipe)
        assert differences == {} and (found == name or load_recipe(found) == recipe)
    (tmp_path / "start").mkdir()
    recipe = load_recipe("prob70", seed=5, layerdrop=0.0, num_workers=3, init_from=str(tmp_path / "start"))
    assert nearest_recipe(recipe) == ("prob70", {"seed": 5, "layerdrop": 0.0, "init_from": "start"})


def test_a_run_says_what_it_is_and_the_card_reads_it(whole_run, toy_corpus):
    recipe, text = toy(), (whole_run / "run.json").read_text()
    assert str(whole_run.parent) not in text and str(toy_corpus) not in text
    corpus = json.loads(text)["corpus"]
    assert corpus["name"] == toy_corpus.name and " h of audio" in corpus["audio"]
    run = describe_run(whole_run)
    assert run["steps"] == recipe.max_steps
    heard = recipe.max_steps * recipe.rows_per_update * recipe.crop_seconds
    assert run["hours_heard"] == pytest.approx(heard / 3600)
    assert 0 < run["hours_worked"] == run["device_hours"]
    (session,) = run["sessions"]
    assert session["device"] == "cpu" and session["cpu"] and session["first_step"] == 0
    assert session["precision"] == "fp32"


def record_of(tmp_path, corpus, first_step=0):
    write_run_record(tmp_path, load_recipe("tiny"), corpus, "a stream", first_step, Accelerator(cpu=True))
    return json.loads((tmp_path / "run.json").read_text())


def test_a_resumed_run_adds_its_machine_and_forgets_steps_that_were_lost(tmp_path):
    record = [record_of(tmp_path, "someone/corpus", first_step) for first_step in (0, 4, 8, 4)][-1]
    assert [session["first_step"] for session in record["sessions"]] == [0, 4]
    assert record["corpus"] == {"name": "someone/corpus", "audio": "a stream", "licence": None, "summary": None}


def test_the_corpus_brings_its_licence_and_summary_and_a_damaged_card_stops_nothing(tmp_path):
    corpus = tmp_path / "songs"
    corpus.mkdir()
    for card, summary, expected in (
        ("---\nlicense: cc-by-4.0\n---\n# Songs\n", '{"hours": 3.5}', ("cc-by-4.0", {"hours": 3.5})),
        ("---\n: [\n---\n", "{", (None, None)),
    ):
        (corpus / "README.md").write_text(card)
        (corpus / "corpus.json").write_text(summary)
        described = record_of(tmp_path, corpus)["corpus"]
        assert (described["licence"], described["summary"]) == expected
