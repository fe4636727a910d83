"""The loop end to end: it learns, and an interrupted run goes on exactly as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from transformers import AutoModel

from music2vec_hf import EMATeacher
from music2vec_hf.corpus.prepare import prepare_corpus
from music2vec_hf.pretraining.arguments import load_recipe, recipe_names
from music2vec_hf.pretraining.checkpoints import check_checkpoint, checkpoints
from music2vec_hf.pretraining.loop import count_micro_steps, pretrain
from music2vec_hf.pretraining.monitors import TrainingStopped
from music2vec_hf.pretraining.schedules import ReferenceAdam, tri_stage_learning_rate

MONITORS = {
    "step", "loss", "masked_share", "target_std", "prediction_std", "feature_std", "target_rank", "position_share",
    "grad_norm", "learning_rate", "ema_decay", "skipped_updates", "audio_seconds_per_second", "data_wait_share",
    "peak_memory_gib",
}  # fmt: skip


def read_records(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def losses(output):
    return [(record["step"], record["loss"], record["grad_norm"]) for record in read_records(output)]


@pytest.fixture(scope="module")
def whole_run(toy_corpus, tmp_path_factory):
    from toy_run import toy

    output = tmp_path_factory.mktemp("whole") / "run"
    pretrain(toy(), toy_corpus, output)
    return output


def test_a_run_leaves_a_model_and_its_records(whole_run):
    records = read_records(whole_run)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert all(set(record) == MONITORS for record in records)
    assert records[0]["learning_rate"] == pytest.approx(tri_stage_learning_rate(0, 6, 5e-4))
    model = AutoModel.from_pretrained(whole_run)
    assert model.config.hidden_size == 16
    assert [path.name for path in checkpoints(whole_run)] == ["checkpoint-4", "checkpoint-6"]


def test_it_learns(toy_corpus, tmp_path, toy_recipe):
    recipe = toy_recipe(max_steps=60, learning_rate=3e-3, phase_ratio=[0.1, 0.8, 0.1], save_every=60)
    records = read_records(pretrain(recipe, toy_corpus, tmp_path / "run"))
    first, last = (sum(r["loss"] for r in part) / 10 for part in (records[:10], records[-10:]))
    assert last < 0.8 * first


def test_a_resumed_run_repeats_the_losses_bit_for_bit(whole_run, toy_corpus, tmp_path, toy_recipe):
    shutil.copytree(whole_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    (tmp_path / "run" / "checkpoint-6.unfinished").mkdir()  # as a kill in the middle of writing leaves it
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    pretrain(toy_recipe(num_workers=1), toy_corpus, tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == losses(whole_run)
    ours, theirs = AutoModel.from_pretrained(tmp_path / "run"), AutoModel.from_pretrained(whole_run)
    for name, tensor in theirs.state_dict().items():
        assert ours.state_dict()[name].equal(tensor)


def test_kill_9_and_resume(whole_run, toy_corpus, tmp_path):
    command = [sys.executable, "-m", "toy_run", str(toy_corpus), str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    assert losses(tmp_path / "run") == losses(whole_run)


def test_micro_batches_give_the_same_update(whole_run, toy_corpus, tmp_path, toy_recipe):
    # Dropout is drawn per micro-batch, so it is off here.
    quiet = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0, "max_steps": 3}
    one = pretrain(toy_recipe(**quiet), toy_corpus, tmp_path / "one")
    two = pretrain(toy_recipe(**quiet, max_seconds_per_device=2.0), toy_corpus, tmp_path / "two")
    for ours, theirs in zip(losses(one), losses(two), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_clips_that_cannot_be_read_are_counted_in_the_records(toy_corpus, tmp_path, toy_recipe):
    shutil.copytree(toy_corpus, tmp_path / "damaged")
    (shard,) = (tmp_path / "damaged" / "data").iterdir()
    table = pq.read_table(shard)
    clips = table["audio"].to_pylist()
    for clip in clips[:2]:
        clip["bytes"] = clip["bytes"][:300]
    audio = pa.array(clips, table.schema.field("audio").type)
    pq.write_table(table.set_column(0, table.schema.field("audio"), audio), shard)
    # Three steps of four crops are an epoch of the twelve clips.
    records = read_records(pretrain(toy_recipe(max_steps=3), tmp_path / "damaged", tmp_path / "run"))
    counts = [record.get("failed_clips", 0) for record in records]
    assert counts == sorted(counts) and counts[-1] == 2


def test_micro_steps_follow_from_what_a_device_holds(toy_recipe):
    recipe = toy_recipe(batch_seconds=10.0)
    assert [count_micro_steps(recipe, processes, 3.0) for processes in (1, 2, 3, 10)] == [4, 2, 2, 1]


def test_an_output_with_a_run_needs_resume(whole_run, toy_corpus, toy_recipe):
    with pytest.raises(ValueError, match=r"holds a run up to checkpoint-6. Add `--resume`"):
        pretrain(toy_recipe(), toy_corpus, whole_run)


def test_a_checkpoint_of_another_recipe_is_refused(whole_run, toy_corpus, tmp_path, toy_recipe):
    shutil.copytree(whole_run, tmp_path / "run")
    with pytest.raises(ValueError, match=r"`learning_rate` 0.0005 there and 0.001 here"):
        pretrain(toy_recipe(learning_rate=1e-3), toy_corpus, tmp_path / "run", resume=True)


def test_a_checkpoint_from_before_a_key_goes_on_with_its_default(whole_run, tmp_path, toy_recipe):
    shutil.copytree(whole_run, tmp_path / "run")
    for checkpoint in checkpoints(tmp_path / "run"):
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        del state["recipe"]["crops_per_clip"]
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
        check_checkpoint(checkpoint, toy_recipe())
        with pytest.raises(ValueError, match="`crops_per_clip` 1 there and 2 here"):
            check_checkpoint(checkpoint, toy_recipe(crops_per_clip=2))


def test_collapse_stops_the_run(toy_corpus, tmp_path, toy_recipe):
    recipe = toy_recipe(collapse_after_steps=2, min_target_std=50.0)
    sentence = r"`target_std` is .* at step 3, below `min_target_std` 50.0: .* The last checkpoint is .*checkpoint-2\."
    with pytest.raises(TrainingStopped, match=sentence):
        pretrain(recipe, toy_corpus, tmp_path / "run")
    assert checkpoints(tmp_path / "run")


def test_a_full_disk_keeps_the_previous_checkpoint(whole_run, toy_corpus, tmp_path, toy_recipe, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    output = tmp_path / "run"
    shutil.copytree(whole_run, output)
    shutil.rmtree(output / "checkpoint-6")
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        OSError, match=r"No space left .* the last whole checkpoint is .*checkpoint-4\. Free some space"
    ):
        pretrain(toy_recipe(), toy_corpus, output, resume=True)
    assert [path.name for path in checkpoints(output)] == ["checkpoint-4"]
    assert not (output / "checkpoint-6.unfinished").exists()


def test_an_optimiser_state_survives_its_checkpoint():
    weights = [torch.nn.Parameter(torch.ones(3))]
    one, two = ReferenceAdam(weights, lr=0.1), ReferenceAdam([torch.nn.Parameter(torch.ones(3))], lr=0.1)
    for _ in range(3):
        weights[0].grad = torch.tensor([1.0, 2.0, 3.0])
        one.step()
    two.load_state_dict(one.state_dict())
    assert two.param_groups[0]["num_steps"] == 3


@pytest.mark.parametrize("bad", [{"max_steps": 0}, {"max_steps": 10, "phase_ratio": (0.5, 0.2, 0.1)}])
def test_a_schedule_that_cannot_be_is_refused(bad):
    with pytest.raises(ValueError, match="three shares that add up to 1"):
        tri_stage_learning_rate(0, peak=1.0, **bad)


def test_the_teacher_follows_once_per_step(toy_corpus, tmp_path, toy_recipe, monkeypatch):
    steps, update = [], EMATeacher.update

    def counted(self, model, step):
        steps.append(step)
        return update(self, model, step)

    monkeypatch.setattr(EMATeacher, "update", counted)
    pretrain(toy_recipe(max_steps=3, max_seconds_per_device=1.0), toy_corpus, tmp_path / "run")
    assert steps == [1, 2, 3]


def test_a_stream_trains_and_resumes_exactly(toy_corpus, tmp_path, toy_recipe):
    streamed = {"streaming": True, "buffer_size": 4}
    whole = pretrain(toy_recipe(**streamed), toy_corpus, tmp_path / "whole")
    part = tmp_path / "part"
    shutil.copytree(whole, part)
    shutil.rmtree(part / "checkpoint-6")
    pretrain(toy_recipe(**streamed, num_workers=2), toy_corpus, part, resume=True)
    assert losses(part) == losses(whole)


def test_a_folder_of_audio_needs_no_preparation(toy_corpus, tmp_path, toy_recipe):
    output = pretrain(toy_recipe(max_steps=2), toy_corpus.parent / "audio", tmp_path / "run")
    assert [record["step"] for record in read_records(output)] == [1, 2]


@pytest.fixture(scope="module")
def long_corpus(tmp_path_factory):
    """Three clips of 31 s: long enough for every recipe's crops."""
    folder = tmp_path_factory.mktemp("long")
    (folder / "audio").mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        soundfile.write(folder / "audio" / f"{index}.flac", 0.1 * rng.standard_normal(31 * 16_000), 16_000)
    prepare_corpus(folder / "audio", folder / "corpus", clip_seconds=31.0, progress=False)
    return folder / "corpus"


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_trains_at_toy_width(name, long_corpus, tmp_path):
    layers = load_recipe(name).num_hidden_layers
    crop_seconds = load_recipe(name).crop_seconds
    toy_width = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": [8] * 7}
    small = {"batch_seconds": 2 * crop_seconds, "max_steps": 3, "log_every": 1, "num_workers": 0, "precision": "fp32"}
    recipe = load_recipe(name, **toy_width, **small, num_conv_pos_embedding_groups=4)
    records = read_records(pretrain(recipe, long_corpus, tmp_path / "run"))
    assert [record["step"] for record in records] == [1, 2, 3]
    assert all(np.isfinite(record["loss"]) and record["grad_norm"] > 0 for record in records)
    assert AutoModel.from_pretrained(tmp_path / "run").config.num_hidden_layers == layers


def test_a_silent_corpus_ends_in_the_collapse_guard(tmp_path, toy_recipe):
    """Its targets vary with the position alone: padding marks the edges. The reference's own rule sees nothing."""
    (tmp_path / "silence").mkdir()
    for index in range(4):
        soundfile.write(tmp_path / "silence" / f"{index}.wav", np.zeros(32_000), 16_000)
    with pytest.raises(TrainingStopped, match=r"`feature_std` is 0.00.* the front end has collapsed"):
        pretrain(toy_recipe(collapse_after_steps=2), tmp_path / "silence", tmp_path / "run")
    last = read_records(tmp_path / "run")[-1]
    assert last["target_std"] > 0.1 and last["position_share"] > 0.99
