"""The page of `music2vec app`: what it tells of a song, its sentences, and that nothing is kept."""

import json
import os
import subprocess
import sys
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
    assert page.count("m2v-row") == (4 if kind == "single_label_classification" else 3)
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
    assert page.count("<audio controls preload") == page.count("Its file is not there any more.") == 1


def test_a_file_beyond_the_limit_is_a_sentence(models, music):
    with pytest.raises(ValueError, match=r"song.wav has 0.3 MB; this page takes 0.1 MB at most\."):
        Listener(models / "plain", limits=Limits(max_megabytes=0.1)).listen(music / "songs" / "song.wav")


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["nowhere/at/all"], "nowhere/at/all"),
        (["MODEL", "--library", "nowhere.parquet"], "There is no library nowhere.parquet. Make it: music2vec embed"),
        (["MODEL", "--library", "LIBRARY", "--layer", "9"], "has no layer 9. It has conv, 0, 1, 2, 3."),
        (["MODEL", "--layer", "9"], "There is no layer 9."),
        (["MODEL", "--max-minutes", "0"], "`max_minutes` is 0.0. Use a value above 0."),
        (["HEAD", "--window-seconds", "0"], "window_seconds"),
        (["MODEL", "--port", "99999"], "`port` is 99999. Use one from 1 to 65535."),
    ],
)
def test_a_mistake_is_one_sentence(words, sentence, models, library, capsys):
    names = {"MODEL": str(models / "plain"), "LIBRARY": str(library), "HEAD": str(models / "regression")}
    assert main(["app", *(names.get(word, word) for word in words)]) == 1
    assert sentence in capsys.readouterr().err


def test_without_gradio_the_sentence_names_the_extra(models, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app", str(models / "plain")]) == 1
    assert "music2vec: The page needs gradio: pip install 'music2vec_hf[app]'." in capsys.readouterr().err


def test_the_introduction_states_the_limits(models):
    page = show_introduction(Listener(models / "plain", limits=Limits(max_megabytes=7, max_minutes=2.5)))
    assert "at most 7 MB and 2.5 minutes" in page


def hear(page, path):
    """Drop a file as the page does; the answer as HTML."""
    from gradio_client import Client, handle_file

    client = Client(page, verbose=False)
    return client.predict(handle_file(path), api_name="/hear")[0]


@pytest.mark.parametrize(
    "name, part",
    [
        ("song.wav", "m2v-strip"),
        ("text.mp3", "Cannot use the audio of text.mp3"),
        ("empty.wav", "Cannot use the audio of empty.wav"),
        ("long.flac", "long.flac lasts longer than the 0.5 minutes"),
    ],
)
def test_the_page_answers_and_keeps_nothing(name, part, page, left, music, tmp_path):
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


def test_a_port_that_is_taken_is_one_sentence(page, models, capsys):
    port = page.rstrip("/").rpartition(":")[2]
    assert main(["app", str(models / "plain"), "--port", port]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("music2vec:")]
    assert len(said) == 1 and port in said[0]


def test_a_proxy_is_not_asked_for_what_is_here(models, monkeypatch):
    """And the environment is as it was when the server has ended."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'music2vec_hf[app]'")
    import httpx

    from music2vec_hf.app import served

    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "example.org")
    before = dict(os.environ)
    with served(Listener(models / "plain")) as address:
        assert httpx.get(address).status_code == 200
        uploads = Path(os.environ["GRADIO_TEMP_DIR"])
        assert uploads.is_dir() and os.environ["NO_PROXY"].startswith("example.org,localhost,")
    assert dict(os.environ) == before and not uploads.exists()


@pytest.mark.slow  # a process that imports torch
def test_a_server_that_is_stopped_leaves_nothing(models, tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'music2vec_hf[app]'")
    words = [sys.executable, "-m", "music2vec_hf", "app", str(models / "plain")]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert "plain listens at http://127.0.0.1:" in server.stdout.readline()
        assert list(tmp_path.glob("music2vec-app-*"))
        server.terminate()
    assert server.returncode == 0 and not list(tmp_path.glob("music2vec-app-*"))
