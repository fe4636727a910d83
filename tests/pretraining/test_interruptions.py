"""A run survives what happens to it, and goes on as if nothing had: kills, signals, a full disk, infinite updates."""

import json
import os
import random
import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file
from toy_run import end_with, losses, read_records, start, toy

from music2vec_hf.pretraining import TrainingInterrupted, TrainingStopped, loop, starting
from music2vec_hf.pretraining.checkpoints import check_checkpoint, checkpoints
from music2vec_hf.pretraining.loop import pretrain


def state_of(checkpoint):
    return json.loads((checkpoint / "trainer_state.json").read_text())


@pytest.fixture
def half_run(whole_run, tmp_path):
    """A copy of the whole run as a kill in the middle of writing its last checkpoint leaves it."""
    output = tmp_path / "run"
    shutil.copytree(whole_run, output)
    (output / "checkpoint-6").rename(output / ".checkpoint-6.1.unfinished")
    with (output / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    return output


@pytest.mark.parametrize("changes", [{"num_workers": 1}, {"gradient_checkpointing": True}], ids=str)
def test_a_resumed_run_repeats_the_losses_bit_for_bit(changes, half_run, whole_run, toy_corpus):
    pretrain(toy(**changes), toy_corpus, half_run, resume=True)
    assert losses(half_run) == losses(whole_run)
    ours, theirs = (load_file(output / "model.safetensors") for output in (half_run, whole_run))
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)
    assert not list(half_run.glob("*.unfinished"))


def test_a_stream_trains_and_resumes_exactly(toy_corpus, tmp_path):
    streamed = {"streaming": True, "buffer_size": 4}
    whole = pretrain(toy(**streamed), toy_corpus, tmp_path / "whole")
    part = tmp_path / "part"
    shutil.copytree(whole, part)
    shutil.rmtree(part / "checkpoint-6")
    pretrain(toy(**streamed, num_workers=2), toy_corpus, part, resume=True)
    assert losses(part) == losses(whole)


def wait_for(moment):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not moment():
        time.sleep(0.002)


@pytest.mark.parametrize("seed", [None, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(10))])
def test_kill_9_and_resume(seed, whole_run, toy_corpus, tmp_path):
    """After three steps, or at a moment drawn by the seed."""
    output, metrics = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    process = start(toy_corpus, output)
    if seed is None:
        wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3)
    else:
        wait_for(output.exists)
        time.sleep(random.Random(seed).uniform(0.0, 1.5))
    process.kill()
    process.join()
    end_with([start(toy_corpus, output)], 0)
    assert losses(output) == losses(whole_run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_the_resumed_run_is_the_same(number, whole_run, toy_corpus, tmp_path, monkeypatch):
    accumulate = loop.accumulate

    def signalled(accelerator, recipe, model, state, *rest):
        if state.step == 2:
            os.kill(os.getpid(), number)
        return accumulate(accelerator, recipe, model, state, *rest)

    monkeypatch.setattr(loop, "accumulate", signalled)
    with pytest.raises(TrainingInterrupted, match=rf"{number.name} came, .*checkpoint-3. Go on with `--resume`"):
        pretrain(toy(save_every=100), toy_corpus, tmp_path / "run")
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-3"]
    monkeypatch.undo()
    pretrain(toy(save_every=100), toy_corpus, tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == losses(whole_run)
    assert signal.getsignal(number) == signal.SIG_DFL


def test_an_output_with_a_run_needs_resume_and_the_same_recipe(whole_run, toy_corpus):
    with pytest.raises(ValueError, match=r"holds a run up to checkpoint-6. Add `--resume`"):
        pretrain(toy(), toy_corpus, whole_run)
    with pytest.raises(ValueError, match=r"`hidden_dropout` 0.1 there and 0.2 here, `learning_rate` 0.0005 there and"):
        pretrain(toy(learning_rate=1e-3, hidden_dropout=0.2), toy_corpus, whole_run, resume=True)


def test_a_checkpoint_from_before_a_key_goes_on_with_its_default(half_run):
    (checkpoint,) = checkpoints(half_run)
    state = state_of(checkpoint)
    del state["recipe"]["crops_per_clip"]
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    check_checkpoint(checkpoint, toy())
    with pytest.raises(ValueError, match="`crops_per_clip` 1 there and 2 here"):
        check_checkpoint(checkpoint, toy(crops_per_clip=2))


def test_a_full_disk_keeps_the_previous_checkpoint(half_run, toy_corpus, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        OSError, match=r"No space left .* the last whole checkpoint is .*checkpoint-4\. Free some space"
    ):
        pretrain(toy(), toy_corpus, half_run, resume=True)
    assert [path.name for path in half_run.glob("*checkpoint*")] == ["checkpoint-4"]


def poison(monkeypatch, steps):
    """Make the gradients of some steps infinite."""
    accumulate = loop.accumulate

    def poisoned(accelerator, recipe, model, state, *rest):
        num_masked = accumulate(accelerator, recipe, model, state, *rest)
        if state.step in steps:
            next(state.student.parameters()).grad.fill_(torch.inf)
        return num_masked

    monkeypatch.setattr(loop, "accumulate", poisoned)


def test_an_update_that_is_not_finite_is_skipped_and_counted_and_changes_nothing(toy_corpus, tmp_path, monkeypatch):
    poison(monkeypatch, {1, 2})
    output = pretrain(toy(save_every=1, keep_last=6), toy_corpus, tmp_path / "run")
    records = read_records(output)
    assert [record["skipped_updates"] for record in records] == [0, 1, 2, 2, 2, 2]
    assert records[1]["grad_norm"] is None and records[2]["loss"] < 100
    saved = checkpoints(output)
    state = state_of(saved[-1])
    assert (state["step"], state["skipped"], state["skipped_in_a_row"]) == (6, 2, 0)
    moments = [torch.load(path / "optimizer.pt")["state"][0]["exp_avg"] for path in saved[:2]]
    assert moments[0].equal(moments[1])
    for name in ("model.safetensors", "teacher.safetensors"):
        assert len({(path / name).read_bytes() for path in saved[:3]}) == 1


def test_too_many_in_a_row_stop_the_run(toy_corpus, tmp_path, monkeypatch):
    poison(monkeypatch, {2, 3, 4, 5})
    sentence = r"3 updates in a row, up to step 5, were not finite .* The last checkpoint is .*checkpoint-4\."
    with pytest.raises(TrainingStopped, match=sentence):
        pretrain(toy(max_skipped_in_a_row=2), toy_corpus, tmp_path / "run")


def test_fp16_halves_its_scale_on_overflow_and_goes_on(toy_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(starting, "_FIRST_LOSS_SCALE", 2.0**24)
    output = pretrain(toy(precision="fp16", max_steps=12, save_every=12), toy_corpus, tmp_path / "run")
    state = state_of(checkpoints(output)[-1])
    assert 0 < state["skipped"] < 12
    assert state["scaler"]["scale"] == 2.0 ** (24 - state["skipped"])
    assert losses(output)[-1][1] < 100 and losses(output)[-1][2] is not None


@pytest.mark.parametrize("save_every", [1, 100])
def test_keep_every_keeps_for_good_whatever_save_every_is(save_every, toy_corpus, tmp_path):
    output = pretrain(toy(save_every=save_every, keep_last=1, keep_every=2), toy_corpus, tmp_path / "run")
    assert [path.name for path in checkpoints(output)] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
