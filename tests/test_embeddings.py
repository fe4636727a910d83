"""Embeddings: equal to the model's own hidden states, whatever they are batched with and however they are cut."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from music2vec_hf import Music2VecFeatureExtractor, Music2VecModel, embed
from music2vec_hf.embedding_table import write_embeddings
from music2vec_hf.embeddings import embed_files, embed_tracks, layer_names, load_model, model_hash


@pytest.fixture
def model(tiny_config):
    torch.manual_seed(0)
    return Music2VecModel(tiny_config).eval()


@pytest.fixture
def model_folder(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    Music2VecFeatureExtractor().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def noise(seconds, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(int(16_000 * seconds))).astype(np.float32)


def hidden_states(model, samples):
    input_values = Music2VecFeatureExtractor()(samples, sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        states = model(input_values, output_hidden_states=True).hidden_states
        return [frames[0].numpy() for frames in states], model.feature_extractor(input_values)[0].T.numpy()


def test_mean_pooled_layers_are_the_models_hidden_states(model):
    states, conv = hidden_states(model, noise(2))
    expected = np.stack([frames.mean(0) for frames in states])
    np.testing.assert_allclose(embed(model, noise(2)), expected, atol=1e-5)
    np.testing.assert_allclose(embed(model, noise(2), layers=2), expected[2], atol=1e-5)
    np.testing.assert_allclose(embed(model, noise(2), layers=[0, 3]), expected[[0, 3]], atol=1e-5)
    np.testing.assert_allclose(embed(model, noise(2), layers="conv"), conv.mean(0), atol=1e-5)


def test_frames_are_the_models_hidden_states(model):
    states, _ = hidden_states(model, noise(2))
    np.testing.assert_allclose(embed(model, noise(2), pool="none"), np.stack(states), atol=1e-5)


def test_company_changes_nothing(model):
    clips = [noise(1.0), noise(2.3, 1), noise(0.4, 2), noise(2.3, 3)]
    together = embed(model, clips)
    for clip, row in zip(clips, together, strict=True):
        np.testing.assert_allclose(row, embed(model, clip), atol=1e-6)


def test_bf16_is_near_float32_and_not_equal(model):
    exact, rounded = embed(model, noise(2)), embed(model, noise(2), precision="bf16")
    assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()


def test_windows_weigh_by_their_length(model):
    samples = noise(2.5)
    normalised = Music2VecFeatureExtractor()(samples, sampling_rate=16_000)["input_values"][0]
    pieces = []
    for start in (0, 16_000, 32_000):
        with torch.no_grad():
            pieces.append(model(torch.tensor(normalised[None, start : start + 16_000])).last_hidden_state[0].numpy())
    assert [len(piece) for piece in pieces] == [49, 49, 24]
    expected = np.concatenate(pieces).mean(0)
    np.testing.assert_allclose(embed(model, samples, layers=3, window_seconds=1.0), expected, atol=1e-5)


def test_a_rest_shorter_than_a_frame_is_left_out(model):
    samples = noise(1.0)
    longer = np.concatenate([samples, samples[:200]])
    assert embed(model, longer, pool="none", window_seconds=1.0).shape == (4, 49, 16)


def test_files_of_any_rate_and_arrays_agree(model, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([noise(2), noise(2)], axis=1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(embed(model, tmp_path / "a.wav"), embed(model, noise(2)), atol=1e-5)
    time = np.arange(44_100) / 44_100
    tone = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    assert embed(model, tone, sampling_rate=44_100, pool="none").shape == (4, 49, 16)


def test_a_folder_or_loaded_model_and_random_weights(model, model_folder):
    assert model_hash(load_model(model_folder)[0]) == model_hash(model)
    np.testing.assert_allclose(embed(model_folder, noise(1)), embed(model, noise(1)), atol=1e-6)
    one, two = (load_model(model_folder, random_init=True, seed=seed)[0] for seed in (1, 2))
    assert len({model_hash(m) for m in (model, one, two)}) == 3
    assert model_hash(load_model(model_folder, random_init=True, seed=1)[0]) == model_hash(one)


def test_all_layers_of_files(model_folder, tmp_path):
    paths = []
    for index in range(3):
        paths.append(tmp_path / f"{index}.flac")
        soundfile.write(paths[-1], noise(1 + index, index), 16_000)
    loaded, extractor = load_model(model_folder)
    rows = embed_files(loaded, extractor, paths, progress=False)
    assert list(rows) == layer_names(loaded) == ["conv", "0", "1", "2", "3"]
    assert {layer: values.shape for layer, values in rows.items()} == {
        "conv": (3, 8), "0": (3, 16), "1": (3, 16), "2": (3, 16), "3": (3, 16)
    }  # fmt: skip


def test_the_table_names_what_it_left_out(model_folder, tmp_path):
    folder = tmp_path / "music"
    folder.mkdir()
    soundfile.write(folder / "a.flac", noise(1), 16_000)
    soundfile.write(folder / "b.wav", noise(2), 16_000)
    (folder / "c.wav").write_text("not audio")
    summary = write_embeddings(model_folder, [folder], tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert summary["tracks"] == table.num_rows == 2
    assert [path.rsplit("/", 1)[-1] for path, _ in summary["rejects"]] == ["c.wav"]
    assert table.column_names == ["path", "duration", "conv", "layer_0", "layer_1", "layer_2", "layer_3"]
    np.testing.assert_allclose(
        table["layer_3"][0].as_py(), embed(model_folder, folder / "a.flac", layers=3), atol=1e-6
    )
    assert table["duration"].to_pylist() == [1.0, 2.0]
    write_embeddings(model_folder, [folder / "a.flac"], tmp_path / "frames.parquet", ["3"], pool="none")
    assert np.array(pq.read_table(tmp_path / "frames.parquet")["layer_3"][0].as_py()).shape == (49, 16)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"layers": 4}, "There is no layer 4. This model has conv, 0, 1, 2, 3"),
        ({"layers": ["conv", 0]}, "Ask for it alone"),
        ({"pool": "max"}, "`pool` is 'max'"),
        ({"window_seconds": 0.01}, "`window_seconds` is 0.01. Use at least 0.025 s"),
    ],
)
def test_mistakes_are_refused(model, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        embed(model, noise(1), **arguments)


def test_nan_is_refused(model):
    with pytest.raises(ValueError, match="NaN or infinite"):
        list(embed_tracks(model, Music2VecFeatureExtractor(), [np.full(16_000, np.nan)]))
