"""Sources: features from audio files, each computed once, found again by content, resumed after a kill."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
from toy_audio import noise

from music2vec_hf.features import encoders, store
from music2vec_hf.features.encoders import Encoder
from music2vec_hf.features.spectral import (
    SPECTRAL_FRAMES,
    SpectralEncoder,
    chroma_frames,
    mel_frames,
    mfcc_frames,
    time_statistics,
)

CHROMA = encoders.FeatureSource("chroma", "chroma")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Twenty short files, each of its own content and length."""
    folder = tmp_path_factory.mktemp("audio")
    names = [folder / f"{number}.wav" for number in range(20)]
    for number, path in enumerate(names):
        soundfile.write(path, noise(0.6 + 0.05 * number, number), 16_000, subtype="FLOAT")
    return names


@pytest.fixture
def computed(monkeypatch):
    """Files of every call that computes features: of spectral statistics and of models."""
    calls = []
    for kind in (Encoder, SpectralEncoder):

        def counted(self, chosen, *args, rows=kind.rows):
            calls.append(chosen)
            return rows(self, chosen, *args)

        monkeypatch.setattr(kind, "rows", counted)
    return calls


def features_of(source, paths, cache_dir=None, row_seconds=None, **options):
    return store.FeatureStore(cache_dir, encoders.open_source(source), **options).rows(paths, row_seconds)


