"""A pushed repository loads in a process that cannot import this library, from a folder, over HTTP, offline; and what
is saved from there is as whole."""

import json
import re

import numpy as np
import pytest
import soundfile
import torch
from hub_server import BLOCKER, TOKEN
from toy_model import SIZES
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, pipeline
from transformers.models.auto import modeling_auto

import music2vec_hf as m2v
from music2vec_hf.hub.push import make_publication, with_remote_code

NAMES = ("student", "tagger", "beats")

# What somebody runs who has transformers alone. Results go to files.
STRANGER = """
import sys
import numpy as np, soundfile, torch
from transformers import (AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification,
                          AutoModelForPreTraining, pipeline)
trust = {"trust_remote_code": True}

def ask(student, tagger, beats, wav, out):
    samples, rate = soundfile.read(wav, dtype="float32")
    for load in (AutoConfig.from_pretrained, AutoModel.from_pretrained, AutoFeatureExtractor.from_pretrained,
                 lambda name, **how: pipeline("audio-classification", name, **how)):
        try:
            load(tagger, trust_remote_code=False)
        except ValueError as error:
            assert "trust_remote_code=True" in str(error), error
        else:
            raise AssertionError("code of a repository was run without being asked for")
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
    events = pipeline("audio-classification", model=beats, **trust)(wav)
    found["times"] = torch.tensor([[one["start"], one["end"]] for one in events])
    np.savez(out, **{name: tensor.numpy() for name, tensor in found.items()})

*words, wav = sys.argv[1:]
for student, tagger, beats, out in zip(words[::4], words[1::4], words[2::4], words[3::4]):
    ask(student, tagger, beats, wav, out)
assert not any(name.startswith("music2vec_hf") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def repositories(hub, tmp_path_factory):
    """Folders on the Hub of a pretraining student, a tagger and a head of beats, as `music2vec push` lays them out."""
    folder = tmp_path_factory.mktemp("remote")
    torch.manual_seed(0)
    tags = {"num_labels": 3, "problem_type": "multi_label_classification", "classifier_layer": 2}
    beats = {"num_labels": 2, "frame_events": "beats", "frame_event_settings": [0.5, 0.5]}
    models = (
        m2v.Music2VecForPreTraining(m2v.Music2VecConfig(**SIZES)),
        m2v.Music2VecForSequenceClassification(m2v.Music2VecConfig(**SIZES, **tags)),
        m2v.Music2VecForAudioFrameClassification(m2v.Music2VecConfig(**SIZES, **beats)),
    )
    folders = {name: hub.root / "models" / "someone" / name / "main" for name in NAMES}
    for name, model in zip(NAMES, models, strict=True):
        model.save_pretrained(folder / name)
        m2v.Music2VecFeatureExtractor(norm_eps=1e-3).save_pretrained(folder / name)
        make_publication(folder / name, f"someone/{name}", "mit").write(folders[name])
    return folders


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    path = tmp_path_factory.mktemp("song") / "song.wav"
    noise = np.random.default_rng(0).standard_normal((12_000, 2)).astype(np.float32)
    soundfile.write(path, 0.1 * noise, 22_050, subtype="FLOAT")
    return path


@pytest.fixture
def away(tmp_path):
    """A folder that nothing of ours is near."""
    (tmp_path / "away").mkdir()
    return tmp_path / "away"


@torch.no_grad()
def expected_of(repositories, song):
    samples, rate = soundfile.read(song, dtype="float32")
    extractor = m2v.Music2VecFeatureExtractor.from_pretrained(repositories["student"])
    assert extractor.norm_eps == 1e-3
    inputs = extractor(samples, sampling_rate=rate, return_tensors="pt").input_values
    tagger = m2v.Music2VecForSequenceClassification.from_pretrained(repositories["tagger"]).eval()
    logits = tagger(inputs).logits
    events = pipeline("audio-classification", model=str(repositories["beats"]))(str(song))
    assert len(events) > 1
    values = {
        "input_values": inputs,
        "encoder": m2v.Music2VecModel.from_pretrained(repositories["student"]).eval()(inputs).last_hidden_state,
        "student": m2v.Music2VecForPreTraining.from_pretrained(repositories["student"])
        .eval()(inputs)
        .last_hidden_state,
        "tagger's": tagger.data2vec_audio(inputs).last_hidden_state,
        "logits": logits,
        "path": logits[0].sigmoid(),
        "array": logits[0].sigmoid(),
        "times": torch.tensor([[one["start"], one["end"]] for one in events]),
    }
    return {name: value.numpy() for name, value in values.items()}


def test_a_repository_loads_without_this_library_and_then_without_the_hub(
    hub, online, offline, repositories, song, away
):
    """Over HTTP; then, without the Hub, what is in the cache, and a folder."""
    ids = [f"someone/{name}" for name in NAMES]
    online.succeed(BLOCKER + STRANGER, *ids, away / "online", song, folder=away)
    asked = len(hub.requests)
    words = [*ids, away / "offline", *repositories.values(), away / "folder", song]
    offline.succeed(BLOCKER + STRANGER, *words, folder=away)
    assert len(hub.requests) == asked
    expected = expected_of(repositories, song)
    for place in ("online", "offline", "folder"):
        with np.load(away / f"{place}.npz") as stored:
            found = dict(stored)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=f"{place}: {name}")


# A repository, loaded and saved, once and once more, and pushed; then the repository is gone.
SAVED_AGAIN = """
import json, sys
import numpy as np, soundfile
from transformers import (AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification,
                          AutoModelForAudioFrameClassification, AutoModelForPreTraining, pipeline)
