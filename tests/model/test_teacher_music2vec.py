"""Laws of the teacher."""

import pytest
import torch

from music2vec_hf import EMATeacher
from music2vec_hf.hub.conversion import convert_fairseq_state_dict


def moved(student, by=1.0):
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(by)
    return student


@pytest.mark.parametrize("layers_only", [True, False])
def test_after_n_updates_from_a_fixed_student(tiny_student, layers_only):
    tiny_student.config.ema_layers_only = layers_only
    tiny_student.config.ema_decay = tiny_student.config.ema_end_decay = 0.9
    teacher = EMATeacher(tiny_student)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = moved(tiny_student)
    for step in range(1, 6):
        assert teacher.update(student, step) == pytest.approx(0.9)
    for name, after in teacher.state_dict().items():
        copied = layers_only and name.startswith("pos_conv_embed")
        torch.testing.assert_close(after, before[name] + (1 if copied else 1 - 0.9**5), atol=1e-5, rtol=1e-5)


def test_steps_are_counted_from_1(tiny_student):
    with pytest.raises(ValueError, match="Steps are counted from 1"):
        EMATeacher(tiny_student).update(tiny_student, 0)


def test_buffers_follow(tiny_student):
    tiny_student.data2vec_audio.encoder.register_buffer("count", torch.zeros(1))
    teacher = EMATeacher(tiny_student)
    tiny_student.data2vec_audio.encoder.count += 7
    teacher.update(tiny_student, 1)
    assert teacher.encoder.count.item() == 7


def test_it_is_no_part_of_what_is_published(tiny_student):
    teacher = EMATeacher(tiny_student)
    assert not any("teacher" in name for name in tiny_student.state_dict())
    assert not teacher.encoder.training and not any(p.requires_grad for p in teacher.encoder.parameters())
    tiny_student.train()
    assert not teacher.encoder.training


def test_layer_norm_targets_normalises_over_channels(tiny_student):
    tiny_student.config.layer_norm_targets = True
    targets = EMATeacher(tiny_student).targets(torch.randn(3, 60, 16))
    torch.testing.assert_close(targets.mean(-1), torch.zeros(3, 60), atol=1e-5, rtol=0)


def test_foreign_names_are_refused():
    with pytest.raises(ValueError, match=r"1 names that no data2vec-audio model has \(quantizer.vars\)"):
        convert_fairseq_state_dict({"quantizer.vars": torch.zeros(1), "mask_emb": torch.zeros(4)})
