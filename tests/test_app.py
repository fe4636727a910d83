"""The page of `music2vec app`: what it tells of a song, its sentences, and that nothing is kept."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from toy_audio import noise
from toy_model import SIZES, save_model

import music2vec_hf
from music2vec_hf.app_listener import Limits, Listener
from music2vec_hf.app_view import show_answer, show_introduction
from music2vec_hf.cli import main
from music2vec_hf.features.tables import find_similar, write_embeddings


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """Three tracks, and a song of two of them."""
    folder = tmp_path_factory.mktemp("music")
    time = np.arange(4 * 16_000) / 16_000
    tones = {name: 0.3 * np.sin(2 * np.pi * pitch * time) for name, pitch in (("low", 110), ("high", 1760))}
    for name, samples in (*tones.items(), ("noise", noise(4.0))):
        soundfile.write(folder / f"{name}.flac", samples, 16_000)
    (folder / "songs").mkdir()
    soundfile.write(folder / "songs" / "song.wav", np.concatenate([tones["low"], tones["high"]]), 16_000)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A plain encoder, and the same one with heads of each kind."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    plain = music2vec_hf.Music2VecModel(music2vec_hf.Music2VecConfig(**SIZES))
    save_model(plain, folder / "plain")
    for kind in ("single_label_classification", "multi_label_classification", "regression"):
        labels = dict(enumerate(("calm", "<b>loud</b>", "fast")))
        config = music2vec_hf.Music2VecConfig(
            **SIZES, id2label=labels, problem_type=kind, classifier_layer=2, window_seconds=2.0
        )
        head = music2vec_hf.Music2VecForSequenceClassification(config)
        head.data2vec_audio.load_state_dict(plain.state_dict())
        save_model(head, folder / kind)
    return folder


@pytest.fixture(scope="module")
def library(models, music):
    path = music / "library.parquet"
    write_embeddings(models / "plain", [*sorted(music.glob("*.flac"))], path)
    return path


def test_a_plain_encoder_tells_where_a_song_changes(models, music):
    listener = Listener(models / "plain")
    told = []
    answer = listener.listen(music / "songs" / "song.wav", lambda share, sentence: told.append(share))
    assert answer.labels == [] and answer.similar is None and answer.seconds == 8.0
    assert told[0] == 0.0 and told[-1] == 1.0 and told == sorted(told)
    page = show_answer("song.wav", answer, listener)
    assert "has no labels" in page and "most at <b>0:04</b>" in page
    assert "plain, layer 3" in page


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification", "regression"])
def test_a_head_gives_labels_over_time(kind, models, music):
    listener = Listener(models / kind)
    answer = listener.listen(music / "songs" / "song.wav")
    expected = listener.head(str(music / "songs" / "song.wav"), top_k=3, return_timeline=True)
    assert answer.labels == [(each["label"], each["score"]) for each in expected["labels"]]
    assert [(each["start"], each["end"]) for each in answer.timeline] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    page = show_answer("song.wav", answer, listener)
    assert "from its layer 2" in page and "has no labels" not in page
    assert "&lt;b&gt;loud" in page and "<b>loud" not in page
    assert page.count("m2v-row") == (3 if kind == "regression" else 4)
    assert answer.is_share == (kind != "regression")


@pytest.mark.parametrize("model", ["plain", "single_label_classification"])
def test_similar_tracks_are_those_of_the_command(model, models, music, library):
    listener = Listener(models / model, library)
    song = music / "songs" / "song.wav"
    answer = listener.listen(song)
    expected = find_similar(library, song, top=5)
    assert [path for path, _ in answer.similar] == [path for path, _ in expected]
    np.testing.assert_allclose([score for _, score in answer.similar], [score for _, score in expected], atol=1e-5)


def test_a_library_of_other_weights_is_heard_by_its_own_model(models, music, library, tmp_path):
    torch.manual_seed(1)
    save_model(music2vec_hf.Music2VecModel(music2vec_hf.Music2VecConfig(**SIZES)), tmp_path / "other")
    listener = Listener(tmp_path / "other", library)
    answer = listener.listen(music / "songs" / "song.wav")
    assert answer.heard_by[0].startswith("Similar tracks: plain, layer 3")


def test_a_track_that_has_gone_has_no_player(models, music, tmp_path):
    for name in ("low", "high"):
        (tmp_path / f"{name}.flac").write_bytes((music / f"{name}.flac").read_bytes())
    write_embeddings(models / "plain", [tmp_path], tmp_path / "library.parquet")
    (tmp_path / "low.flac").unlink()
    listener = Listener(models / "plain", tmp_path / "library.parquet")
    page = show_answer("song.wav", listener.listen(music / "songs" / "song.wav"), listener)
    assert page.count("<audio") == page.count("Its file is not there any more.") == 1


@pytest.mark.parametrize(
    "limits, sentence",
    [
        (Limits(max_megabytes=0.1), "song.wav has 0.3 MB; this page takes 0.1 MB at most."),
        (Limits(max_minutes=0.1), "song.wav lasts longer than the 0.1 minutes that this page takes"),
    ],
)
def test_limits_are_sentences(limits, sentence, models, music):
    with pytest.raises(ValueError, match=sentence):
        Listener(models / "plain", limits=limits).listen(music / "songs" / "song.wav")


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["nowhere/at/all"], "nowhere/at/all"),
        (["MODEL", "--library", "nowhere.parquet"], "There is no library nowhere.parquet. Make it: music2vec embed"),
        (["MODEL", "--library", "LIBRARY", "--layer", "9"], "has no layer 9. It has conv, 0, 1, 2, 3."),
        (["MODEL", "--layer", "9"], "There is no layer 9."),
        (["MODEL", "--max-minutes", "0"], "`max_minutes` is 0.0. Use a value above 0."),
        (["HEAD", "--window-seconds", "0"], "window_seconds"),
    ],
)
def test_a_mistake_is_one_sentence(words, sentence, models, library, capsys):
    names = {"MODEL": str(models / "plain"), "LIBRARY": str(library), "HEAD": str(models / "regression")}
    assert main(["app", *(names.get(word, word) for word in words)]) == 1
    assert sentence in capsys.readouterr().err


def test_the_introduction_states_the_limits(models):
    page = show_introduction(Listener(models / "plain", limits=Limits(max_megabytes=7, max_minutes=2.5)))
    assert "at most 7 MB and 2.5 minutes" in page


@pytest.fixture(scope="module")
def page(models, library):
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'music2vec_hf[app]'")
    from music2vec_hf.app import served

    with served(Listener(models / "single_label_classification", library, limits=Limits(max_minutes=0.5))) as address:
        yield address


def hear(page, path):
    """Drop a file as the page does; the answer as HTML."""
    from gradio_client import Client, handle_file

    client = Client(page, verbose=False)
    return client.predict(handle_file(path), api_name="/hear")[0]


def left():
    import os

    return [path for path in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if path.is_file() and path.stat().st_size]


@pytest.mark.parametrize(
    "name, part",
    [
        ("song.wav", "m2v-strip"),
        ("text.mp3", "Cannot use the audio of text.mp3"),
        ("empty.wav", "Cannot use the audio of empty.wav"),
        ("long.flac", "long.flac lasts longer than the 0.5 minutes"),
    ],
)
def test_the_page_answers_and_keeps_nothing(name, part, page, music, tmp_path):
    path = music / "songs" / name if name == "song.wav" else tmp_path / name
    if name == "text.mp3":
        path.write_text("These are words. " * 50)
    elif name == "empty.wav":
        path.touch()
    elif name == "long.flac":
        soundfile.write(path, noise(31.0), 16_000)
    answer = hear(page, path)
    assert part in answer and str(tmp_path) not in answer
    assert left() == []


def test_the_page_plays_the_tracks_of_the_library_and_no_other_file(page, music, library):
    import httpx

    track, other = music / "low.flac", music / "songs" / "song.wav"
    got = httpx.get(f"{page}gradio_api/file={track}")
    assert got.status_code == 200 and got.content == track.read_bytes()
    for path in (other, library, Path(json.__file__)):
        assert httpx.get(f"{page}gradio_api/file={path}").status_code in (403, 404)


def test_the_page_names_nothing_elsewhere(page):
    """Nothing that a browser would fetch from another host: fonts, scripts, analytics."""
    import httpx

    text = httpx.get(page).text
    assert "fonts.googleapis" not in text and "cdnjs" not in text
    config = httpx.get(f"{page}config").json()
    assert config["analytics_enabled"] is False and config["run_history"] is False
