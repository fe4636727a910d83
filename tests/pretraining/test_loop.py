"""The loop end to end: it learns, does what the recipe says, and leaves a model and its records."""

import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from safetensors.torch import load_file
from toy_audio import noise
from toy_model import SIZES
from toy_run import QUIET, losses, read_records, toy
from transformers import AutoModel

from music2vec_hf import EMATeacher
from music2vec_hf.pretraining import TrainingStopped
from music2vec_hf.pretraining.arguments import load_recipe, recipe_names
from music2vec_hf.pretraining.checkpoints import checkpoints
from music2vec_hf.pretraining.loop import pretrain
from music2vec_hf.pretraining.schedules import tri_stage_learning_rate
from music2vec_hf.pretraining.starting import count_micro_steps

MONITORS = {
    "step", "loss", "masked_share", "target_std", "prediction_std", "feature_std", "target_rank", "position_share",
    "grad_norm", "learning_rate", "ema_decay", "skipped_updates", "audio_seconds_per_second", "data_wait_share",
    "peak_memory_gib",
}  # fmt: skip


def test_a_run_leaves_a_model_its_records_and_the_trackers(whole_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    records = read_records(whole_run)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert all(set(record) == MONITORS for record in records)
    assert records[0]["learning_rate"] == pytest.approx(tri_stage_learning_rate(0, 6, 5e-4))
    assert AutoModel.from_pretrained(whole_run).config.hidden_size == 16
    assert [path.name for path in checkpoints(whole_run)] == ["checkpoint-4", "checkpoint-6"]
    (events,) = whole_run.rglob("events.out.tfevents.*")
    found = EventAccumulator(str(events.parent))
    found.Reload()
    for name in MONITORS - {"step"}:
        scalars = [(event.step, event.value) for event in found.Scalars(name)]
        assert scalars == [(record["step"], pytest.approx(record[name], rel=1e-5)) for record in records]


def test_a_tracker_that_is_not_installed_is_refused(toy_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda *args, **kwargs: [])
    with pytest.raises(ValueError, match=r"`report_to` is trackio, which is not installed: `pip install trackio`"):
        pretrain(toy(report_to="trackio"), toy_corpus, tmp_path / "run")


def test_it_learns(toy_corpus, tmp_path):
    recipe = toy(max_steps=40, learning_rate=3e-3, phase_ratio=[0.1, 0.8, 0.1], save_every=40)
    records = read_records(pretrain(recipe, toy_corpus, tmp_path / "run"))
    first, last = (sum(r["loss"] for r in part) / 10 for part in (records[:10], records[-10:]))
    assert last < 0.8 * first


@pytest.mark.parametrize("masks_per_crop", [1, 3])
def test_micro_batches_give_the_same_update_and_the_teacher_follows_once(
    masks_per_crop, toy_corpus, tmp_path, monkeypatch
):
    steps, update = [], EMATeacher.update
    monkeypatch.setattr(EMATeacher, "update", lambda self, *of: steps.append(of[1]) or update(self, *of))
    found = []
    for seconds in (4.0, 1.0):
        recipe = toy(**QUIET, max_steps=3, masks_per_crop=masks_per_crop, max_seconds_per_device=seconds)
        found.append(read_records(pretrain(recipe, toy_corpus, tmp_path / str(seconds))))
    for whole, cut in zip(*found, strict=True):
        for name in ("step", "loss", "grad_norm"):
            assert cut[name] == pytest.approx(whole[name], rel=1e-4)
        assert cut["position_share"] == pytest.approx(whole["position_share"], abs=1e-3)
    assert steps == [1, 2, 3] * 2


def test_what_the_launcher_says_of_precision_compiling_and_accumulating_changes_nothing(
    whole_run, toy_corpus, tmp_path, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    output = pretrain(toy(max_grad_norm=0.0), toy_corpus, tmp_path / "run")
    assert losses(output) == losses(whole_run)


@pytest.mark.parametrize("asked", ["FSDP", "DEEPSPEED"])
def test_a_launcher_that_asks_for_parts_of_a_model_is_refused(asked, toy_corpus, tmp_path, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{asked}", "true")
    with pytest.raises(ValueError, match=f"asks for {asked}, but every device trains a whole copy"):
        pretrain(toy(), toy_corpus, tmp_path / "run")


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_front_end_without_gradient_stays_and_the_rest_learns(recomputed, toy_corpus, tmp_path):
    recipe = toy(feature_grad_mult=0.0, weight_decay=0.1, gradient_checkpointing=recomputed, save_every=1, max_steps=2)
    output = pretrain(recipe, toy_corpus, tmp_path / "run")
    first, last = (load_file(path / "model.safetensors") for path in checkpoints(output))
    same = {name for name in first if first[name].equal(last[name])}
    assert same == {name for name in first if ".feature_extractor." in name}


def test_clips_that_cannot_be_read_are_counted_in_the_records(toy_corpus, tmp_path):
    shutil.copytree(toy_corpus, tmp_path / "damaged")
    (shard,) = (tmp_path / "damaged" / "data").iterdir()
    table = pq.read_table(shard)
    clips = table["audio"].to_pylist()
    for clip in clips[:2]:
        clip["bytes"] = clip["bytes"][:300]
    audio = pa.array(clips, table.schema.field("audio").type)
    pq.write_table(table.set_column(0, table.schema.field("audio"), audio), shard)
    # Three steps of four crops are an epoch of the twelve clips.
    records = read_records(pretrain(toy(max_steps=3), tmp_path / "damaged", tmp_path / "run"))
    counts = [record.get("failed_clips", 0) for record in records]
    assert counts == sorted(counts) and counts[-1] == 2


def test_micro_steps_follow_from_what_a_device_holds():
    recipe = toy(batch_seconds=10.0)
    assert [count_micro_steps(recipe, processes, 3.0) for processes in (1, 2, 3, 10)] == [4, 2, 2, 1]


@pytest.mark.parametrize("bad", [{"max_steps": 0}, {"max_steps": 10, "phase_ratio": (0.5, 0.2, 0.1)}])
def test_a_schedule_that_cannot_be_is_refused(bad):
    with pytest.raises(ValueError, match="three shares that add up to 1"):
        tri_stage_learning_rate(0, peak=1.0, **bad)


@pytest.fixture(scope="module")
def long_corpus(tmp_path_factory):
    """Three songs of 31 s: long enough for every recipe's crops."""
    folder = tmp_path_factory.mktemp("long")
    for index in range(3):
        soundfile.write(folder / f"{index}.flac", noise(31, index), 16_000)
    return folder


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_trains_at_toy_width(name, long_corpus, tmp_path):
    """One of them on crops as long as it says, the others on at most 2 s."""
    whole = load_recipe(name)
    layers = whole.num_hidden_layers
    seconds = whole.crop_seconds if name == "base30s" else min(whole.crop_seconds, 2.0)
    toy_width = SIZES | {"num_hidden_layers": layers, "conv_dim": [8] * len(whole.conv_dim)}
    small = {"max_steps": 1, "log_every": 1, "num_workers": 0, "precision": "fp32"}
    recipe = load_recipe(name, **toy_width, **small, crop_seconds=seconds, batch_seconds=seconds)
    records = read_records(pretrain(recipe, long_corpus, tmp_path / "run"))
    assert [record["step"] for record in records] == [1]
    assert all(np.isfinite(record["loss"]) and record["grad_norm"] > 0 for record in records)
    assert AutoModel.from_pretrained(tmp_path / "run").config.num_hidden_layers == layers


def test_a_folder_without_preparation_and_a_silent_one_that_ends_in_the_collapse_guard(tmp_path):
    """Targets of silence vary with the position alone: padding marks the edges. The reference's rule sees nothing."""
    (tmp_path / "silence").mkdir()
    for index in range(4):
        soundfile.write(tmp_path / "silence" / f"{index}.wav", np.zeros(32_000), 16_000)
    with pytest.raises(TrainingStopped, match=r"`feature_std` is 0.00.* the front end has collapsed"):
        pretrain(toy(collapse_after_steps=2), tmp_path / "silence", tmp_path / "run")
    last = read_records(tmp_path / "run")[-1]
    assert last["target_std"] > 0.1 and last["position_share"] > 0.99


def test_collapse_stops_the_run_and_names_the_last_checkpoint(toy_corpus, tmp_path):
    recipe = toy(collapse_after_steps=2, min_target_std=50.0)
    sentence = r"`target_std` is .* at step 3, below `min_target_std` 50.0: .* The last checkpoint is .*checkpoint-2\."
    with pytest.raises(TrainingStopped, match=sentence):
        pretrain(recipe, toy_corpus, tmp_path / "run")
    assert os.listdir(tmp_path / "run" / "checkpoint-2")