def same(one, two):
    for layer, values in one.features.items():
        np.testing.assert_array_equal(values, two.features[layer])
    for name in ("offsets", "num_frames", "seconds"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_sources_have_names_and_mistakes_get_a_sentence():
    resolved = encoders.resolve_sources({"a": "folder/model", "b": "random-init", "c": "mel"}, random_init_seed=7)
    assert [source.kind for source in resolved] == ["model", "random-init", "mel"]
    assert resolved[1].model == "folder/model" and resolved[1].seed == 7
    with pytest.raises(ValueError, match="takes the shape of a model"):
        encoders.resolve_sources(["random-init"])
    with pytest.raises(ValueError, match="Two sources are called model"):
        encoders.resolve_sources(["a/model", "b/model"])


def test_a_run_that_was_killed_leaves_whole_parts_and_the_next_goes_on(killed, music, computed):
    files = sorted(path for path in music.rglob("*.*") if path.name != "x.wav")
    (folder,) = (killed / "cache").iterdir()
    # What a kill in the middle of a write leaves beside them is no part.
    (folder / ".x.parquet.1.unfinished").write_bytes(b"half")
    rows = features_of(CHROMA, files, cache_dir=killed / "cache")
    assert computed == [files[4:]]
    same(rows, features_of(CHROMA, files))
    computed.clear()
    same(rows, features_of(CHROMA, files, cache_dir=killed / "cache"))
    assert computed == []


def test_parts_of_version_0_1_0_are_read(paths, tmp_path, computed):
    rows = features_of(CHROMA, paths[:3], cache_dir=tmp_path)
    (part,) = tmp_path.rglob("*.parquet")
    arrays = {name: getattr(rows, name) for name in ("offsets", "num_frames", "seconds")}
    digests = np.array(store.audio_digests(paths[:3]))
    np.savez(part.with_suffix(".npz"), digests=digests, layer_chroma=rows.features["chroma"], **arrays)
    part.unlink()
    same(features_of(CHROMA, paths[:3], cache_dir=tmp_path), rows)
    assert len(computed) == 1 and not list(tmp_path.rglob("*.parquet"))


def test_other_tasks_and_orders_take_what_is_there(paths, tmp_path, computed):
    features_of(CHROMA, paths[:12], cache_dir=tmp_path)
    mixed = [*paths[15:], *paths[5:10][::-1], paths[7]]
    rows = features_of(CHROMA, mixed, cache_dir=tmp_path)
    assert computed == [paths[:12], paths[15:]]
    same(rows, features_of(CHROMA, mixed))


def test_a_changed_file_is_heard_again_and_equal_content_once(paths, tmp_path, computed):
    files = [tmp_path / f"{number}.wav" for number in range(3)]
    for path, number in zip(files, (0, 1, 0), strict=True):
        path.write_bytes(paths[number].read_bytes())
    rows = features_of(CHROMA, files, cache_dir=tmp_path / "cache")
    assert [len(chosen) for chosen in computed] == [2]
    np.testing.assert_array_equal(rows.features["chroma"][0], rows.features["chroma"][2])
    files[1].write_bytes(paths[5].read_bytes())
    changed = features_of(CHROMA, files, cache_dir=tmp_path / "cache")
    assert computed[1:] == [[files[1]]]
    same(changed, features_of(CHROMA, files))
    assert not np.array_equal(changed.features["chroma"][1], rows.features["chroma"][1])


def test_model_features_are_cached_by_weights_and_windows_but_not_by_rows(paths, tmp_path, encoder_folder, computed):
    source = encoders.resolve_sources([str(encoder_folder)])[0]
    random = encoders.FeatureSource("random-init", "random-init", str(encoder_folder), seed=3)
    cached = {"cache_dir": tmp_path / "cache", "window_seconds": 0.4}
    track = features_of(source, paths, **cached)
    assert track.rows_per_track.tolist() == [1] * 20 and list(track.features) == ["conv", "0", "1", "2", "3"]
    # Another protocol makes other rows of the same windows, without hearing anything again.
    clips = features_of(source, paths, row_seconds=0.8, **cached)
    windows = features_of(source, paths, row_seconds=0.4, **cached)
    assert len(computed) == 1
    same(clips, features_of(source, paths, row_seconds=0.8, window_seconds=0.4))
    assert clips.rows_per_track.tolist() == [1] * 5 + [2] * 15
    assert windows.rows_per_track.tolist() == [2] * 5 + [3] * 8 + [4] * 7
    same(track, windows.merged(None))
    computed.clear()
    others = [
        features_of(random, paths, **cached),
        features_of(replace(random, seed=4), paths, **cached),
        features_of(source, paths, **cached | {"window_seconds": 0.3}),
        features_of(source, paths, **cached, precision="bf16"),
    ]
    assert len(computed) == 4
    for rows in others:
        assert not np.array_equal(rows.features["3"], track.features["3"])


@pytest.mark.parametrize("kind", SPECTRAL_FRAMES)
def test_spectral_rows_are_those_of_the_clip_alone(kind, paths, tmp_path, computed):
    source = encoders.FeatureSource(kind, kind)
    rows = features_of(source, paths[-2:], row_seconds=0.5, cache_dir=tmp_path)
    assert rows.rows_per_track.tolist() == [3, 4] and rows.seconds[:3] == pytest.approx([0.5, 0.5, 0.5], abs=1e-6)
    for start in range(3):
        clip = soundfile.read(paths[-2], dtype="float32")[0][start * 8_000 : (start + 1) * 8_000]
        soundfile.write(tmp_path / "clip.wav", clip, 16_000, subtype="FLOAT")
        alone = features_of(source, [tmp_path / "clip.wav"])
        np.testing.assert_array_equal(rows.features[kind][start], alone.features[kind][0])
    # Rows of another length are no entry of this cache.
    whole = features_of(source, paths[-2:], cache_dir=tmp_path)
    assert whole.rows_per_track.tolist() == [1, 1]
    assert not np.array_equal(whole.features[kind][0], rows.features[kind][0])


def test_chroma_hears_the_pitch_class_and_not_the_level():
    times = np.arange(32_000) / 16_000
    tone = np.sin(2 * np.pi * 440 * times).astype(np.float32)
    assert chroma_frames(tone).mean(axis=0).argmax() == 9  # A
    np.testing.assert_allclose(chroma_frames(0.1 * tone), chroma_frames(tone), atol=1e-3)
    assert mfcc_frames(tone).shape[1] == 20 and chroma_frames(tone[:100]).shape[1] == 12
    statistics = time_statistics(np.arange(10.0)[:, None])
    np.testing.assert_allclose(statistics, [4.5, np.std(np.arange(10)), 1, 0, 0, 0], atol=1e-6)


def test_mel_hears_pitch_and_level():
    times = np.arange(32_000) / 16_000
    bands = []
    for frequency in (110, 440, 1_760, 7_040):
        tone = np.sin(2 * np.pi * frequency * times).astype(np.float32)
        frames = mel_frames(tone)
        assert frames.shape[1] == 128 and np.isfinite(frames).all()
        bands.append(frames.mean(axis=0).argmax())
        # Half the amplitude is a quarter of the power.
        middle = slice(5, -5)
        louder = (frames - mel_frames(0.5 * tone))[middle, bands[-1]]
        np.testing.assert_allclose(louder, np.log(4), atol=1e-3)
    assert bands == sorted(bands) and len(set(bands)) == 4
    assert np.isfinite(mel_frames(np.zeros(100, np.float32))).all()
