"""A pushed repository loads in a process that cannot import this library: from a folder, over HTTP, offline."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from hub_server import HubServer
from transformers.models.auto import modeling_auto

import music2vec_hf
from music2vec_hf import (
    Music2VecConfig,
    Music2VecFeatureExtractor,
    Music2VecForPreTraining,
    Music2VecForSequenceClassification,
    Music2VecModel,
)
from music2vec_hf.hub.push import make_publication, with_remote_code

BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "music2vec_hf":
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Blocker())
"""

# What somebody runs who has transformers alone. Results go to a file.
STRANGER = """
import sys
import numpy as np, soundfile, torch
from transformers import (AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification,
                          AutoModelForPreTraining, pipeline)

student, tagger, wav, out = sys.argv[1:]
samples, rate = soundfile.read(wav, dtype="float32")
for load in (AutoConfig.from_pretrained, AutoModel.from_pretrained, AutoFeatureExtractor.from_pretrained,
             lambda name, **how: pipeline("audio-classification", name, **how)):
    try:
        load(tagger, trust_remote_code=False)
    except ValueError as error:
        assert "trust_remote_code=True" in str(error), error
    else:
        raise AssertionError("code of a repository was run without being asked for")
trust = {"trust_remote_code": True}
inputs = AutoFeatureExtractor.from_pretrained(student, **trust)(samples, sampling_rate=rate, return_tensors="pt")
found = {"input_values": inputs.input_values}
with torch.no_grad():
    for name, model in (("encoder", AutoModel.from_pretrained(student, **trust)),
                        ("student", AutoModelForPreTraining.from_pretrained(student, **trust)),
                        ("tagger's", AutoModel.from_pretrained(tagger, **trust))):
        found[name] = model.eval()(inputs.input_values).last_hidden_state
    model = AutoModelForAudioClassification.from_pretrained(tagger, **trust).eval()
    found["logits"] = model(inputs.input_values).logits
for name, how in (("path", wav), ("array", {"array": samples, "sampling_rate": rate})):
    answer = pipeline("audio-classification", model=tagger, **trust)(how, top_k=None)
    found[name] = torch.tensor([entry["score"] for entry in sorted(answer, key=lambda entry: entry["label"])])
assert not any(name.startswith("music2vec_hf") for name in sys.modules)
np.savez(out, **{name: tensor.numpy() for name, tensor in found.items()})
"""


@pytest.fixture
def repositories(tiny_config, tiny_student, tmp_path):
    """A pretraining student and a tagger, laid out as `music2vec push` does, below the root of a Hub."""
    shape = {name: getattr(tiny_config, name) for name in ("hidden_size", "num_hidden_layers", "conv_dim")}
    shape |= {"num_attention_heads": 2, "intermediate_size": 32, "num_conv_pos_embedding_groups": 4}
    config = Music2VecConfig(**shape, num_labels=3, problem_type="multi_label_classification", classifier_layer=2)
    torch.manual_seed(1)
    folders = {}
    for name, model in (("student", tiny_student), ("tagger", Music2VecForSequenceClassification(config))):
        model.save_pretrained(tmp_path / name)
        Music2VecFeatureExtractor(norm_eps=1e-3).save_pretrained(tmp_path / name)
        publication = make_publication(tmp_path / name, f"someone/{name}", "mit")
        folders[name] = publication.write(tmp_path / "hub" / "models" / "someone" / name / "main")
    return folders


@pytest.fixture
def song(tmp_path):
    path = tmp_path / "song.wav"
    noise = np.random.default_rng(0).standard_normal((12_000, 2)).astype(np.float32)
    soundfile.write(path, 0.1 * noise, 22_050, subtype="FLOAT")
    return path


def run_alone(script, folder, environment, *arguments):
    """Run Python in a folder that nothing of ours is near; what it printed."""
    command = [sys.executable, "-I", "-c", script, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    folder.mkdir(exist_ok=True)
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def ask(student, tagger, song, out, environment):
    run_alone(BLOCKER + STRANGER, out.parent, environment, student, tagger, song, out)
    with np.load(f"{out}.npz") as stored:
        return dict(stored)


@torch.no_grad()
def expected_of(repositories, song):
    samples, rate = soundfile.read(song, dtype="float32")
    extractor = Music2VecFeatureExtractor.from_pretrained(repositories["student"])
    assert extractor.norm_eps == 1e-3
    inputs = extractor(samples, sampling_rate=rate, return_tensors="pt").input_values
    tagger = Music2VecForSequenceClassification.from_pretrained(repositories["tagger"]).eval()
    logits = tagger(inputs).logits
    values = {
        "input_values": inputs,
        "encoder": Music2VecModel.from_pretrained(repositories["student"]).eval()(inputs).last_hidden_state,
        "student": Music2VecForPreTraining.from_pretrained(repositories["student"]).eval()(inputs).last_hidden_state,
        "tagger's": tagger.data2vec_audio(inputs).last_hidden_state,
        "logits": logits,
        "path": logits[0].sigmoid(),
        "array": logits[0].sigmoid(),
    }
    return {name: value.numpy() for name, value in values.items()}


def test_a_folder_loads_without_this_library(repositories, song, tmp_path):
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    found = ask(*repositories.values(), song, tmp_path / "away" / "out", environment)
    expected = expected_of(repositories, song)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=name)


