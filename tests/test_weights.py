"""The weights that come with the library: whole, small, loaded by every way, with scores that are theirs."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from transformers import AutoFeatureExtractor, AutoModel

from music2vec_hf import Music2VecModel, embed, pretrained
from music2vec_hf.cli import main
from music2vec_hf.common.files import read_results
from music2vec_hf.common.weights import model_source
from music2vec_hf.finetuning.fitting import FinetuneArguments
from music2vec_hf.hub.card import read_scores
from music2vec_hf.pretraining.arguments import load_recipe
from music2vec_hf.pretraining.starting import new_learners

TINY, ROOT = pretrained("tiny"), Path(__file__).parents[1]


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    """A chord and noise, 3 s each."""
    folder, seconds = tmp_path_factory.mktemp("songs"), np.arange(3 * 22_050) / 22_050
    chord = sum(np.sin(2 * np.pi * hertz * seconds) for hertz in (220.0, 277.18, 329.63)) / 4
    soundfile.write(folder / "chord.wav", chord, 22_050)
    soundfile.write(folder / "noise.wav", 0.1 * np.random.default_rng(0).standard_normal(66_150), 22_050)
    return folder


def test_they_are_small_and_in_half_precision():
    assert sum(path.stat().st_size for path in TINY.iterdir()) <= 10e6
    with safe_open(TINY / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}
    assert {path.name for path in TINY.iterdir()} >= {"README.md", "ATTRIBUTION.md", "results.json", "config.json"}


def test_the_auto_classes_load_them_in_float32_and_whole():
    model, report = AutoModel.from_pretrained(TINY, output_loading_info=True)
    assert type(model) is Music2VecModel and model.dtype == torch.float32
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert AutoFeatureExtractor.from_pretrained(TINY).receptive_field == model.config.receptive_field


def test_a_song_has_embeddings_that_differ_from_those_of_noise(songs):
    vectors = embed(TINY, [songs / "chord.wav", songs / "noise.wav"])
    assert vectors.shape == (2, 5, 256) and vectors.dtype == np.float32 and np.isfinite(vectors).all()
    chord, noise = vectors[:, -1] / np.linalg.norm(vectors[:, -1], axis=-1, keepdims=True)
    assert chord @ noise < 0.9


def test_tiny_is_a_model_unless_a_folder_has_its_name(songs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(embed("tiny", songs / "chord.wav"), embed(TINY, songs / "chord.wav"))
    assert model_source("tiny") == str(TINY) and model_source("someone/model") == "someone/model"
    (tmp_path / "tiny").mkdir()
    assert model_source("tiny") == "tiny"
    with pytest.raises(ValueError, match=r"'large'.*Use one of tiny"):
        pretrained("large")


def test_tiny_is_a_model_wherever_one_is_named(songs, tmp_path, capsys):
    library, tuned = tmp_path / "songs.parquet", {"corpus": str(songs), "label": ["key"], "output_dir": str(tmp_path)}
    assert main(["embed", "tiny", str(songs), "--output", str(library)]) == 0
    assert "2 tracks" in capsys.readouterr().out
    assert main(["similar", str(library), str(songs / "chord.wav"), "--model", "tiny", "--top", "1"]) == 0
    assert capsys.readouterr().out == f"1.0000  {songs / 'chord.wav'}\n"
    assert main(["report", "tiny", "--output", str(tmp_path / "page")]) == 0
    assert (tmp_path / "page" / "figures" / "layers-0.png").is_file()
    assert main(["export", "tiny", str(tmp_path / "plain")]) == 0
    assert FinetuneArguments(model="tiny", **tuned).model == str(TINY)
    student, _ = new_learners(load_recipe("tiny", init_from="tiny"))
    weights = AutoModel.from_pretrained(TINY).state_dict()
    assert all(torch.equal(student.base_model.state_dict()[name], weights[name]) for name in weights)


def test_the_card_has_the_scores_of_these_weights_beside_their_baselines():
    scores = read_scores(TINY, [TINY])
    assert {row["task"] for row in scores["records"] if row["of_model"]} >= {"synthetic-genre", "soundtrack"}
    kinds = {record["source_kind"] for record in read_results(TINY)["records"]}
    assert kinds >= {"model", "random-init", "mfcc", "chroma", "mel"}
    card = (TINY / "README.md").read_text(encoding="utf-8")
    assert "license: cc-by-sa-4.0" in card and "ATTRIBUTION.md" in card
    for record in scores["records"]:
        if record["of_model"] and record["metric"] == "accuracy":
            assert f"{record['value']:.3f}" in card


def test_the_readme_tells_the_scores_of_the_files():
    said = (ROOT / "README.md").read_text().split("## Results")[1].split("\n## ")[0]
    for folder in (TINY, ROOT / "examples" / "results" / "demo"):
        results = read_results(folder)
        means = {each["source_kind"]: each["task_mean"] for each in results["averages"]}
        spectra = max(means[kind] for kind in ("mfcc", "chroma", "mel"))
        values = [*(means[kind] for kind in ("model", "random-init")), spectra]
        assert [value for value in values if f"{value:.3f}" not in said] == []
    said = " ".join(said.split())
    folder = ROOT / "examples" / "results" / "tiny_three_seeds"
    for name, row in (("results", "synthetic-key weighted_key_score"), ("kept", "soundtrack-kept accuracy")):
        seeds = json.loads((folder / f"{name}.json").read_text())["scores"]
        ours, random = (np.mean([seed[source][row] for seed in seeds]) for source in ("tiny", "random-init"))
        assert len(seeds) == 3 and f"{ours:.3f} and {random:.3f}" in said, row
