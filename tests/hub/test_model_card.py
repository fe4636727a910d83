"""The generated model card: its numbers are those of the files, and where there is no file it says so."""

import copy
import json
import re
import shutil

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard, metadata_load
from safetensors.torch import load_file, save_file
from toy_model import save_model

from music2vec_hf import Music2VecConfig, Music2VecForSequenceClassification
from music2vec_hf.features.encoders import load_model, model_hash
from music2vec_hf.hub.card import describe_run, read_scores, write_model_card

REPO = "someone/tiny"


@pytest.fixture
def folder(tiny_student, tmp_path):
    """A model without a run and without scores."""
    path = tmp_path / "a secret place" / "model"
    return save_model(tiny_student, path)


def card_of(folder, **options):
    return write_model_card(folder, REPO, "cc-by-4.0", read_scores(folder), **options)


def section(card, title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", card, flags=re.M | re.S)[1]


def write_results(folder, where, model_hash, **changes):
    """A results.json of one task: the model, random weights, chance, and a model that is another one."""
    values = {"source": "model", "source_kind": "model", "model_hash": model_hash, "value": 0.71234}
    shared = {
        "task": "toy-key", "synthetic": False, "protocol": "quick", "excluded_tags": {}, "differences": [],
        "split_sizes": {"train": 31, "validation": 32, "test": 33}, "layer": "2",
        "probe_settings": {"kind": "mlp", "learning_rate": 0.00123, "hidden_size": 512},
        "metric": "weighted_key_score", "validation_metric": "weighted_key_score", "validation_score": 0.6543,
        "validation_by_layer": {"conv": 0.111, "2": 0.6543}, "seeds": [0, 1, 2], "interval": [0.70111, 0.72222],
        "library_versions": {"python": "3.11.7", "torch": "9.9.9"},
    }  # fmt: skip
    chance = {"layer": None, "probe_settings": None, "validation_score": None, "validation_by_layer": {}, "seeds": []}
    records = [
        shared | values | changes,
        shared | values | {"source": "random-init", "source_kind": "random-init", "model_hash": "1", "value": 0.333},
        shared | values | chance | {"source": "chance", "source_kind": "chance", "model_hash": None, "value": 0.0801},
        shared | values | {"source": "rival", "model_hash": "another", "value": 0.999},
    ]
    compared = {"source": "model", "baseline": "random-init", "task": changes.get("task", "toy-key")}
    comparisons = [
        compared | {"value": 0.379, "interval": [0.3511, 0.4011]},
        compared | {"source": "rival", "value": 0.666, "interval": [0.1, 0.9]},
    ]
    content = {"format_version": 1, "records": records, "averages": [], "comparisons": comparisons}
    where.mkdir(parents=True, exist_ok=True)
    (where / "results.json").write_text(json.dumps(content))
    return content


def hash_of(folder):
    return model_hash(load_model(folder)[0])


def test_without_run_and_results_it_says_so(folder):
    card = card_of(folder)
    for title in ("Training data", "Training", "Environmental cost", "Evaluation", "Which layer to use"):
        assert section(card, title).strip().startswith("Not recorded"), title
    assert "model-index" not in card


def test_the_shape_is_that_of_the_files(folder, tiny_student):
    card = card_of(folder)
    assert f"{sum(p.numel() for p in tiny_student.parameters()):,} (F32)" in card
    facts = ("| transformer layers x width | 3 x 16 |", "| frames a second | 50 |", "prediction head of pretraining")
    assert all(fact in card for fact in facts)


def test_scores_stand_beside_the_baselines_and_in_the_metadata(folder, tmp_path):
    content = write_results(folder, folder.parent / "probes", hash_of(folder))
    card = card_of(folder)
    evaluation = section(card, "Evaluation")
    assert "| task: metric | this model | random-init | chance |" in evaluation
    row = "| toy-key: weighted key score | 0.712 [0.701, 0.722] | 0.333 [0.701, 0.722] | 0.080 [0.701, 0.722] |"
    assert row in evaluation and "| toy-key | **+0.379 [+0.351, +0.401]** |" in evaluation
    assert "toy-key 31/32/33" in evaluation and "torch 9.9.9" in evaluation and "synthetic" not in evaluation
    assert "0.999" not in card and "0.666" not in card  # the rival's
    guide = section(card, "Which layer to use")
    probe = "kind mlp, learning rate 0.00123, hidden size 512"
    assert f"| toy-key | quick | 2 | weighted key score 0.654 | {probe} |" in guide
    assert "conv: 0.111, 2: 0.654" in guide

    (tmp_path / "README.md").write_text(card)
    metadata = metadata_load(tmp_path / "README.md")
    assert metadata["license"] == "cc-by-4.0" and metadata["pipeline_tag"] == "feature-extraction"
    (result,) = ModelCard(card).data.eval_results
    assert isinstance(result, EvalResult)
    assert (result.dataset_name, result.metric_type, result.dataset_split) == ("toy-key", "weighted_key_score", "test")
    assert result.metric_value == round(content["records"][0]["value"], 4)
    assert result.metric_args["interval_95"] == [0.7011, 0.7222]
    assert result.metric_args["comparable_with_published_scores"] is True


def test_what_is_not_comparable_is_marked(folder):
    reason = "12 tracks\nare | missing <b>"
    write_results(folder, folder.parent, hash_of(folder), differences=[reason], synthetic=True, task="odd|task")
    card = card_of(folder)
    assert "- Not comparable with published scores: odd\\|task: 12 tracks are \\| missing &lt;b>" in card
    assert "say nothing about real music" in card
    assert "odd\\|task: weighted key score" in card  # and the table keeps its columns
    assert ModelCard(card).data.eval_results[0].metric_args["comparable_with_published_scores"] is False


def test_scores_of_other_weights_are_not_taken(folder):
    write_results(folder, folder.parent / "probes", hash_of(folder))
    weights = load_file(folder / "model.safetensors")
    weights["data2vec_audio.masked_spec_embed"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    card = card_of(folder)
    assert "no `results.json` with scores of these weights (1 of other weights were found)" in card
    assert "0.712" not in card
    with pytest.raises(ValueError, match="has no score of the weights"):
        read_scores(folder, [folder.parent / "probes"])


def test_results_of_several_tasks_are_joined_and_the_same_score_twice_is_refused(folder):
    digest = hash_of(folder)
    write_results(folder, folder / "probes", digest)
    write_results(folder, folder.parent / "more", digest, task="toy-genre")
    assert {result.dataset_name for result in ModelCard(card_of(folder)).data.eval_results} == {"toy-key", "toy-genre"}
    write_results(folder, folder.parent / "third", digest)
    with pytest.raises(ValueError, match=r"both have scores on toy-key\. Name one with --results"):
        read_scores(folder)
    assert len(read_scores(folder, [folder / "probes"])["records"]) == 3


def test_files_of_others_with_that_name_are_passed_over(folder):
    for name, text in {"a": "no json", "b": "[]", "c": json.dumps({"format_version": 2, "records": []})}.items():
        (folder.parent / name).mkdir()
        (folder.parent / name / "results.json").write_text(text)
    assert read_scores(folder)["records"] == []
    with pytest.raises(ValueError, match="no results file of format 1"):
        read_scores(folder, [folder.parent / "c"])


SESSION = {"first_step": 0, "device": "cpu", "num_devices": 1, "precision": "fp32"}
SESSION |= {"cpu": "Abacus 3000", "cpu_cores": 7}
RUN = {
    "recipe": "crop5s",
    "differences": {"seed": 77},
    "audio_seconds_per_step": 90.0,
    "corpus": {"name": "folk", "audio": "5.25 h of audio (630 clips)", "licence": "cc0-1.0", "summary": None},
    "sessions": [
        SESSION | {"versions": {"torch": "2.11"}},
        SESSION | {"first_step": 40, "device": "GPU X", "num_devices": 4, "versions": {"torch": "2.11"}},
    ],
}


def write_run(folder, run=RUN):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run))
    # 40 steps at 10 s of audio a second, then 40 at 90.
    steps = [(20, 10.0), (40, 10.0), (60, 90.0), (80, 90.0)]
    lines = [
        {"step": step, "loss": 9.0 - step / 10, "audio_seconds_per_second": rate, "skipped_updates": step // 40}
        for step, rate in steps
    ]
    lines.insert(2, {"step": 40, "probe_accuracy": 0.4})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 99, "loss"')


def test_a_run_is_added_up(folder):
    write_run(folder)
    run = describe_run(folder)
    assert (run["steps"], run["loss"], run["skipped_updates"]) == (80, 1.0, 2)
    assert run["hours_heard"] == pytest.approx(80 * 90 / 3600)
    assert run["hours_worked"] == pytest.approx((40 * 9 + 40 * 1) / 3600)
    assert run["device_hours"] == pytest.approx((40 * 9 * 1 + 40 * 1 * 4) / 3600)
    card = card_of(folder)
    training = section(card, "Training")
    for text in ("`crop5s` with `seed` 77", "| 80 |", "| 2.00 |", "0.11 hours", "1.0000", "fp32", "torch 2.11"):
        assert text in training, text
    assert "Abacus 3000, 7 cores; then 4 x GPU X (Abacus 3000, 7 cores)" in training
    assert "0.14 device-hours" in section(card, "Environmental cost")
    assert "Energy was not\nlogged" in section(card, "Environmental cost")
    corpus = "Corpus `folk`: 5.25 h of audio (630 clips). Licence of the corpus: cc0-1.0."
    assert corpus in section(card, "Training data")


def test_a_checkpoint_has_only_its_own_steps(folder):
    write_run(folder)
    checkpoint = folder / "checkpoint-40"
    shutil.copytree(folder, checkpoint)
    for name in ("run.json", "metrics.jsonl"):
        (checkpoint / name).unlink()
    (checkpoint / "trainer_state.json").write_text(json.dumps({"step": 40, "recipe": {}}))
    run = describe_run(checkpoint)
    assert run["steps"] == 40 and run["hours_worked"] == pytest.approx(0.1) and len(run["sessions"]) == 1
    assert "GPU X" not in card_of(checkpoint)
    # What Trainer calls so is another run.
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": 40}))
    assert describe_run(checkpoint) is None


def test_the_corpus_is_described_by_its_own_summary(folder):
    run = copy.deepcopy(RUN)
    splits = {"train": {"hours": 4.5678, "clips": 411, "tracks": 97, "shards": 1}}
    run["corpus"] |= {"licence": None, "summary": {"splits": splits, "rejected_files": 13}}
    write_run(folder, run)
    data = section(card_of(folder), "Training data")
    assert "| train | 4.57 | 411 | 97 |" in data and "13 files were rejected" in data
    assert "Licence of the corpus: not recorded." in data


def test_a_run_that_was_killed_before_its_first_record(folder):
    write_run(folder)
    (folder / "metrics.jsonl").unlink()
    card = card_of(folder)
    assert "| optimiser steps | not recorded |" in card
    assert section(card, "Environmental cost").strip().startswith("Not recorded")


def test_a_head_is_told_with_its_labels(tiny_config, tmp_path):
    labels = {index: name for index, name in enumerate(["folk", "free | jazz", "techno"])}
    head = {"id2label": labels, "classifier_layer": "weighted", "problem_type": "multi_label_classification"}
    config = Music2VecConfig(**tiny_config.to_dict() | head)
    save_model(Music2VecForSequenceClassification(config), tmp_path / "tagger")
    card = card_of(tmp_path / "tagger")
    assert "| labels | folk, free \\| jazz, techno |" in card
    assert "| the head reads | a learned weighted sum of all layers |" in card
    assert ModelCard(card).data.pipeline_tag == "audio-classification"
    assert 'pipeline("audio-classification", model="someone/tiny", trust_remote_code=True)' in card


def test_it_is_valid_and_tidy(folder):
    write_run(folder)
    write_results(folder, folder.parent / "probes", hash_of(folder))
    card = card_of(folder, revision="next")
    assert "a secret place" not in card
    assert 'revision="next"' in card and "{{" not in card and "None" not in card and "\n\n\n" not in card
    yaml.safe_load(card.split("---\n")[1])
    lines = card.splitlines()
    for previous, line, following in zip(lines, lines[1:], lines[2:], strict=False):
        if line.startswith("| ---"):
            columns = len(re.findall(r"(?<!\\)\|", line))
            assert columns == len(re.findall(r"(?<!\\)\|", previous)) == len(re.findall(r"(?<!\\)\|", following))
        if line.startswith("#"):
            assert previous == following == "", line
