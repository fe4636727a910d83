"""fairseq checkpoints come in whole, whichever way they were written, and nothing that they say is run."""

import argparse
import enum
import os
import sys
import tarfile
import types
import zipfile

import numpy as np
import pytest
import torch
from golden_student import golden_student, golden_weights, teacher_names
from safetensors.torch import load_file

from music2vec_hf import EMATeacher, Music2VecFeatureExtractor, Music2VecForPreTraining, Music2VecModel
from music2vec_hf.cli import main
from music2vec_hf.hub.conversion import convert_fairseq_checkpoint, parse_conv_layers
from music2vec_hf.hub.fairseq_reader import read_checkpoint


class Mode(enum.Enum):
    layer_norm = "layer_norm"


class AnyNode:
    """As omegaconf keeps a value."""

    def __init__(self, value):
        self.__dict__ = {"_metadata": Metadata(), "_parent": None, "_val": value}


class Metadata:
    pass


class DictConfig:
    """As omegaconf keeps a mapping: nodes that know their parent."""

    def __init__(self, content):
        content = {k: DictConfig(v) if isinstance(v, dict) else AnyNode(v) for k, v in content.items()}
        for node in content.values():
            node.__dict__["_parent"] = self
        self.__dict__ = {"_metadata": Metadata(), "_parent": None, "_content": content}


@pytest.fixture
def foreign(monkeypatch):
    """`foreign(cls, module)`: pickles refer to `module`, which exists while saving and not afterwards."""
    made = {}

    def move(cls, module):
        monkeypatch.setattr(cls, "__module__", module)
        for depth in range(1, module.count(".") + 2):
            name = ".".join(module.split(".")[:depth])
            if name not in made:
                made[name] = types.ModuleType(name)
                monkeypatch.setitem(sys.modules, name, made[name])
        setattr(made[module], cls.__name__, cls)

    def forget():
        for name in made:
            monkeypatch.delitem(sys.modules, name)

    move.forget = forget
    return move


@pytest.fixture
def settings(golden):
    """The golden model's, in fairseq's names, as `cfg` has them."""
    model = golden("main.npz")["config"]["model"]
    return {
        "_name": None,
        "common": {"seed": 1, "fp16": np.float64(0.0)},
        "optimization": {"max_update": 4, "lr": [0.0005]},
        "task": {"_name": "audio_pretraining", "normalize": True, "sample_rate": 16_000},
        "model": {"_name": "data2vec_audio", **model, "layer_type": "transformer", "quantize_input": False},
    }


@pytest.fixture
def weights(golden):
    """The golden student and its teacher, in fairseq's names."""
    arrays = golden("main.npz")
    return {**golden_weights(arrays, "init/"), "_ema": golden_weights(arrays, "ema/")}


@pytest.fixture
def save(tmp_path, weights, settings):
    """`save(**changes)`: the checkpoint's path."""

    def write(zipped=True, **changes):
        content = {
            "args": None,
            "cfg": settings,
            "model": weights,
            "optimizer_history": [{"num_updates": 4, "best_loss": np.float32(1.5)}],
            "extra_state": {"train_iterator": {"epoch": 2}, "kept": {1, 2}},
            "last_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3)}}},
        }
        torch.save(content | changes, tmp_path / "ckpt.pt", _use_new_zipfile_serialization=zipped)
        return tmp_path / "ckpt.pt"

    return write


def as_omegaconf(settings, foreign):
    foreign(DictConfig, "omegaconf.dictconfig")
    foreign(AnyNode, "omegaconf.nodes")
    foreign(Metadata, "omegaconf.base")
    foreign(Mode, "fairseq.dataclass.constants")
    model = {**settings["model"], "ema_anneal_end_step": "${optimization.max_update}", "mask_dropout": "???"}
    return {"cfg": DictConfig({**settings, "model": {**model, "extractor_mode": Mode.layer_norm}})}


