"""Distillation: what a frozen teacher sets as targets, the student's loss, and runs that are resumed."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from toy_model import SIZES, save_model
from toy_run import TOY, losses, read_records, toy
from transformers import AutoModel, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

import music2vec_hf
from music2vec_hf import cli
from music2vec_hf.features.encoders import load_encoder
from music2vec_hf.hub.card import describe_run
from music2vec_hf.pretraining.distillation import FrozenTeacher, copy_matching_weights, new_distillation
from music2vec_hf.pretraining.loop import pretrain

# Half of the teacher's layers, half its width.
STUDENT = {"num_hidden_layers": 1, "average_top_k_layers": 1, "hidden_size": 8, "intermediate_size": 16}


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    torch.manual_seed(0)
    config = music2vec_hf.Music2VecConfig(**SIZES | {"num_hidden_layers": 2})
    return str(save_model(music2vec_hf.Music2VecModel(config), tmp_path_factory.mktemp("teacher")))


@pytest.fixture(scope="module")
def foreign_folder(tmp_path_factory):
    """A wav2vec2 at 24 kHz with 75 frames a second, which says so by its convolutions."""
    folder = tmp_path_factory.mktemp("foreign")
    torch.manual_seed(0)
    sizes = {name: SIZES[name] for name in ("hidden_size", "num_attention_heads", "intermediate_size")}
    sizes |= {"conv_dim": [8, 8], "conv_kernel": [400, 2], "conv_stride": [160, 2], "num_hidden_layers": 2}
    sizes |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    Wav2Vec2Model(Wav2Vec2Config(**sizes, num_feat_extract_layers=2)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=24_000).save_pretrained(folder)
    return str(folder)


def crops(rows=2, samples=16_000):
    return torch.tensor(np.random.default_rng(0).standard_normal((rows, samples)), dtype=torch.float32)


def learners(folder, **changes):
    torch.manual_seed(1)
    student, teacher = new_distillation(toy(distill_from=folder, **STUDENT, **changes))
    return student.eval(), teacher


def mask_of(rows=2, views=1, first=3, frames=49):
    mask = torch.zeros(rows, views, frames, dtype=torch.bool)
    mask[..., first : first + 15] = True
    return mask


def test_targets_are_the_layers_that_the_encoder_gives(teacher_folder):
    _, teacher = learners(teacher_folder, distill_layers=["conv", 2])
    expected = dict(load_encoder(teacher_folder).frames(crops()))
    for target, name in zip(teacher.targets(crops()), ("conv", "2"), strict=True):
        torch.testing.assert_close(target, expected[name])
        assert not target.requires_grad


def test_without_layers_the_target_is_the_normalised_mean_of_the_top(teacher_folder):
    _, teacher = learners(teacher_folder, distill_top_k=8)  # of two
    expected = dict(load_encoder(teacher_folder).frames(crops()))
    mean = sum(F.instance_norm(expected[name].transpose(1, 2)) for name in ("1", "2")).transpose(1, 2) / 2
    (target,) = teacher.targets(crops())
    torch.testing.assert_close(target, mean)
    _, teacher = learners(teacher_folder, distill_top_k=1)
    torch.testing.assert_close(teacher.targets(crops())[0], F.instance_norm(expected["2"].transpose(1, 2)).mT)


class Clock(torch.nn.Module):
    """An encoder whose frames tell where in time they lie."""

    def __init__(self, model):
        super().__init__()
        self.config, self.weight = model.config, torch.nn.Parameter(torch.zeros(1))

    def frames(self, input_values):
        times = self.config.frame_times(self.config.num_frames(input_values.shape[1]))
        yield "1", torch.tensor(times, dtype=torch.float32)[None, :, None].expand(len(input_values), -1, 2)


@pytest.mark.parametrize("stride", [[5, 2, 2, 2, 2, 2, 2], [5, 2, 2, 2, 2, 2, 4], [5, 2, 2, 2, 2, 2, 1]], ids=str)
def test_targets_lie_where_the_students_frames_lie(stride, teacher_folder, monkeypatch):
    encoder = load_encoder(teacher_folder)
    encoder.model, encoder.layers = Clock(encoder.model), ["1"]
    monkeypatch.setattr(encoder, "frames", encoder.model.frames)
    config = music2vec_hf.Music2VecConfig(**SIZES, conv_stride=stride)
    (target,) = FrozenTeacher(encoder, config, ["1"]).targets(crops())
    times = torch.tensor(config.frame_times(config.num_frames(16_000)), dtype=torch.float32)
    assert target.shape == (2, len(times), 2)
    ends = encoder.front_end.frame_times(49)[[0, -1]]  # beyond the teacher's ends its outermost frames stand
    torch.testing.assert_close(target[0, :, 0], times.clamp(*map(float, ends)))


def test_a_teacher_of_another_kind_hears_at_its_own_rate(foreign_folder):
    student, teacher = learners(foreign_folder, distill_layers=[0, 2])
    targets = teacher.targets(crops())
    assert [target.shape for target in targets] == [(2, 49, SIZES["hidden_size"])] * 2
    encoder = load_encoder(foreign_folder)
    row = encoder.prepare(encoder.to_samples(crops()[1].numpy(), 16_000))
    frames = dict(encoder.frames(torch.from_numpy(row)[None]))["2"]
    place = (student.config.frame_times(49)[10] - 200.5 / 24_000 - 159.5 / 48_000) / (320 / 24_000)
    before = int(place)
    expected = frames[0, before].lerp(frames[0, before + 1], place - before)
    torch.testing.assert_close(targets[1][1, 10], expected, atol=0.02, rtol=0.02)
    output = student(crops(), None, mask_of(), teacher)
    output.loss.backward()
    assert all(p.grad is not None for p in student.data2vec_audio.encoder.layers.parameters())


@pytest.mark.parametrize("cosine, l1", [(1.0, 0.0), (0.0, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize("heard", ["whole", "masked", "both"])
def test_the_loss_is_the_recipes_sum_over_heads_and_frames(heard, cosine, l1, teacher_folder):
    changes = {"distill_layers": [1, 2], "distill_crops": heard, "distill_cosine": cosine, "distill_l1": l1}
    student, teacher = learners(teacher_folder, **changes)
    mask = mask_of(views=2)
    output = student(crops(), None, mask, teacher)
    views = {"whole": [None], "masked": [mask[:, 0], mask[:, 1]], "both": [None, mask[:, 0], mask[:, 1]]}[heard]
    total = 0.0
    for hidden in views:
        states = student.data2vec_audio(crops(), mask_time_indices=hidden).last_hidden_state
        for head, target in zip(student.distillation_heads, teacher.targets(crops()), strict=True):
            prediction = head(states)
            products = (prediction * target).sum(-1) / prediction.norm(dim=-1) / target.norm(dim=-1)
            total += cosine * (1 - products).sum() + l1 * (prediction - target).abs().mean(-1).sum()
    torch.testing.assert_close(output.loss, total / (2 * mask.sum()))
    assert output.predictions.shape == output.targets.shape == (int(mask.sum()), SIZES["hidden_size"])
    rows, _, frames = mask.nonzero(as_tuple=True)
    torch.testing.assert_close(output.targets, teacher.targets(crops())[1][rows, frames])


def test_spectra_are_learned_beside_the_teacher_where_the_recipe_says_so(teacher_folder):
    both, teacher = learners(teacher_folder, acoustic_weight=2.0)
    output = both(crops(), None, mask_of(), teacher)
    alone = output.loss - 2.0 * output.acoustic_loss
    both.acoustic_head = None
    torch.testing.assert_close(both(crops(), None, mask_of(), teacher).loss, alone)


def test_layers_start_as_every_kth_of_the_teacher(teacher_folder):
    teacher = load_encoder(teacher_folder).model
    torch.manual_seed(5)
    student = music2vec_hf.Music2VecModel(music2vec_hf.Music2VecConfig(**SIZES | {"num_hidden_layers": 1}))
    assert set(copy_matching_weights(teacher, student)) == set(student.state_dict())
    pairs = zip(student.encoder.layers[0].parameters(), teacher.encoder.layers[1].parameters(), strict=True)
    assert all(ours.equal(theirs) for ours, theirs in pairs)
    narrow = music2vec_hf.Music2VecModel(music2vec_hf.Music2VecConfig(**{**SIZES, **STUDENT}))
    copied = copy_matching_weights(teacher, narrow)
    assert copied and not any("encoder.layers" in name and "weight" in name for name in copied)
    random = learners(teacher_folder, distill_init=False)[0].data2vec_audio
    first, second = (model.feature_extractor.conv_layers[1].conv.weight for model in (random, teacher))
    assert not first.equal(second)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"distill_layers": [3]}, "There is no layer 3. This model has conv, 0, 1, 2"),
        ({"init_from": "tiny"}, "`init_from` is tiny in a distillation"),
        ({"distill_cosine": 0.0, "distill_l1": 0.0}, "are both 0"),
        ({"distill_crops": "half"}, "`distill_crops` is 'half'. Use one of whole, masked, both"),
        ({"distill_from": "nothing/there"}, "nothing/there"),
    ],
    ids=str,
)
def test_settings_that_cannot_be(changes, message, teacher_folder):
    with pytest.raises(ValueError, match=message):
        new_distillation(toy(**{"distill_from": teacher_folder, **STUDENT, **changes}))


@pytest.fixture(scope="module")
def distilled(toy_corpus, teacher_folder, tmp_path_factory):
    """A run by the command, and the changes to the toy recipe that make it."""
    folder = tmp_path_factory.mktemp("distilled")
    changes = {**STUDENT, "distill_layers": [1, 2]}
    (folder / "student.yaml").write_text(json.dumps({**TOY, **changes}))
    words = ["distill", teacher_folder, "--recipe", str(folder / "student.yaml"), "--corpus", str(toy_corpus)]
    assert cli.main([*words, "--output", str(folder / "run")]) == 0
    return folder / "run", {**changes, "distill_from": teacher_folder}


def test_the_student_is_a_plain_folder(distilled):
    output, _ = distilled
    names = set(load_file(output / "model.safetensors"))
    model, report = AutoModel.from_pretrained(output, output_loading_info=True)
    assert type(model) is music2vec_hf.Music2VecModel and names == set(model.state_dict())
    assert not any(report.values())
    assert music2vec_hf.embed(output, [np.ones(16_000, np.float32).cumsum() % 1]).shape == (1, 2, 8)
    assert AutoModel.from_pretrained(output / "checkpoint-6").config.num_hidden_layers == 1
    assert describe_run(output)["teacher"]
    assert len(read_records(output)) == 6 and all(np.isfinite(record["loss"]) for record in read_records(output))


@pytest.fixture
def half_run(distilled, tmp_path):
    """A copy of the run as a kill after its second last checkpoint leaves it."""
    shutil.copytree(distilled[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    (tmp_path / "run" / "model.safetensors").unlink()
    return tmp_path / "run"


def test_a_resumed_run_is_equal_to_the_last_bit(distilled, half_run, toy_corpus):
    """That a run which is killed leaves what is resumed here, `test_interruptions` shows."""
    output, changes = distilled
    pretrain(toy(**changes), toy_corpus, half_run, resume=True)
    assert losses(half_run) == losses(output)
    assert (half_run / "model.safetensors").read_bytes() == (output / "model.safetensors").read_bytes()


def test_a_run_does_not_go_on_with_other_weights_of_its_teacher(distilled, half_run, toy_corpus, tmp_path):
    torch.manual_seed(9)
    config = music2vec_hf.Music2VecConfig(**SIZES | {"num_hidden_layers": 2})
    other = save_model(music2vec_hf.Music2VecModel(config), tmp_path / "other")
    with pytest.raises(ValueError, match="has other weights than the one this run began with"):
        pretrain(toy(**{**distilled[1], "distill_from": str(other)}), toy_corpus, half_run, resume=True)


def test_the_student_comes_near_its_teacher(teacher_folder, toy_corpus, tmp_path):
    """What it predicts after some steps is nearer than what it predicts at first."""
    changes = {"distill_from": teacher_folder, "distill_layers": [2], "max_steps": 30, "learning_rate": 3e-3}
    found = [loss for _, loss, _ in losses(pretrain(toy(**STUDENT, **changes), toy_corpus, tmp_path / "run"))]
    assert np.mean(found[-5:]) < 0.8 * np.mean(found[:3])
