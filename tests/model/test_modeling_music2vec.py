"""Laws of the models: what they share with transformers, what the loss sees, and how they travel."""

import numpy as np
import pytest
import torch
from toy_model import save_model
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForPreTraining,
    Data2VecAudioConfig,
    Data2VecAudioModel,
)

import music2vec_hf as m2v
from music2vec_hf.model.modeling_music2vec import channel_std, data2vec_loss


def plain_twin(model: m2v.Music2VecModel) -> Data2VecAudioModel:
    known = Data2VecAudioConfig().to_dict()
    own = ("model_type", "architectures")
    fields = {k: v for k, v in model.config.to_dict().items() if k in known and k not in own}
    twin = Data2VecAudioModel(Data2VecAudioConfig(**fields))
    twin.load_state_dict(model.state_dict())
    return twin.eval()


@pytest.mark.parametrize("num_samples", [400, 401, 5_000, 16_000, 16_001, 48_123])
def test_the_encoder_equals_transformers(tiny_config, num_samples):
    model = m2v.Music2VecModel(tiny_config).eval().double()  # in double precision only an error can be seen
    input_values = torch.randn(2, num_samples, dtype=torch.float64)
    with torch.no_grad():
        ours = model(input_values, output_hidden_states=True)
        theirs = plain_twin(model).double()(input_values, output_hidden_states=True)
    assert ours.last_hidden_state.shape == (2, tiny_config.num_frames(num_samples), 16)
    for mine, yours in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(mine, yours, atol=1e-6, rtol=1e-6)


def test_it_masks_only_where_it_is_handed_a_mask(tiny_config):
    model = m2v.Music2VecModel(tiny_config)
    input_values, mask = torch.randn(1, 16_000), torch.zeros(1, 49, dtype=torch.bool)
    with torch.no_grad():
        in_training, in_eval = model.train()(input_values), model.eval()(input_values)
        torch.testing.assert_close(in_training.last_hidden_state, in_eval.last_hidden_state)
        mask[0, 10:20] = True
        masked = model(input_values, mask_time_indices=mask)
        assert not torch.allclose(masked.last_hidden_state, in_eval.last_hidden_state)


def test_plain_transformers_does_not_mask_our_checkpoint_by_itself(tiny_config, tmp_path):
    m2v.Music2VecModel(tiny_config).save_pretrained(tmp_path)
    plain = Data2VecAudioModel.from_pretrained(tmp_path)
    input_values = torch.randn(1, 16_000)
    with torch.no_grad():
        in_training, in_eval = plain.train()(input_values.clone()), plain.eval()(input_values.clone())
        torch.testing.assert_close(in_training.last_hidden_state, in_eval.last_hidden_state)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_smooth_l1_below_and_above_beta(beta):
    predictions = torch.tensor([[0.1, 3.0]])
    loss = data2vec_loss(predictions, torch.zeros(1, 2), loss_beta=beta, loss_scale=1.0)
    assert loss.item() == pytest.approx(0.5 * 0.1**2 / beta + 3.0 - 0.5 * beta, rel=1e-6)


def test_predictions_and_targets_are_the_masked_frames_row_major(tiny_student, batch):
    input_values, mask = batch
    teacher = m2v.EMATeacher(tiny_student)
    output = tiny_student.eval()(input_values, mask_time_indices=mask, teacher=teacher)
    assert output.predictions.shape == output.targets.shape == (30, 16)
    assert output.loss.dtype == torch.float32 and not output.targets.requires_grad
    torch.testing.assert_close(output.predictions, tiny_student.final_proj(output.last_hidden_state[mask]))
    first = tiny_student(input_values[:1], mask_time_indices=mask[:1], teacher=teacher)
    torch.testing.assert_close(output.targets[:15], first.targets, atol=1e-5, rtol=1e-5)
    by_hand = np.sqrt(output.targets.numpy().var(axis=0, ddof=1) + 1e-6).mean()
    assert output.target_std.item() == pytest.approx(by_hand, rel=1e-5)


