"""`music2vec push`: what travels, what stays, and what a Hub on loopback and a reader of the folder get from it."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from hub_server import TOKEN, HubServer
from safetensors.torch import load_file
from toy_model import save_model
from warm_python import WarmPython

from music2vec_hf import Music2VecConfig, Music2VecFeatureExtractor, Music2VecForPreTraining, Music2VecModel
from music2vec_hf.cli import main
from music2vec_hf.hub.conversion import export_data2vec_audio
from music2vec_hf.hub.push import make_publication

CODE = {f"{name}_music2vec.py" for name in ("configuration", "encoder", "feature_extraction", "frontend", "heads")}
CODE |= {f"{name}_music2vec.py" for name in ("acoustic", "events", "modeling", "pipeline")}
REPO = "someone/pushed"


@pytest.fixture
def checkpoint(tiny_student, tmp_path):
    """A checkpoint folder of a run, training state and all."""
    folder = tmp_path / "run" / "checkpoint-2"
    save_model(tiny_student, folder)
    shutil.copy(folder / "model.safetensors", folder / "teacher.safetensors")
    torch.save({}, folder / "optimizer.pt")
    (folder / "trainer_state.json").write_text(json.dumps({"step": 2, "recipe": {}}))
    (folder / "cache").mkdir()
    return folder


@pytest.fixture
def sharded(tiny_student, tmp_path):
    """The same model in several files."""
    tiny_student.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    Music2VecFeatureExtractor().save_pretrained(tmp_path / "sharded")
    return tmp_path / "sharded"


def test_only_what_the_model_needs_travels(checkpoint):
    publication = make_publication(checkpoint, REPO, "mit")
    wanted = {"config.json", "preprocessor_config.json", "model.safetensors", "README.md", "example.flac"}
    assert set(publication.files) == wanted | CODE
    assert publication.left_out == ["cache", "optimizer.pt", "teacher.safetensors", "trainer_state.json"]
    (checkpoint / "ATTRIBUTION.md").write_text("By Ann.")
    assert set(make_publication(checkpoint, REPO, "cc-by-sa-4.0").files) == wanted | CODE | {"ATTRIBUTION.md"}
    assert publication.sizes["model.safetensors"] == (checkpoint / "model.safetensors").stat().st_size


def test_nothing_that_travels_names_this_machine(checkpoint, tmp_path):
    for name, file in make_publication(checkpoint, REPO, "mit").files.items():
        data = file if isinstance(file, bytes) else file.read_bytes()
        assert str(tmp_path).encode() not in data, name


def test_a_plain_model_travels_without_code(checkpoint, tmp_path):
    plain = export_data2vec_audio(checkpoint, tmp_path / "plain")
    files = make_publication(plain, REPO, "mit").files
    assert set(files) == {"config.json", "preprocessor_config.json", "model.safetensors", "README.md", "example.flac"}
    assert b"trust_remote_code" not in files["README.md"]


def test_shards_travel_with_their_index_and_only_if_all_are_there(sharded):
    names = set(make_publication(sharded, REPO, "mit").files)
    shards = sorted(name for name in names if name.endswith(".safetensors"))
    assert len(shards) > 1 and "model.safetensors.index.json" in names
    (sharded / shards[0]).rename(sharded / "elsewhere")
    with pytest.raises(ValueError, match=f"names {shards[0]}; the folder is not whole"):
        make_publication(sharded, REPO, "mit")


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/secret.safetensors", "a/../../b.safetensors", "passwd"]
)
def test_an_index_that_points_out_of_the_folder_is_refused(checkpoint, name):
    (checkpoint / "model.safetensors").rename(checkpoint.parent / "secret.safetensors")
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="which is no file name"):
        make_publication(checkpoint, REPO, "mit")


def test_each_mistake_gets_one_sentence(checkpoint, tmp_path, capsys):
    def said(*words):
        assert main(["push", *map(str, words), "--dry-run"]) == 1
        sentence = capsys.readouterr().err
        assert sentence.count("\n") == 1
        return sentence

    assert "Add --license with one of the Hub's identifiers" in said(checkpoint, REPO)
    assert "is 'My Own!'" in said(checkpoint, REPO, "--license", "My Own!")
    assert "name a checkpoint such as checkpoint-2" in said(checkpoint.parent, REPO, "--license", "mit")
    assert "there is no model in it" in said(tmp_path / "nowhere", REPO, "--license", "mit")
    assert "There are no results at" in said(checkpoint, REPO, "--license", "mit", "--results", tmp_path / "r.json")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    assert "of type 'bert'" in said(checkpoint, REPO, "--license", "mit")
    (checkpoint / "config.json").write_text("{")
    assert "config.json is not JSON" in said(checkpoint, REPO, "--license", "mit")
    (checkpoint / "config.json").write_text(json.dumps(config))
    whole = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(whole[:-1000])
    assert "model.safetensors is damaged" in said(checkpoint, REPO, "--license", "mit")
    assert main(["export", str(checkpoint), str(tmp_path / "plain")]) == 1
    assert f"The weights of {checkpoint} are damaged or not safe (" in capsys.readouterr().err
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(b"")
    assert "has only optimizer.pt, pytorch_model.bin" in said(checkpoint, REPO, "--license", "mit")
    (checkpoint / "preprocessor_config.json").unlink()
    assert "has no preprocessor_config.json" in said(checkpoint, REPO, "--license", "mit")


def test_a_dry_run_shows_the_card_or_writes_what_would_travel(checkpoint, tmp_path, capsys):
    words = ["push", str(checkpoint), REPO, "--license", "cc-by-4.0", "--dry-run"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "bytes  model.safetensors" in printed and "license: cc-by-4.0" in printed
    assert "not uploaded: cache, optimizer.pt" in printed
    assert main([*words, str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(make_publication(checkpoint, REPO, "mit").files)
    theirs, ours = (Music2VecModel.from_pretrained(folder).state_dict() for folder in (tmp_path / "out", checkpoint))
    assert all(theirs[name].equal(value) for name, value in ours.items())
    assert main([*words, str(tmp_path / "out")]) == 1
    assert "exists and is not empty" in capsys.readouterr().err


def test_a_push_lands_as_a_whole_or_says_why_not(hub, online, checkpoint, sharded, tiny_student):
    public = hub.root / "models" / "someone" / "public" / "main"
    public.mkdir(parents=True)
    # The client tries a large file again by itself, a commit it does not.
    hub.broken += [("PUT /lfs/", "drop"), ("POST .*/commit/", "drop")]

    def push(folder, name, *more, token=TOKEN):
        return token, "push", folder, name, "--license", "mit", *more

    calls = {
        "interrupted": push(checkpoint, "someone/interrupted"),
        "bad token": push(checkpoint, REPO, token="hf_expired"),
        "no such user": push(checkpoint, "nobody/model"),
        "bad name": push(checkpoint, "no/such/name"),
        "public": push(checkpoint, "someone/public", "--private"),
        "again": push(checkpoint, REPO),
        "branch": push(sharded, REPO, "--revision", "shards"),
        "private": push(sharded, "someone/hidden", "--private"),
        "private again": push(sharded, "someone/hidden", "--private"),
    }
    said = dict(zip(calls, online.commands(*calls.values()), strict=True))
    assert hub.broken == []
    reasons = {
        "interrupted": "Server disconnected",
        "bad token": "Invalid credentials",
        "no such user": "You don't have the rights",
        "bad name": "no/such/name",
        "public": "someone/public exists and is public, so nothing was uploaded",
    }
    for name, (code, _, sentence) in said.items():
        assert code == (name in reasons), (name, sentence)
        if name in reasons:
            sentence = sentence.split("music2vec: ")[-1]
            assert reasons[name] in sentence and sentence.count("\n") == 1
    assert "push it again with the same command" in said["interrupted"][2]
    assert said["again"][1].endswith(f"{hub.url}/{REPO}\n")
    pushed = hub.root / "models" / "someone" / "pushed"
    for empty in (public, pushed.with_name("interrupted") / "main"):
        assert list(empty.iterdir()) == []  # not a part of it

    assert hub.private >= {"someone/hidden"}
    # The branch began as a copy of main, whose weights would be loaded instead of the shards.
    branch = {path.name for path in (pushed / "shards").iterdir()}
    assert "model.safetensors" not in branch and "model.safetensors.index.json" in branch
    for folder in (pushed / "main", pushed / "shards", pushed.with_name("hidden") / "main"):
        again = Music2VecForPreTraining.from_pretrained(folder).state_dict()
        assert all(again[name].equal(value) for name, value in tiny_student.state_dict().items())
        assert Music2VecConfig.from_pretrained(folder).hidden_size == 16
        assert CODE <= {path.name for path in folder.iterdir()}
    assert 'revision="shards"' in (pushed / "shards" / "README.md").read_text()


PULL = """
import sys
from safetensors.torch import save_file
from music2vec_hf.features.encoders import load_model
try:
    load_model("someone/never")
