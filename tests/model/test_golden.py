"""The objective against numbers made by the reference's own code (tests/golden/README.md), in float32.

The second half turns the tests on themselves: each error that our code could plausibly make, made on purpose, has to
fail them.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_student import golden_student, golden_weights, teacher_names

from music2vec_hf import EMATeacher, Music2VecConfig, Music2VecForPreTraining, convert_fairseq_state_dict
from music2vec_hf.pretraining.schedules import ReferenceAdam, tri_stage_learning_rate


def check_run(main, golden_arrays, make_teacher=EMATeacher, make_optimizer=ReferenceAdam, norms_only=False):
    """Five training steps; asserts every golden figure at the tolerances of tests/golden/README.md."""
    student = golden_student(main)
    arrays, settings = golden_arrays, main["config"]["optimisation"]
    teacher = make_teacher(student)
    named = {name: settings[name] for name in ("betas", "eps", "weight_decay")}
    optimizer = make_optimizer(student.parameters(), lr=settings["peak_lr"], **named)
    source = torch.tensor(arrays["source"])
    attention_mask = None if "padding_mask" not in arrays else torch.tensor(~arrays["padding_mask"]).long()
    for step in range(5):
        mask = torch.tensor(arrays["mask_indices"][step])
        output = student(source, attention_mask=attention_mask, mask_time_indices=mask, teacher=teacher)
        if f"step{step}/targets" in arrays:
            assert_close(output.targets, arrays[f"step{step}/targets"], atol=5e-5)
            assert_close(output.predictions, arrays[f"step{step}/predictions"], atol=1e-5)
        assert int(mask.sum()) == arrays["sample_size"][step] == len(output.targets)
        assert_close(output.loss * mask.sum(), arrays["loss_sum"][step], rtol=1e-5)
        assert_close(output.target_std, arrays["target_var"][step], rtol=1e-5)
        assert_close(output.prediction_std, arrays["pred_var"][step], rtol=1e-5)
        optimizer.zero_grad()
        output.loss.backward()
        if step == 0:
            check_gradients(student, arrays)
        optimizer.step()
        used = teacher.update(student, step + 1)
        expected = arrays["ema_decay_used"][step + 1] if step < 4 else arrays["ema_decay_next"]
        assert used == pytest.approx(float(expected), rel=1e-6)
    check_norms(student.state_dict(), arrays, "final_param", lambda sd: convert_fairseq_state_dict(sd)[0])
    check_norms(teacher.state_dict(), arrays, "ema_param", teacher_names)
    if norms_only:
        return
    check_weights(student.state_dict(), golden_weights(arrays, "final/"), lambda sd: convert_fairseq_state_dict(sd)[0])
    check_weights(teacher.state_dict(), golden_weights(arrays, "ema/"), teacher_names)


def check_gradients(student, arrays):
    parameters = dict(student.named_parameters())
    for name, norm in zip(arrays["step0/grad_names"], arrays["step0/grad_norms"], strict=True):
        (ours,) = convert_fairseq_state_dict({str(name): None})[0]
        assert_close(parameters[ours].grad.norm(), norm, rtol=1e-3, atol=1e-6)
    for key in [k for k in arrays if k.startswith("step0/grad/")]:
        (ours,) = convert_fairseq_state_dict({key.removeprefix("step0/grad/"): None})[0]
        assert_close(parameters[ours].grad, arrays[key], atol=1e-5)


def check_weights(weights, expected, convert):
    assert len(expected) > 0
    for name, value in convert(expected).items():
        assert_close(weights[name], value, atol=1e-5)


def check_norms(weights, arrays, key, convert):
    for name, norm in zip(arrays[f"{key}_names"], arrays[f"{key}_norms"], strict=True):
        (ours,) = convert({str(name): None})
        assert_close(weights[ours].norm(), norm, rtol=1e-5, atol=1e-5)


def assert_close(actual, expected, rtol=0.0, atol=0.0):
    actual = actual.detach().numpy() if isinstance(actual, torch.Tensor) else np.asarray(actual)
    np.testing.assert_allclose(actual, np.asarray(expected), rtol=rtol, atol=atol)


def test_five_steps_equal_the_reference(golden):
    main = golden("main.npz")
    check_run(main, main)


def test_five_steps_with_padding_equal_the_reference(golden):
    check_run(golden("main.npz"), golden("padded.npz"), norms_only=True)


def test_features_equal_the_reference(golden):
    student = golden_student(golden("main.npz")).eval()
    student.config.average_top_k_layers = student.config.num_hidden_layers
    arrays, encoder = golden("features.npz"), student.data2vec_audio
    source = torch.tensor(golden("main.npz")["source"][:1])
    with torch.no_grad():
        features = encoder.feature_extractor(source).transpose(1, 2)
        projected, _ = encoder.feature_projection(features)
        output = encoder(source, output_hidden_states=True)
        results = results_of(EMATeacher(student), projected)
    assert_close(features, arrays["conv_features"], atol=5e-5)
    assert_close(projected, arrays["projected"], atol=5e-5)
    assert_close(encoder.encoder.pos_conv_embed(projected), arrays["pos_conv"], atol=5e-5)
    assert_close(output.hidden_states[0], arrays["encoder_input"], atol=5e-5)
    assert_close(torch.stack(output.hidden_states[1:]), arrays["layer_output"], atol=5e-5)
    assert_close(output.last_hidden_state, arrays["x"], atol=5e-5)
    assert_close(torch.stack(results), arrays["layer_ffn"], atol=5e-5)


def test_padded_features_equal_the_reference(golden):
    padded, arrays = golden("padded.npz"), golden("features.npz")
    student = golden_student(golden("main.npz")).eval()
    attention_mask = torch.tensor(~padded["padding_mask"]).long()
    with torch.no_grad():
        output = student.data2vec_audio(torch.tensor(padded["source"]), attention_mask=attention_mask)
        frames = student._get_feature_vector_attention_mask(output.last_hidden_state.shape[1], attention_mask)
    assert_close(output.last_hidden_state, arrays["padded/x"], atol=5e-5)
    np.testing.assert_array_equal(~frames.numpy(), arrays["padded/frame_padding_mask"])


def test_schedules_equal_the_reference(golden):
    arrays = golden("schedules.npz")
    teacher = EMATeacher.__new__(EMATeacher)
    teacher.config = Music2VecConfig()
    for step, rate, decay in zip(arrays["steps"], arrays["lr"], arrays["ema_decay"], strict=True):
        assert tri_stage_learning_rate(int(step), 400_000, 5e-4) == pytest.approx(float(rate), rel=1e-9)
        if step >= 1:
            assert teacher.decay(int(step)) == pytest.approx(float(decay), rel=1e-9)
    for step, rate in zip(arrays["steps_800k"], arrays["lr_800k"], strict=True):
        assert tri_stage_learning_rate(int(step), 800_000, 5e-4) == pytest.approx(float(rate), rel=1e-9)


# Deliberate errors. Each of them is a small change of the right code, as in METHOD section 12.


def results_of(teacher, features, module="feed_forward"):
    """What a module of each of the teacher's target layers gives."""
    hooks, results = [], []
    for layer in teacher.encoder.layers[-teacher.config.average_top_k_layers :]:
        hook = getattr(layer, module).register_forward_hook(lambda _module, _inputs, result: results.append(result))
        hooks.append(hook)
    EMATeacher.targets(teacher, features)
    for hook in hooks:
        hook.remove()
    return results