def test_a_repository_loads_without_this_library_and_then_without_the_hub(repositories, song, tmp_path):
    names = ("someone/student", "someone/tagger")
    with HubServer(tmp_path / "hub") as hub:
        environment = hub.environment(tmp_path / "home")
        online = ask(*names, song, tmp_path / "away" / "online", environment)
        asked = len(hub.requests)
        offline = ask(*names, song, tmp_path / "away" / "offline", {**environment, "HF_HUB_OFFLINE": "1"})
        assert len(hub.requests) == asked
    for name, values in expected_of(repositories, song).items():
        np.testing.assert_allclose(online[name], values, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(offline[name], online[name], err_msg=name)


# `music2vec` stands in for the command that is on the user's PATH.
WITH_PACKAGE = "from music2vec_hf.cli import main as music2vec\n"


def test_what_the_cards_say_works(repositories, song, tmp_path):
    alone, with_package = [], []
    for name, folder in repositories.items():
        card = (folder / "README.md").read_text()
        for language, block in re.findall(r"^```(\w+)\n(.*?)^```", card, flags=re.M | re.S):
            if language == "sh":
                target = f"plain-{name}"
                with_package.append(f"assert music2vec({block.replace(' plain', f' {target}').split()[1:]}) == 0")
            elif "music2vec_hf" in block:
                with_package.append(block + ("print(layers.shape)" if "layers" in block else ""))
            else:
                checks = "\nprint(len(layers), *layers[0].shape)" if "layers" in block else ""
                alone.append(block.replace('"plain"', f'"plain-{name}"') + checks)
    assert len(alone) == 4 and len(with_package) == 5
    folder = tmp_path / "away"
    folder.mkdir()
    song.rename(folder / "song.wav")
    with HubServer(tmp_path / "hub") as hub:
        environment = hub.environment(tmp_path / "home")
        said = run_alone(WITH_PACKAGE + "\n".join(with_package), folder, environment)
        assert said.count("(4, 16)") == 2 and said.count("LABEL_0") == 1
        said = run_alone(BLOCKER + "\n".join(alone), folder, environment)
        assert "4 1 26 16" in said and said.count("LABEL_0") == 1


def test_the_names_that_travel_are_those_that_the_library_registers(repositories):
    """Whoever has this library gets the same classes by the same Auto classes."""
    config = json.loads((repositories["tagger"] / "config.json").read_text())
    for auto, path in config["auto_map"].items():
        name = path.rpartition(".")[2]
        if auto != "AutoConfig":
            assert getattr(modeling_auto, auto)._model_mapping[Music2VecConfig].__name__ == name
        assert getattr(music2vec_hf, name).__module__ == f"music2vec_hf.{path.rpartition('.')[0]}"
    registered = {
        name
        for name, auto in vars(modeling_auto).items()
        if name.startswith("AutoModel") and Music2VecConfig in (auto._model_mapping or ())
    }
    assert registered == config["auto_map"].keys() - {"AutoConfig"}
    extractor = json.loads((repositories["tagger"] / "preprocessor_config.json").read_text())
    assert extractor["auto_map"] == {"AutoFeatureExtractor": "feature_extraction_music2vec.Music2VecFeatureExtractor"}


def test_only_a_head_for_clips_names_the_pipeline(repositories):
    configs = {name: json.loads((folder / "config.json").read_text()) for name, folder in repositories.items()}
    assert (
        "custom_pipelines" not in configs["student"]
        and "audio-classification" in configs["tagger"]["custom_pipelines"]
    )


def test_files_are_copies_and_complete(repositories):
    for name, file in with_remote_code(repositories["student"]).items():
        if name.endswith(".py"):
            assert (repositories["student"] / name).read_bytes() == file.read_bytes()
            for line in file.read_text().splitlines():
                if line.startswith("from ."):
                    assert (repositories["student"] / f"{line.split()[1][1:]}.py").is_file(), line