except ValueError as error:
    print(error)
save_file(load_model("someone/pulled")[0].state_dict(), sys.argv[1])
"""


def test_a_download_that_breaks_off_goes_on_and_is_never_a_broken_model(hub, online, checkpoint, tmp_path):
    files = make_publication(checkpoint, REPO, "mit")
    for name in ("pulled", "never"):
        files.write(hub.root / "models" / "someone" / name / "main")
    hub.broken += [("GET /someone/pulled/.*/model.safetensors", "truncate")]
    hub.broken += [("GET /someone/never/.*/model.safetensors", "truncate")] * 20  # more than the client tries
    printed = online.succeed(PULL, tmp_path / "pulled.safetensors")
    assert printed.startswith("someone/never is neither a folder here nor a model that the Hub gives (")
    assert printed.count("\n") == 1
    assert {pattern for pattern, _ in hub.broken} == {"GET /someone/never/.*/model.safetensors"}
    hub.broken.clear()
    pulled, ours = load_file(tmp_path / "pulled.safetensors"), Music2VecModel.from_pretrained(checkpoint).state_dict()
    assert pulled.keys() == ours.keys() and all(pulled[name].equal(ours[name]) for name in ours)


@pytest.mark.slow  # the client tries for long
def test_a_hub_that_does_not_answer_is_one_sentence_at_every_verb(checkpoint, tmp_path):
    wav = tmp_path / "a.wav"
    soundfile.write(wav, np.zeros(160_000), 16_000)
    pretrain = ("pretrain", "--recipe", "small", "--output", tmp_path / "new", "--corpus")
    calls = (
        ("push", checkpoint, "someone/x", "--license", "mit"),
        ("embed", "someone/x", wav, "--output", tmp_path / "e.parquet"),
        ("export", "someone/x", tmp_path / "plain"),
        ("prepare", "someone/x", tmp_path / "corpus", "--num-proc", "1"),
        (*pretrain, "someone/x"),
        (*pretrain, wav, "--init_from", "someone/x"),
    )
    with HubServer(tmp_path) as gone:  # nobody listens at its address from then on
        environment = gone.environment(tmp_path / "home")
    with WarmPython(environment) as python:
        answers = python.commands(*(("", *words) for words in calls))
    for words, (code, _, said) in zip(calls, answers, strict=True):
        said = said.split("music2vec: ")[-1]
        assert code == 1 and said.count("\n") == 1 and "someone/x" in said, (words, said)