class LayerOutputTeacher(EMATeacher):
    def targets(self, features, frame_mask=None):
        results = results_of(self, features, "final_layer_norm")
        return sum(F.instance_norm(result.mT) for result in results).mT / len(results)


class LayerNormTeacher(EMATeacher):
    def targets(self, features, frame_mask=None):
        results = results_of(self, features)
        return torch.stack([F.layer_norm(result, result.shape[-1:]) for result in results]).mean(0)


class AveragedPosConvTeacher(EMATeacher):
    def update(self, model, step):
        model.config.ema_layers_only = False
        return super().update(model, step)


class CopiedNormTeacher(EMATeacher):
    def update(self, model, step):
        decay = super().update(model, step)
        self.encoder.layer_norm.load_state_dict(model.data2vec_audio.encoder.layer_norm.state_dict())
        return decay


class LateDecayTeacher(EMATeacher):
    def update(self, model, step):
        right, decay = self.decay(step), self.decay
        self.decay = lambda step: decay(step - 1)
        super().update(model, step)
        self.decay = decay
        return right


class WrongTopLayersTeacher(EMATeacher):
    def targets(self, features, frame_mask=None):
        self.config.average_top_k_layers = 4
        results = results_of(self, features)[:3]
        self.config.average_top_k_layers = 3
        return sum(F.instance_norm(result.mT) for result in results).mT / len(results)


