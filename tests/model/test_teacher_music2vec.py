"""Laws of the teacher."""

import pytest
import torch

from music2vec_hf import EMATeacher, Music2VecForPreTraining
from music2vec_hf.hub.conversion import convert_fairseq_state_dict


def moved(student, by=1.0):
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(by)
    return student


def test_after_n_updates_from_a_fixed_student(tiny_student):
    tiny_student.config.ema_decay = tiny_student.config.ema_end_decay = 0.9
    teacher = EMATeacher(tiny_student)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = moved(tiny_student)
    for step in range(1, 6):
        assert teacher.update(student, step) == pytest.approx(0.9)
    for name, after in teacher.state_dict().items():
        expected = before[name] + (1.0 if name.startswith("pos_conv_embed") else 1 - 0.9**5)
        torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-5)


def test_without_ema_layers_only_the_positional_convolution_is_averaged_too(tiny_student):
    tiny_student.config.ema_layers_only = False
    tiny_student.config.ema_decay = tiny_student.config.ema_end_decay = 0.5
    teacher = EMATeacher(tiny_student)
    before = teacher.state_dict()["pos_conv_embed.layers.0.conv.weight"].clone()
    teacher.update(moved(tiny_student), 1)
    after = teacher.state_dict()["pos_conv_embed.layers.0.conv.weight"]
    torch.testing.assert_close(after, before + 0.5)


def test_the_decay_hits_both_ends(tiny_student):
    config = tiny_student.config
    config.ema_decay, config.ema_end_decay, config.ema_anneal_end_step = 0.99, 0.999, 100
    teacher = EMATeacher(tiny_student)
    assert teacher.decay(1) == pytest.approx(0.99 + 0.009 / 100)
    assert teacher.decay(50) == pytest.approx(0.9945)
    assert teacher.decay(100) == teacher.decay(10_000) == 0.999
    with pytest.raises(ValueError, match="Steps are counted from 1"):
        teacher.update(tiny_student, 0)


def test_buffers_follow(tiny_student):
    tiny_student.data2vec_audio.encoder.register_buffer("count", torch.zeros(1))
    teacher = EMATeacher(tiny_student)
    tiny_student.data2vec_audio.encoder.count += 7
    teacher.update(tiny_student, 1)
    assert teacher.encoder.count.item() == 7


def test_it_is_no_part_of_what_is_published(tiny_student, tmp_path):
    teacher = EMATeacher(tiny_student)
    assert not any("teacher" in name for name in tiny_student.state_dict())
    assert not teacher.encoder.training and not any(p.requires_grad for p in teacher.encoder.parameters())
    tiny_student.train()
    assert not teacher.encoder.training
    tiny_student.save_pretrained(tmp_path)
    Music2VecForPreTraining.from_pretrained(tmp_path)


def test_state_round_trip(tiny_student):
    teacher = EMATeacher(tiny_student)
    teacher.update(moved(tiny_student), 1)
    other = EMATeacher(tiny_student)
    other.load_state_dict(teacher.state_dict())
    for name, tensor in teacher.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name], atol=0, rtol=0)


def test_targets_are_normalised_over_time(tiny_student):
    tiny_student.config.average_top_k_layers = 1
    teacher = EMATeacher(tiny_student)
    for parameter in teacher.encoder.parameters():
        parameter.mul_(10.0)  # at its initial size a result varies so little that epsilon matters
    targets = teacher.targets(torch.randn(3, 60, 16))
    torch.testing.assert_close(targets.mean(1), torch.zeros(3, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(targets.var(1, unbiased=False), torch.ones(3, 16), atol=1e-2, rtol=0)


def test_layer_norm_targets_normalises_over_channels(tiny_student):
    tiny_student.config.layer_norm_targets = True
    targets = EMATeacher(tiny_student).targets(torch.randn(3, 60, 16))
    torch.testing.assert_close(targets.mean(-1), torch.zeros(3, 60), atol=1e-5, rtol=0)


def test_foreign_names_are_refused():
    with pytest.raises(ValueError, match=r"1 names that no data2vec-audio model has \(quantizer.vars\)"):
        convert_fairseq_state_dict({"quantizer.vars": torch.zeros(1), "mask_emb": torch.zeros(4)})
