"""A run survives what happens to it: signals, updates that are not finite, kills at random moments."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from music2vec_hf.pretraining import loop
from music2vec_hf.pretraining.checkpoints import checkpoints
from music2vec_hf.pretraining.loop import pretrain
from music2vec_hf.pretraining.monitors import TrainingStopped
from music2vec_hf.pretraining.signals import TrainingInterrupted


def losses(output):
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"], record["grad_norm"]) for record in records]


def start(corpus, output, *program):
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    command = [sys.executable, "-m", *(program or ("toy_run",)), str(corpus), str(output)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def long_run(toy_corpus, tmp_path_factory):
    """The losses of the run of `toy_run`, never interrupted."""
    output = tmp_path_factory.mktemp("long") / "run"
    process = start(toy_corpus, output)
    assert process.communicate()[1] is not None and process.returncode == 0
    return losses(output)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_kill_9_at_a_random_moment(seed, long_run, toy_corpus, tmp_path):
    output = tmp_path / "run"
    rng = random.Random(seed)
    process = start(toy_corpus, output)
    while process.poll() is None and not output.exists():
        time.sleep(0.01)
    time.sleep(rng.uniform(0.0, 1.5))
    process.kill()
    process.communicate()
    process = start(toy_corpus, output)
    process.communicate()
    assert process.returncode == 0
    assert losses(output) == long_run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_the_resumed_run_is_the_same(number, toy_corpus, tmp_path, toy_recipe, monkeypatch):
    whole = pretrain(toy_recipe(save_every=100), toy_corpus, tmp_path / "whole")
    optimise = loop.optimise

    def signalled(accelerator, recipe, state, num_masked):
        if state.step == 2:
            os.kill(os.getpid(), number)
        return optimise(accelerator, recipe, state, num_masked)

    monkeypatch.setattr(loop, "optimise", signalled)
    with pytest.raises(TrainingInterrupted, match=rf"{number.name} came, .*checkpoint-3. Go on with `--resume`"):
        pretrain(toy_recipe(save_every=100), toy_corpus, tmp_path / "run")
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-3"]
    monkeypatch.undo()
    pretrain(toy_recipe(save_every=100), toy_corpus, tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == losses(whole)
    assert signal.getsignal(number) == signal.SIG_DFL


def poison(monkeypatch, steps):
    """Make the gradients of some steps infinite."""
    accumulate = loop.accumulate

    def poisoned(accelerator, recipe, model, state, *rest):
        num_masked = accumulate(accelerator, recipe, model, state, *rest)
        if state.step in steps:
            next(state.student.parameters()).grad.fill_(torch.inf)
        return num_masked

    monkeypatch.setattr(loop, "accumulate", poisoned)


def test_an_update_that_is_not_finite_is_skipped_and_counted(toy_corpus, tmp_path, toy_recipe, monkeypatch):
    poison(monkeypatch, {1, 2})
    output = pretrain(toy_recipe(), toy_corpus, tmp_path / "run")
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [record["skipped_updates"] for record in records] == [0, 1, 2, 2, 2, 2]
    assert records[1]["grad_norm"] is None and records[2]["loss"] < 100
    state = json.loads((checkpoints(output)[-1] / "trainer_state.json").read_text())
    assert (state["step"], state["skipped"], state["skipped_in_a_row"]) == (6, 2, 0)


def test_a_skipped_update_leaves_student_and_teacher(toy_corpus, tmp_path, toy_recipe, monkeypatch):
    poison(monkeypatch, {1})
    one = pretrain(toy_recipe(max_steps=2, save_every=1), toy_corpus, tmp_path / "run")
    first, second = (torch.load(path / "optimizer.pt") for path in checkpoints(one))
    assert first["state"][0]["exp_avg"].equal(second["state"][0]["exp_avg"])
    for name in ("model.safetensors", "teacher.safetensors"):
        assert len({(path / name).read_bytes() for path in checkpoints(one)}) == 1


def test_too_many_in_a_row_stop_the_run(toy_corpus, tmp_path, toy_recipe, monkeypatch):
    poison(monkeypatch, {2, 3, 4, 5})
    sentence = r"3 updates in a row, up to step 5, were not finite .* The last checkpoint is .*checkpoint-4\."
    with pytest.raises(TrainingStopped, match=sentence):
        pretrain(toy_recipe(max_skipped_in_a_row=2), toy_corpus, tmp_path / "run")


def test_fp16_halves_its_scale_on_overflow_and_goes_on(toy_corpus, tmp_path, toy_recipe, monkeypatch):
    monkeypatch.setattr(loop, "_FIRST_LOSS_SCALE", 2.0**30)
    output = pretrain(toy_recipe(precision="fp16", max_steps=40, save_every=40), toy_corpus, tmp_path / "run")
    state = json.loads((checkpoints(output)[-1] / "trainer_state.json").read_text())
    assert 0 < state["skipped"] < 40
    assert state["scaler"]["scale"] == 2.0 ** (30 - state["skipped"])
    assert losses(output)[-1][1] < 100 and losses(output)[-1][2] is not None


def test_keep_every_keeps_for_good(toy_corpus, tmp_path, toy_recipe):
    output = pretrain(toy_recipe(save_every=1, keep_last=1, keep_every=2), toy_corpus, tmp_path / "run")
    assert [path.name for path in checkpoints(output)] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
