"""`run.json`: what a run was made of and on, for the model card."""

import json

import pytest
from accelerate import Accelerator
from toy_run import toy

from music2vec_hf.hub.card import describe_run
from music2vec_hf.pretraining.arguments import load_recipe, recipe_names
from music2vec_hf.pretraining.loop import pretrain
from music2vec_hf.pretraining.run_record import nearest_recipe, write_run_record


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_its_own_nearest(name):
    found, differences = nearest_recipe(load_recipe(name))
    assert differences == {} and load_recipe(found) == load_recipe(name)


def test_what_was_changed_is_named_and_what_only_the_machine_sees_is_not(tmp_path):
    (tmp_path / "start").mkdir()
    recipe = load_recipe("prob70", seed=5, num_workers=3, log_every=7, init_from=str(tmp_path / "start"))
    assert nearest_recipe(recipe) == ("prob70", {"seed": 5, "init_from": "start"})


def test_a_run_says_what_it_is_and_the_card_reads_it(toy_corpus, tmp_path):
    recipe = toy()
    pretrain(recipe, toy_corpus, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert str(tmp_path) not in json.dumps(record) and str(toy_corpus) not in json.dumps(record)
    assert record["corpus"]["name"] == toy_corpus.name and " h of audio" in record["corpus"]["audio"]
    run = describe_run(tmp_path / "run")
    assert run["steps"] == recipe.max_steps
    heard = recipe.max_steps * recipe.rows_per_update * recipe.crop_seconds
    assert run["hours_heard"] == pytest.approx(heard / 3600)
    assert 0 < run["hours_worked"] == run["device_hours"]
    (session,) = run["sessions"]
    assert session["device"] == "cpu" and session["cpu"] and session["first_step"] == 0


def test_a_resumed_run_adds_its_machine_and_forgets_steps_that_were_lost(tmp_path):
    for first_step in (0, 4, 8, 4):
        write_run_record(
            tmp_path, load_recipe("tiny"), "someone/corpus", "a stream", first_step, Accelerator(cpu=True)
        )
    record = json.loads((tmp_path / "run.json").read_text())
    assert [session["first_step"] for session in record["sessions"]] == [0, 4]
    assert record["corpus"] == {"name": "someone/corpus", "audio": "a stream", "licence": None, "summary": None}


def test_the_corpus_brings_its_licence_and_summary_and_a_damaged_card_stops_nothing(tmp_path):
    corpus = tmp_path / "songs"
    corpus.mkdir()
    (corpus / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Songs\n")
    (corpus / "corpus.json").write_text(json.dumps({"hours": 3.5}))

    def described():
        write_run_record(tmp_path, load_recipe("tiny"), corpus, "3.5 h of audio", 0, Accelerator(cpu=True))
        return json.loads((tmp_path / "run.json").read_text())["corpus"]

    assert (described()["licence"], described()["summary"]) == ("cc-by-4.0", {"hours": 3.5})
    (corpus / "README.md").write_text("---\n: [\n---\n")
    (corpus / "corpus.json").write_text("{")
    assert (described()["licence"], described()["summary"]) == (None, None)
