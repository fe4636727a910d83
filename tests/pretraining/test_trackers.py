"""Trackers get the records that metrics.jsonl has."""

import json

import pytest

from music2vec_hf.pretraining.loop import pretrain


def test_tensorboard_has_every_monitor(toy_corpus, tmp_path, toy_recipe):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = pretrain(toy_recipe(max_steps=3, report_to="tensorboard"), toy_corpus, tmp_path / "run")
    (events,) = output.rglob("events.out.tfevents.*")
    found = EventAccumulator(str(events.parent))
    found.Reload()
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    for name in set(records[0]) - {"step"}:
        scalars = [(event.step, event.value) for event in found.Scalars(name)]
        assert scalars == [(record["step"], pytest.approx(record[name], rel=1e-5)) for record in records]


def test_a_tracker_that_is_not_installed_is_refused(toy_corpus, tmp_path, toy_recipe, monkeypatch):
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda *args, **kwargs: [])
    with pytest.raises(ValueError, match=r"`report_to` is trackio, which is not installed: `pip install trackio`"):
        pretrain(toy_recipe(report_to="trackio"), toy_corpus, tmp_path / "run")