def as_namespace(settings, foreign):
    return {"cfg": None, "args": argparse.Namespace(arch="data2vec_audio", **settings["model"], normalize=True)}


def as_dict(settings, foreign):
    return {}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("layout", [as_dict, as_omegaconf, as_namespace])
def test_a_checkpoint_is_converted_whole(layout, zipped, save, settings, foreign, golden, tmp_path, caplog):
    checkpoint = save(zipped, **layout(settings, foreign))
    foreign.forget()
    arrays = golden("main.npz")
    out = convert_fairseq_checkpoint(checkpoint, tmp_path / "out")
    assert "omegaconf" not in sys.modules and "fairseq" not in sys.modules
    assert ("mask_dropout" in caplog.text) == (layout is as_omegaconf)  # the only field left to the reference's value

    student = Music2VecForPreTraining.from_pretrained(out)
    expected = golden_student(arrays)
    ours, theirs = student.config.to_dict(), expected.config.to_dict()
    assert {key for key in theirs if ours[key] != theirs[key]} <= {"_name_or_path", "architectures", "dtype"}
    for name, tensor in expected.state_dict().items():
        assert student.state_dict()[name].equal(tensor)
    source = torch.tensor(arrays["source"][:1])
    with torch.no_grad():
        states = Music2VecModel.from_pretrained(out).eval()(source).last_hidden_state
        assert states.equal(expected.eval()(source).last_hidden_state)
    np.testing.assert_allclose(states, golden("features.npz")["x"], atol=1e-5)

    teacher = EMATeacher(student)
    teacher.load_state_dict(load_file(out / "teacher.safetensors"))
    for name, tensor in teacher_names(golden_weights(arrays, "ema/")).items():
        assert teacher.state_dict()[name].equal(tensor)
    assert Music2VecFeatureExtractor.from_pretrained(out).do_normalize


def test_the_released_layout_half_precision_and_no_teacher(save, weights, golden, tmp_path):
    """The LibriSpeech release names its head `final_proj.0`; training in fp16 leaves fp16 weights."""
    model = {name.replace("final_proj.", "final_proj.0."): value for name, value in weights.items() if name != "_ema"}
    out = convert_fairseq_checkpoint(save(model={k: v.half() for k, v in model.items()}), tmp_path / "out")
    student = Music2VecForPreTraining.from_pretrained(out)
    assert student.final_proj.weight.equal(weights["final_proj.weight"].half().float())
    assert student.dtype == torch.float32 and not (out / "teacher.safetensors").exists()


def test_a_teacher_of_the_whole_model_is_left_out(save, weights, tmp_path, caplog):
    whole = {name: value for name, value in weights.items() if name != "_ema"}
    out = convert_fairseq_checkpoint(save(model={**whole, "_ema": whole}), tmp_path / "out")
    assert not (out / "teacher.safetensors").exists() and "was left out" in caplog.text


def test_without_a_configuration_the_shapes_and_the_reference_speak(save, tmp_path, caplog, tiny_config):
    tiny_config.hidden_size = 128
    torch.manual_seed(0)
    student = Music2VecForPreTraining(tiny_config)
    model = {fairseq_name(name): value for name, value in student.state_dict().items()}
    out = convert_fairseq_checkpoint(save(cfg=None, model=model), tmp_path / "out")
    assert "has no configuration" in caplog.text
    again = Music2VecForPreTraining.from_pretrained(out)
    assert again.config.num_attention_heads == 2 and again.config.mask_time_prob == 0.65
    assert again.config.num_conv_pos_embedding_groups == 4 and again.config.intermediate_size == 32
    source = torch.randn(1, 4_000)
    with torch.no_grad():
        assert again.eval()(source).last_hidden_state.equal(student.eval()(source).last_hidden_state)


