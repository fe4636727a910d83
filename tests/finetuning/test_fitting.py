"""Fine-tuning runs: what each mode trains, what is saved, and that a run that was killed goes on as if it had not."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoModelForAudioClassification, TrainerCallback, pipeline

import music2vec_hf.finetuning.fitting as fitting
from music2vec_hf import Music2VecFeatureExtractor, Music2VecForSequenceClassification
from music2vec_hf.common import computing
from music2vec_hf.finetuning.clips import RandomCrops, load_labelled_corpus
from music2vec_hf.finetuning.fitting import (
    WeightedLoss,
    choose_trained,
    finetune,
    make_optimizer,
    standardise_features,
)
from music2vec_hf.synthetic.generator import load_synthetic_labels


def weights(folder):
    return Music2VecForSequenceClassification.from_pretrained(folder).state_dict()


def changed(before, after):
    assert list(before) == list(after)
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("mode", "trained"),
    [
        ("frozen", ()),
        ("last_k", ("encoder.layers.2.",)),
        ("lora", tuple(f"encoder.layers.{i}.attention.{p}_proj.weight" for i in range(3) for p in "qv")),
        ("full", ("feature_projection.", "encoder.")),
        ("full and front end", ("feature_extractor.", "feature_projection.", "encoder.")),
    ],
)
def test_a_mode_trains_what_it_says(mode, trained, settings, pretrained, monkeypatch):
    plan = {"mode": mode.split()[0], "train_front_end": mode.endswith("front end"), "num_train_epochs": 1}
    results = finetune(settings(**plan, last_k=1, learning_rate=1e-2))
    assert 0 <= results["eval_accuracy"] <= 1
    monkeypatch.setitem(sys.modules, "peft", None)  # the result of LoRA does not need it
    model, info = AutoModelForAudioClassification.from_pretrained(settings().output_dir, output_loading_info=True)
    assert type(model) is Music2VecForSequenceClassification
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    moved = changed(weights(pretrained), model.state_dict())
    assert {"classifier.weight", "classifier.bias", "feature_mean", "feature_std"} <= moved
    moved = {name.removeprefix("data2vec_audio.") for name in moved if name.startswith("data2vec_audio.")}
    assert all(name.startswith(trained) for name in moved)
    for start in trained:
        assert any(name.startswith(start) for name in moved), start


def test_merged_lora_gives_the_same_logits(settings, tiny_config, batch):
    torch.manual_seed(0)
    model = Music2VecForSequenceClassification(tiny_config).eval()
    plain = model(batch[0]).logits
    names = list(model.state_dict())
    tuner = choose_trained(model, settings(mode="lora"))
    assert {p.shape[0] for n, p in model.named_parameters() if "lora_A" in n} == {8}
    torch.testing.assert_close(model(batch[0]).logits, plain)  # B starts at zero
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    with_adapters = model(batch[0]).logits
    assert (with_adapters - plain).abs().max() > 1e-3
    merged = tuner.merge_and_unload()
    assert list(merged.state_dict()) == names
    torch.testing.assert_close(merged(batch[0]).logits, with_adapters, atol=1e-5, rtol=0)


def test_two_learning_rates(settings, tiny_config):
    model = Music2VecForSequenceClassification(tiny_config)
    args = settings(mode="full", learning_rate=1e-5, head_learning_rate=1e-2, weight_decay=0.1)
    choose_trained(model, args)
    groups = make_optimizer(model, args).param_groups
    by_tensor = {id(tensor): group for group in groups for tensor in group["params"]}
    assert by_tensor[id(model.classifier.weight)]["lr"] == 1e-2
    layer = model.data2vec_audio.encoder.layers[0]
    assert by_tensor[id(layer.feed_forward.output_dense.weight)]["lr"] == 1e-5
    assert by_tensor[id(layer.feed_forward.output_dense.weight)]["weight_decay"] == 0.1
    assert by_tensor[id(layer.layer_norm.weight)]["weight_decay"] == 0.0
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())


def test_a_gpu_that_torch_cannot_use_is_told(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(computing, "_GPU", tmp_path)
    with pytest.raises(ValueError, match="torch cannot use it"):
        finetune(settings(use_cpu=False))


class Kill(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(mode, settings, monkeypatch):
    """Killed in the second epoch (4 or 5 steps each), after a checkpoint in the middle of the first."""
    plan = {"mode": mode, "num_train_epochs": 2, "save_strategy": "steps", "eval_strategy": "steps"}
    plan |= {"save_steps": 3, "eval_steps": 3, "early_stopping_patience": 9, "learning_rate": 1e-3}
    plan |= {"test_split": "test"}
    whole = finetune(settings("whole", **plan))
    make_trainer = fitting._make_trainer

    def killing(*args):
        trainer = make_trainer(*args)
        trainer.add_callback(Kill(5))
        return trainer

    with monkeypatch.context() as patched:
        patched.setattr(fitting, "_make_trainer", killing)
        with pytest.raises(KeyboardInterrupt):
            finetune(settings("killed", **plan))
    with pytest.raises(ValueError, match="already holds a run"):
        finetune(settings("killed", **plan))
    for name, other in (("seed", 3), ("label", "key"), ("crop_seconds", 0.5)):
        with pytest.raises(ValueError, match=f"was begun with `{name}` .*, now it is .*{other}"):
            finetune(settings("killed", **plan | {name: other}, resume=True))
    resumed = finetune(settings("killed", **plan, resume=True))
    assert changed(weights(settings("whole").output_dir), weights(settings("killed").output_dir)) == set()
    for name in ("eval_accuracy", "eval_loss", "test_accuracy", "test_loss"):
        assert resumed[name] == whole[name]


def test_evaluation_is_what_the_pipeline_answers(settings, synthetic):
    """Whole clips in windows of 0.8 s (the last one shorter), averaged as the pipeline does."""
    results = finetune(settings(window_seconds=0.8, learning_rate=1e-3, test_split="test", num_train_epochs=1))
    classify = pipeline("audio-classification", model=settings().output_dir)
    rows = [row for row in load_synthetic_labels(synthetic) if row["split"] == "test"]
    right = [classify(str(synthetic / row["file_name"]))[0]["label"] == row["genre"] for row in rows]
    assert results["test_accuracy"] == pytest.approx(np.mean(right))


def test_the_best_epoch_is_kept_and_early_stopping_stops(settings):
    args = settings(num_train_epochs=8, early_stopping_patience=1, learning_rate=1e-3)
    results = finetune(args)
    states = sorted(Path(args.output_dir).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    state = json.loads((states[-1] / "trainer_state.json").read_text())
    scores = [record["eval_score"] for record in state["log_history"] if "eval_score" in record]
    assert len(scores) < 8  # a few clips: the score cannot rise eight times in a row
    assert results["eval_score"] == max(scores)


def test_tags_and_regression(settings, synthetic):
    several = {"problem_type": "multi_label_classification", "class_weights": True}
    tags = finetune(settings("tags", label="tags", **several, num_train_epochs=1))
    assert 0 <= tags["eval_average_precision"] <= 1 and 0 <= tags["eval_roc_auc"] <= 1
    values = finetune(settings("emotion", label=["arousal", "valence"], num_train_epochs=1))
    assert set(values) >= {"eval_r2_arousal", "eval_r2_valence"}
    model = AutoModelForAudioClassification.from_pretrained(settings("emotion").output_dir)
    train = [row for row in load_synthetic_labels(synthetic) if row["split"] == "train"]
    assert model.config.problem_type == "regression"
    assert model.config.target_mean[0] == pytest.approx(np.mean([row["arousal"] for row in train]), abs=1e-5)
    assert model.config.id2label == {0: "arousal", 1: "valence"}


def test_the_buffers_standardise_the_training_features(settings, synthetic, pretrained):
    model, extractor = Music2VecForSequenceClassification.from_pretrained(pretrained), Music2VecFeatureExtractor()
    corpus = load_labelled_corpus(synthetic, "train")
    crops = RandomCrops(corpus, np.zeros(len(corpus)), extractor, 2.0, seed=0)  # whole clips
    standardise_features(model, crops, settings())
    clips = [soundfile.read(audio["path"], dtype="float32")[0] for audio in corpus["audio"]]
    with torch.no_grad():
        features = model.pool(extractor(clips, sampling_rate=16_000, return_tensors="pt")["input_values"])[0]
    standard = (features - model.feature_mean) / model.feature_std
    torch.testing.assert_close(standard.mean(0), torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(standard.std(0, unbiased=False), torch.ones(16), atol=1e-3, rtol=0)


def test_weighted_losses_do_not_depend_on_micro_batches():
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    classes, tags = torch.arange(8) % 3, (logits > 0.3).float()
    scale = torch.tensor([1.0, 2.0, 0.5])
    for labels, several in ((classes, False), (tags, True)):
        loss = WeightedLoss(scale, several)
        whole = loss({"logits": logits}, labels)
        parts = [loss({"logits": logits[part]}, labels[part], labels.numel()) for part in (slice(3), slice(3, 8))]
        torch.testing.assert_close(sum(parts), whole)
        assert not torch.isclose(whole, WeightedLoss(torch.ones(3), several)({"logits": logits}, labels))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "mood"}, "no column mood in the split train. It has audio"),
        ({"mode": "last_k", "last_k": 9}, "`last_k` is 9 but the model has 3 layers"),
        ({"label": "arousal", "class_weights": True}, "leave them out for regression"),
        ({"label": "genre", "problem_type": "regression"}, "Regression needs numbers in genre"),
        ({"label": "track_id"}, "unknown to the training split"),
        ({"classifier_layer": 9}, "`classifier_layer` is 9. Use a layer from 0 to 3"),
        ({"metric_for_best_model": "f1"}, "`metric_for_best_model` is 'f1'. Use one of score, loss, accuracy"),
    ],
)
def test_bad_input_gets_one_sentence(changes, message, settings):
    with pytest.raises(ValueError, match=message):
        finetune(settings(**changes))