def test_targets_do_not_see_the_mask(tiny_student, batch):
    input_values, mask = batch
    teacher = m2v.EMATeacher(tiny_student)
    everywhere = torch.ones_like(mask)
    everywhere[:, -1] = False
    with torch.no_grad():
        some = tiny_student(input_values, mask_time_indices=mask, teacher=teacher).targets
        many = tiny_student(input_values, mask_time_indices=everywhere, teacher=teacher).targets
    torch.testing.assert_close(some, many.reshape(2, 48, 16)[mask[:, :48]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("factor", [0.0, 0.1])
def test_feature_grad_mult_scales_the_front_ends_gradient(tiny_student, batch, factor):
    input_values, mask = batch
    norms = []
    for value in (1.0, factor):
        tiny_student.config.feature_grad_mult = value
        tiny_student.zero_grad()
        tiny_student.eval()(input_values, mask_time_indices=mask, teacher=m2v.EMATeacher(tiny_student)).loss.backward()
        gradient = tiny_student.data2vec_audio.feature_extractor.conv_layers[0].conv.weight.grad
        norms.append(0.0 if gradient is None else gradient.norm().item())
    assert norms[1] == pytest.approx(factor * norms[0], rel=1e-4)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"mask_time_indices": None}, "There is a `teacher` but no `mask_time_indices`"),
        ({"mask_time_indices": torch.zeros(2, 49, dtype=torch.bool)}, "masks no frame"),
        ({"mask_time_indices": torch.ones(2, 50, dtype=torch.bool)}, "has shape \\(2, 50\\) but the front end yields"),
        ({"input_values": torch.zeros(2, 399)}, "at least 400 samples a row"),
        ({"input_values": torch.zeros(2, 1, 16_000)}, "Give `\\(batch_size, num_samples\\)`"),
    ],
)
def test_bad_input_is_refused(tiny_student, batch, change, sentence):
    arguments = {
        "input_values": batch[0],
        "mask_time_indices": batch[1],
        "teacher": m2v.EMATeacher(tiny_student),
    } | change
    with pytest.raises(ValueError, match=sentence):
        tiny_student(**arguments)


def test_channel_std_of_a_constant_is_its_floor():
    assert channel_std(torch.ones(10, 4)).item() == pytest.approx(1e-3, rel=1e-4)


@pytest.mark.parametrize(
    "kind, auto",
    [
        (m2v.Music2VecModel, AutoModel),
        (m2v.Music2VecForPreTraining, AutoModelForPreTraining),
        (m2v.Music2VecForSequenceClassification, AutoModelForAudioClassification),
    ],
)
def test_saved_models_come_back_through_the_auto_classes(tiny_config, tmp_path, kind, auto):
    torch.manual_seed(1)
    model = kind(tiny_config)
    save_model(model, tmp_path)
    reloaded = auto.from_pretrained(tmp_path)
    assert type(reloaded) is kind
    assert type(AutoFeatureExtractor.from_pretrained(tmp_path)) is m2v.Music2VecFeatureExtractor
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, reloaded.state_dict()[name], atol=0, rtol=0)


@pytest.mark.parametrize("acoustic_weight", [0.0, 1.0])
def test_a_pretrained_student_loads_as_encoder_and_into_a_head(tiny_config, acoustic_weight, tmp_path, caplog):
    tiny_config.acoustic_weight = acoustic_weight
    student = m2v.Music2VecForPreTraining(tiny_config)
    student.save_pretrained(tmp_path)
    with caplog.at_level("WARNING"):
        encoder = m2v.Music2VecModel.from_pretrained(tmp_path)
    assert caplog.records == []
    head = m2v.Music2VecForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert encoder.config.acoustic_weight == head.config.acoustic_weight == acoustic_weight
    for model in (encoder, head.data2vec_audio):
        for name, tensor in student.data2vec_audio.state_dict().items():
            torch.testing.assert_close(tensor, model.state_dict()[name], atol=0, rtol=0)
    assert head.feature_std.eq(1).all() and head.feature_mean.eq(0).all()
    again = m2v.Music2VecForPreTraining.from_pretrained(tmp_path).state_dict()
    assert again.keys() == student.state_dict().keys()
