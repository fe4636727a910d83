"""Safe by default: nothing that a file says is run, and no path in a file leads out of the folder that is written."""

import ast
import csv
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from toy_model import save_model

from music2vec_hf import Music2VecModel
from music2vec_hf.audio.containers import PackedFile
from music2vec_hf.audio.decoding import AudioError
from music2vec_hf.cli import main
from music2vec_hf.corpus.prepare import prepare_corpus
from music2vec_hf.probing.scores import Predictions

LIBRARY = Path(__file__).parents[1] / "music2vec_hf"
# Reads fairseq's checkpoints with an unpickler of its own, which runs nothing: tests/hub/test_fairseq.py.
READER = "fairseq_reader.py"
FORBIDDEN = {"eval", "exec", "pickle.load", "pickle.loads", "pickle.dump", "joblib.load", "yaml.load", "os.system"}
UNPACKING = {"extract", "extractall", "unpack_archive"}  # `extractfile` gives bytes and writes nothing


def unsafe_calls(text):
    """Calls that run what a file says, unpack what it names, or trust a repository without being asked to."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        loads_unsafely = name == "torch.load" and keywords.get("weights_only") != "True"
        allows = any(keywords.get(key) == "True" for key in ("allow_pickle", "trust_remote_code", "shell"))
        if name in FORBIDDEN or name.rpartition(".")[2] in UNPACKING or loads_unsafely or allows:
            yield ast.unparse(node)


def test_no_file_is_run_or_unpacked():
    files = [path for path in LIBRARY.rglob("*.py") if path.name != READER]
    assert len(files) > 50 and [(path, call) for path in files for call in unsafe_calls(path.read_text())] == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "pickle.load(file)",
        "archive.extractall(folder)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_the_rule_sees(line):
    assert list(unsafe_calls(line))


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.fixture
def model(tiny_config, tmp_path):
    folder = tmp_path / "model"
    return save_model(Music2VecModel(tiny_config), folder)


def test_weights_in_a_pickle_are_read_and_not_run(model, tmp_path, capsys):
    marker = tmp_path / "was run"
    torch.save({"masked_spec_embed": Hostile(marker)}, model / "pytorch_model.bin")
    torch.load(model / "pytorch_model.bin", weights_only=False)
    assert marker.exists()  # so it is hostile
    marker.unlink()
    Music2VecModel.from_pretrained(model)  # safetensors first
    assert main(["export", str(model), str(tmp_path / "safe")]) == 0
    (model / "model.safetensors").unlink()
    assert main(["export", str(model), str(tmp_path / "plain")]) == 1
    assert not marker.exists()
    assert f"The weights of {model} are damaged or not safe (a .bin file" in capsys.readouterr().err.splitlines()[-1]


def test_features_in_a_pickle_are_refused(tmp_path):
    marker = tmp_path / "was run"
    hostile = np.array([Hostile(marker)], dtype=object)
    np.savez(tmp_path / "p.npz", task="t", labels=["a"], track_ids=["b"], references=hostile, outputs=hostile)
    with pytest.raises(ValueError, match="allow_pickle"):
        Predictions.load(tmp_path / "p.npz")
    assert not marker.exists()


@pytest.mark.parametrize("model_type", ["music2vec", "data2vec-audio", "something-new"])
def test_code_of_a_repository_is_run_only_when_asked_for(model, tmp_path, monkeypatch, capsys, model_type):
    monkeypatch.setattr("builtins.input", lambda *text: pytest.fail("somebody was asked"))
    marker = tmp_path / "was run"
    (model / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil:\n    pass\n")
    auto_classes = {"config.json": ("AutoConfig", "AutoModel"), "preprocessor_config.json": ("AutoFeatureExtractor",)}
    for name, keys in auto_classes.items():
        content = json.loads((model / name).read_text())
        content["auto_map"] = dict.fromkeys(keys, "evil.Evil")
        if name == "config.json":
            content["model_type"] = model_type
        (model / name).write_text(json.dumps(content))
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 16_000), 16_000)
    output = ["--output", str(tmp_path / "e.parquet")]
    calls = [["embed", str(model), str(tmp_path / "a.wav"), *output], ["export", str(model), str(tmp_path / "plain")]]
    calls.append(["push", str(model), "someone/x", "--license", "mit", "--dry-run"])
    for call in calls:
        main(call)
    assert not marker.exists()


def encoded_song(seed=0):
    encoded = io.BytesIO()
    soundfile.write(encoded, np.random.default_rng(seed).uniform(-0.1, 0.1, 48_000), 16_000, format="FLAC")
    return encoded.getvalue()


def everything(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


NAMES = ("../../up.flac", "/tmp/music2vec_absolute.flac", "a/../../../b.flac")


def test_names_in_an_archive_lead_nowhere(tmp_path):
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "part.tar", "w") as archive:
        for seed, name in enumerate(NAMES):
            entry = tarfile.TarInfo(name)
            entry.size = len(encoded_song(seed))
            archive.addfile(entry, io.BytesIO(encoded_song(seed)))
        link = tarfile.TarInfo("link.flac")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    summary = prepare_corpus(tmp_path / "in", tmp_path / "out", num_proc=1, progress=False)
    assert summary["clips"] == 3
    outside = {name for name in everything(tmp_path) if not name.startswith("out/")}
    assert outside == {"in", "in/part.tar", "out"}
    assert not os.path.exists(NAMES[1])


@pytest.mark.parametrize("split", ["../train", "/tmp/x", "..", "a b"])
def test_a_split_is_no_path(tmp_path, split):
    (tmp_path / "a.flac").write_bytes(encoded_song())
    with open(tmp_path / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "split"], ["a.flac", split]])
    with pytest.raises(ValueError, match="a split is one word such as train"):
        prepare_corpus(tmp_path, tmp_path / "out", num_proc=1, progress=False)


def test_a_remote_table_leads_to_no_file_of_this_machine(tmp_path):
    (tmp_path / "private.flac").write_bytes(encoded_song())
    audio = pa.array([{"bytes": None, "path": str(tmp_path / "private.flac")}])
    pq.write_table(pa.table({"audio": audio}), tmp_path / "t.parquet")
    here = PackedFile(str(tmp_path / "t.parquet"), "x", 0, 0, "audio")
    assert here.read() == encoded_song()  # one's own table may name one's own files
    with pytest.raises(AudioError, match="holds a path in place of its bytes"):
        PackedFile(f"file://{tmp_path}/t.parquet", "x", 0, 0, "audio").read()


def test_a_configuration_with_impossible_values_gets_one_sentence(model, tmp_path, capsys):
    content = json.loads((model / "config.json").read_text()) | {"classifier_layer": "__import__('os')"}
    (model / "config.json").write_text(json.dumps(content))
    assert main(["export", str(model), str(tmp_path / "plain")]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"The config.json of {model} cannot be used (`classifier_layer` is " in said