torch_epsilon, coupled_decay = torch.optim.AdamW, torch.optim.Adam


def no_decay_on_vectors(parameters, **settings):
    parameters = list(parameters)
    matrices, vectors = ([p for p in parameters if (p.ndim > 1) == wanted] for wanted in (True, False))
    return ReferenceAdam([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], **settings)


class MaskedTeacher(EMATeacher):
    def __init__(self, student):
        super().__init__(student)
        mask_features = student.data2vec_audio._mask_hidden_states

        def remember(hidden_states, mask_time_indices=None, attention_mask=None):
            self.masked = mask_features(hidden_states, mask_time_indices)
            return self.masked

        student.data2vec_audio._mask_hidden_states = remember

    def targets(self, features, frame_mask=None):
        return super().targets(self.masked, frame_mask)


TEACHERS = (
    LayerOutputTeacher, LayerNormTeacher, AveragedPosConvTeacher, CopiedNormTeacher, LateDecayTeacher,
    WrongTopLayersTeacher, MaskedTeacher,
)  # fmt: skip
ERRORS = [("make_teacher", kind) for kind in TEACHERS]
ERRORS += [("make_optimizer", make) for make in (torch_epsilon, coupled_decay, no_decay_on_vectors)]


@pytest.mark.parametrize("what, error", ERRORS, ids=lambda value: getattr(value, "__name__", ""))
def test_an_error_made_on_purpose_fails(golden, what, error):
    main = golden("main.npz")
    with pytest.raises(AssertionError):
        check_run(main, main, **{what: error})


def test_the_parents_initialisation_trap_is_closed():
    """transformers would leave the projection at std 0.02 with zero bias (custom code is skipped)."""
    torch.manual_seed(0)
    student = Music2VecForPreTraining(Music2VecConfig(num_hidden_layers=1))
    encoder = student.data2vec_audio
    projection, pos_conv = encoder.feature_projection.projection, encoder.encoder.pos_conv_embed.layers[0].conv
    assert projection.weight.std().item() == pytest.approx(512**-0.5 / 3**0.5, rel=0.02)
    assert projection.bias.std().item() == pytest.approx(512**-0.5 / 3**0.5, rel=0.1)
    fan_in = 768 // 16 * 19
    assert pos_conv.weight.std().item() == pytest.approx(fan_in**-0.5 / 3**0.5, rel=0.02)
    assert pos_conv.bias.abs().max().item() == pytest.approx(fan_in**-0.5, rel=0.05)
    assert student.final_proj.weight.std().item() == pytest.approx(768**-0.5 / 3**0.5, rel=0.02)
    assert encoder.encoder.layers[0].attention.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert encoder.encoder.layers[0].attention.q_proj.bias.abs().max().item() == 0
    assert encoder.masked_spec_embed.min().item() >= 0
    assert encoder.masked_spec_embed.mean().item() == pytest.approx(0.5, abs=0.05)