def fairseq_name(name):
    """The key map of the method, read backwards and written down a second time."""
    for ours, theirs in (
        ("data2vec_audio.masked_spec_embed", "mask_emb"),
        ("data2vec_audio.feature_projection.layer_norm", "layer_norm"),
        ("data2vec_audio.feature_projection.projection", "post_extract_proj"),
        ("data2vec_audio.", ""),
        ("pos_conv_embed.layers.", "pos_conv."),
        ("feed_forward.intermediate_dense", "fc1"),
        ("feed_forward.output_dense", "fc2"),
        ("attention.", "self_attn."),
    ):
        name = name.replace(ours, theirs)
    if name.startswith("encoder.layers."):
        name = name.replace(".layer_norm.", ".self_attn_layer_norm.")
    if name.startswith("feature_extractor."):
        name = name.replace(".layer_norm.", ".2.1.")
    return name.replace(".conv.", ".0.")


def test_another_objective_is_said(save, settings, tmp_path, caplog):
    settings["model"]["instance_norm_target_layer"] = False
    convert_fairseq_checkpoint(save(), tmp_path / "out")
    assert "'instance_norm_target_layer': False" in caplog.text and "another objective" in caplog.text


class Attack:
    """A pickle of this calls what it is made of."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


PLACES = ["cfg", "extra_state", "model", "weight", "setting"]
CALLED = [os.system, eval, exec, __import__, os.mkdir]
# Each call in each place, and each of both in both formats.
ATTACKS = [(call, place, (a + b) % 2 == 0) for a, call in enumerate(CALLED) for b, place in enumerate(PLACES)]


@pytest.mark.parametrize("function, place, zipped", ATTACKS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_hostile_checkpoint_runs_nothing(function, place, zipped, save, weights, settings, tmp_path, capfd):
    ran = tmp_path / "ran"
    argument = {
        os.system: f"mkdir {ran}", os.mkdir: str(ran), __import__: "this"
    }.get(function, f"__import__('os').mkdir({str(ran)!r})")  # fmt: skip
    attack = Attack(function, argument)
    sys.modules.pop("this", None)
    if place == "weight":
        checkpoint = save(zipped, model={**weights, "mask_emb": attack})
    elif place == "setting":
        settings["model"]["encoder_layers"] = attack
        checkpoint = save(zipped)
    else:
        checkpoint = save(zipped, **{place: attack})
    code = main(["convert", str(checkpoint), str(tmp_path / "out")])
    assert not ran.exists() and "this" not in sys.modules
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("music2vec:")]
    assert code == len(errors) == (0 if place == "extra_state" else 1)


def test_the_attack_is_real(save, tmp_path):
    """The control of the test above: read carelessly, such a file does what it says."""
    checkpoint = save(extra_state=Attack(os.mkdir, str(tmp_path / "ran")))
    torch.load(checkpoint, weights_only=False)
    assert (tmp_path / "ran").exists()


def test_stand_ins_take_any_state(save, foreign, tmp_path):
    """Classes with slots, lists, dicts and sets of other libraries are read over."""

    class Slotted:
        __slots__ = ("value",)

    class Words(list):
        pass

    class Table(dict):
        pass

    class Bag(set):
        pass

    slotted = Slotted()
    slotted.value = 1
    for cls in (Slotted, Words, Table, Bag):
        cls.__qualname__ = cls.__name__
        foreign(cls, "fairseq.data")
    checkpoint = save(extra_state=[slotted, Words("ab"), Table(a=1), Bag("ab"), {1, 2}, np.arange(3), b"\xff"])
    foreign.forget()
    assert read_checkpoint(checkpoint)["extra_state"][4] == {1, 2}
    assert read_checkpoint(checkpoint)["extra_state"][6] == b"\xff"
    assert read_checkpoint(checkpoint)["optimizer_history"][0]["best_loss"] == 1.5


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(share, zipped, save, tmp_path):
    checkpoint = save(zipped)
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"cannot be read as a torch checkpoint"):
        convert_fairseq_checkpoint(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_files_are_refused(save, tmp_path):
    out, path = tmp_path / "out", tmp_path / "other.pt"
    with pytest.raises(FileNotFoundError, match="There is no file"):
        convert_fairseq_checkpoint(tmp_path / "nowhere.pt", out)
    path.write_text("a note, no checkpoint")
    with pytest.raises(ValueError, match="cannot be read"):
        convert_fairseq_checkpoint(path, out)
    with tarfile.open(path, "w") as archive:
        archive.add(save(), arcname="storages")
    with pytest.raises(ValueError, match="tar archive"):
        convert_fairseq_checkpoint(path, out)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("version", "3\n"), ("data.pkl", ""), ("constants.pkl", "")):
            archive.writestr(f"archive/{name}", content)
    with pytest.raises(ValueError, match="TorchScript archive"):
        convert_fairseq_checkpoint(path, out)
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(ValueError, match="an entry `model`"):
        convert_fairseq_checkpoint(path, out)
    assert not out.exists()


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"_name": "wav2vec_ctc"}, "a fairseq checkpoint of wav2vec_ctc"),
        ({"encoder_layers": 3}, "states `num_hidden_layers` 3 but its weights have 4"),
        ({"conv_feature_layers": "[(32, 10, 5)] * 7"}, "states `conv_kernel`"),
        ({"conv_feature_layers": "__import__('os').getcwd()"}, "`conv_feature_layers` is"),
        ({"conv_pos": 100}, "states `conv_pos_kernel_size` 20 but its weights have 19"),
        ({"extractor_mode": "default"}, "`extractor_mode` 'default', a network that this library has not"),
        ({"layer_norm_first": True}, "`layer_norm_first` True"),
        ({"encoder_attention_heads": None}, "does not state `encoder_attention_heads`"),
        ({"encoder_attention_heads": 5}, "divisible"),
        ({"mask_prob": 2.0}, "`mask_time_prob` is 2.0"),
        ({"dropout": "much"}, "hidden_dropout"),
        ({"conv_pos": "95", "pos_conv_depth": []}, "num_conv_pos_embeddings"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(changes, sentence, save, settings, tmp_path):
    settings["model"] |= changes
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        convert_fairseq_checkpoint(save(), tmp_path / "out")


def test_weights_that_do_not_fit_are_refused(save, weights, tmp_path):
    def refused(sentence, **changes):
        model = {name: value for name, value in (weights | changes).items() if value is not None}
        with pytest.raises(ValueError, match=sentence):
            convert_fairseq_checkpoint(save(model=model), tmp_path / "out")

    refused("lacks weights .1: final_proj.bias", **{"final_proj.bias": None})
    refused("has misshapen weights .1: final_proj.bias", **{"final_proj.bias": torch.zeros(3)})
    refused("names that no data2vec-audio model has", **{"quantizer.vars": torch.zeros(3)})
    refused("weights such as `feature_extractor", **{"mask_emb": None})
    refused("lacks the convolutions or the layers", **{n: None for n in weights if "fc1" in n})
    refused("teacher .* lacks weights", _ema={"layer_norm.weight": weights["_ema"]["layer_norm.weight"]})
    refused("is no tensor", mask_emb="text")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(save, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose this")
    assert main(["convert", str(save()), str(tmp_path / "mine")]) == 1
    assert "exists and is not empty" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "ckpt.pt"), str(tmp_path / "new")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "new")


def test_convolutions_are_read_without_eval():
    base = parse_conv_layers("[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]")
    assert base == [(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2
    wrong = ("[]", "[(1, 2)]", "[(1, 2, 0)]", "7", "[(1, 2, 3)] * 10 ** 9", "[(1, 2, 3)] * n", "[(1,", None, "[1]")
    for text in wrong:
        with pytest.raises(ValueError, match="has to be a sum of lists"):
            parse_conv_layers(text)