wav, out = sys.argv[1:]
trust = {"trust_remote_code": True}
AutoFeatureExtractor.from_pretrained("someone/tagger", **trust).save_pretrained(f"{out}/extractor")
for name, origin, auto in (("clip", "tagger", AutoModelForAudioClassification),
                           ("frame", "student", AutoModelForAudioFrameClassification),
                           ("student", "student", AutoModelForPreTraining),
                           ("tuned", "student", AutoModelForAudioClassification),
                           ("encoder", "tagger", AutoModel)):
    extractor = AutoFeatureExtractor.from_pretrained(f"someone/{origin}", **trust)
    model = auto.from_pretrained(f"someone/{origin}", **trust)
    for times in ("once", "twice"):
        model.save_pretrained(f"{out}/{name}-{times}")
        extractor.save_pretrained(f"{out}/{name}-{times}")
        model = auto.from_pretrained(f"{out}/{name}-{times}", **trust)
        extractor = AutoFeatureExtractor.from_pretrained(f"{out}/{name}-{times}", **trust)
    if name == "clip":
        model.push_to_hub("someone/again")
        extractor.push_to_hub("someone/again")
names = ("someone/tagger", "someone/again", f"{out}/clip-once", f"{out}/clip-twice", f"{out}/tuned-twice")
print(json.dumps([pipeline("audio-classification", model=name, **trust)(wav) for name in names]))
"""


def missing_files(folder):
    """What the configurations of a folder name and do not bring."""
    named = []
    for name in ("config.json", "preprocessor_config.json"):
        content = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        named += content.get("auto_map", {}).values()
        named += [task["impl"] for task in content.get("custom_pipelines", {}).values()]
    for path in folder.glob("*.py"):
        named += [f"{module}." for module in re.findall(r"^\s*from \.(\w+) import", path.read_text(), flags=re.M)]
    return {name for name in named if not (folder / f"{name.rpartition('.')[0]}.py").is_file()}


def test_what_is_saved_from_a_repository_brings_all_that_it_names(hub, online, repositories, song, away, tmp_path):
    printed = online.succeed(BLOCKER + SAVED_AGAIN, song, tmp_path / "out", folder=away, HF_TOKEN=TOKEN)
    first, *others, tuned = json.loads(printed.splitlines()[-1])
    assert len(others) == 3 and all(answer == first for answer in others)
    assert len(first) == 3 and {entry["label"] for entry in tuned} == {"LABEL_0", "LABEL_1"}
    folders = [*(tmp_path / "out").iterdir(), hub.root / "models" / "someone" / "again" / "main"]
    assert len(folders) == 12
    for folder in folders:
        assert missing_files(folder) == set(), folder


def test_with_this_library_nothing_of_a_repositorys_code_is_named(repositories, tmp_path):
    """Ours is run, and saving copies no code: so none is named, and `trust_remote_code=True` finds nothing to run."""
    for auto in (AutoModelForAudioClassification, AutoFeatureExtractor):
        auto.from_pretrained(repositories["tagger"]).save_pretrained(tmp_path)
    assert missing_files(tmp_path) == set()
    model = AutoModelForAudioClassification.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(model) is m2v.Music2VecForSequenceClassification
    assert type(AutoModel.from_pretrained(tmp_path, trust_remote_code=True)) is m2v.Music2VecModel
    assert (
        type(AutoFeatureExtractor.from_pretrained(tmp_path, trust_remote_code=True)) is m2v.Music2VecFeatureExtractor
    )


# `music2vec` stands in for the command that is on the user's PATH.
WITH_PACKAGE = "from music2vec_hf.cli import main as music2vec\n"


def test_what_the_cards_say_works(online, repositories, away):
    alone, with_package = [], []
    for name, folder in list(repositories.items())[:2]:
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
    said = online.succeed(WITH_PACKAGE + "\n".join(with_package), folder=away)
    assert said.count("(4, 16)") == 2 and said.count("LABEL_0") == 1
    said = online.succeed(BLOCKER + "\n".join(alone), folder=away)
    assert "4 1 499 16" in said and said.count("LABEL_0") == 1


def test_the_names_that_travel_are_those_that_the_library_registers(repositories):
    """Whoever has this library gets the same classes by the same Auto classes."""
    config = json.loads((repositories["tagger"] / "config.json").read_text())
    for auto, path in config["auto_map"].items():
        name = path.rpartition(".")[2]
        if auto != "AutoConfig":
            assert getattr(modeling_auto, auto)._model_mapping[m2v.Music2VecConfig].__name__ == name
        assert getattr(m2v, name).__module__ == f"music2vec_hf.model.{path.rpartition('.')[0]}"
    mappings = {name: getattr(auto, "_model_mapping", None) for name, auto in vars(modeling_auto).items()}
    ours = {name for name, known in mappings.items() if known is not None and m2v.Music2VecConfig in known}
    registered = {name for name in ours if name.startswith("AutoModel")}
    assert registered == config["auto_map"].keys() - {"AutoConfig"}
    extractor = json.loads((repositories["tagger"] / "preprocessor_config.json").read_text())
    assert extractor["auto_map"] == {"AutoFeatureExtractor": "feature_extraction_music2vec.Music2VecFeatureExtractor"}


def test_files_are_copies_and_complete(repositories):
    for name, file in with_remote_code(repositories["student"]).items():
        assert not name.endswith(".py") or (repositories["student"] / name).read_bytes() == file.read_bytes()
    configs = [json.loads((folder / "config.json").read_text()) for folder in repositories.values()]
    assert [list(config.get("custom_pipelines", ())) for config in configs] == [[], *[["audio-classification"]] * 2]
    assert not any(map(missing_files, repositories.values()))
