"""The command: every verb has help, values are read as YAML, and the whole chain runs at toy size."""

import json
from dataclasses import replace

import pytest
from transformers import AutoModel

from music2vec_hf.cli import build_parser, main
from music2vec_hf.probing.probes import SEARCHES
from music2vec_hf.verbs import read_overrides

VERBS = next(action.choices for action in build_parser()._actions if action.choices)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0 and len(capsys.readouterr().out) > 80


def test_recipes_are_listed_and_resolved(capsys):
    assert main(["recipes"]) == 0
    assert "crop5s " in capsys.readouterr().out
    assert main(["recipes", "span5"]) == 0
    assert "mask_time_length: 5\n" in capsys.readouterr().out


def test_overrides_are_read_as_yaml():
    words = ["--learning-rate", "1e-3", "--conv_dim", "8", "8", "--require_same_masks=false", "--loss_scale", "null"]
    assert read_overrides(words) == {
        "learning_rate": "1e-3", "conv_dim": [8, 8], "require_same_masks": False, "loss_scale": None
    }  # fmt: skip
    with pytest.raises(ValueError, match="'stray' follows no `--key`"):
        read_overrides(["stray"])


def test_the_whole_chain_at_toy_size(tmp_path, monkeypatch, capsys):
    """synth, prepare, pretrain, embed, probe, report: as the demo, in seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SEARCHES, "quick", replace(SEARCHES["quick"], max_steps=60, eval_every=20))

    def run(*words):
        assert main([str(word) for word in words]) == 0
        return capsys.readouterr().out

    words = ["--clips", 40, "--seed", 0, "--clip-seconds", 2, "--num-proc", 1]
    assert "40 synthetic clips" in run("synth", "synthetic", *words)
    prepared = run("prepare", "synthetic/audio/train", "corpus", "--num-proc", 1, "--store", "pcm")
    assert "0 rejected" in prepared and "0 cannot be decoded" in prepared
    words = ["--crop_seconds", 1, "--batch_seconds", 4, "--max_steps", 4, "--num_workers", 0, "--hidden_size", 32]
    words += ["--num_attention_heads", 2, "--intermediate_size", 64, "--conv_dim", *[16] * 2, "--precision", "fp32"]
    run("pretrain", "--recipe", "tiny", "--corpus", "corpus", "--output", "run", *words)
    run("embed", "run", "synthetic/audio/test", "--output", "e.parquet")
    words = ["--task", "synthetic-genre", "--data", "synthetic", "--output", "probes", "--layers", 1, "--seeds", 0, 1]
    table = run("probe", "run", *words)
    for source in ("run", "random-init", "mfcc", "chroma", "chance"):
        assert source in table
    results = json.loads((tmp_path / "probes" / "results.json").read_text())
    assert {record["task"] for record in results["records"]} == {"synthetic-genre"}
    run("report", "probes", "run", "--output", "page")
    assert "<html" in (tmp_path / "page" / "report.html").read_text()
    assert AutoModel.from_pretrained(tmp_path / "run").config.hidden_size == 32
