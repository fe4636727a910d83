"""Laws of the cheap dropout: shares, means, gradients; the model around it stays what it was."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from music2vec_hf import EMATeacher, Music2VecForPreTraining
from music2vec_hf.pretraining.dropout import CheapDropout, _Attention, cheap_attention, draw_kept, make_dropout_cheap


@pytest.mark.parametrize("probability", [0.1, 0.25, 0.9])
def test_the_share_is_dropped_and_the_mean_is_kept(probability):
    torch.manual_seed(0)
    values = torch.ones(301, 1003)
    dropout = CheapDropout(probability).train()
    result = dropout(values)
    # 301,903 draws: six standard deviations are below 0.006.
    assert (result == 0).float().mean().item() == pytest.approx(probability, abs=0.006)
    assert result.unique().tolist() == pytest.approx([0, 1 / (1 - probability)], rel=1e-3)
    assert result.mean().item() == pytest.approx(1, abs=0.006 / (1 - probability))
    assert not torch.equal(dropout(values), result), "the same draw twice"
    assert torch.equal(dropout.eval()(values), values)


def test_neighbours_are_drawn_independently_and_by_the_seed_alone():
    """Four values share one random number of the generator."""
    torch.manual_seed(1)
    kept = draw_kept(torch.Size([400_000]), 0.5)[0].view(-1, 4).float()
    correlation = torch.corrcoef(kept.T) - torch.eye(4)
    assert correlation.abs().max() < 0.02  # six standard deviations
    torch.manual_seed(1)
    assert draw_kept(torch.Size([400_000]), 0.5)[0].view(-1, 4).float().equal(kept)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_nothing_and_everything_are_torchs(probability):
    values = torch.randn(4, 5)
    assert torch.equal(CheapDropout(probability).train()(values), F.dropout(values, probability))


def test_gradients_are_right():
    def seeded(function, *arguments):
        torch.manual_seed(3)
        return function(*arguments)

    values = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    dropout = CheapDropout(0.3).train()
    assert torch.autograd.gradcheck(lambda values: seeded(dropout, values), values)
    states = [torch.randn(2, 2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    for probability in (0.0, 0.3):
        arguments = (probability, 0.7)
        assert torch.autograd.gradcheck(lambda *states: seeded(_Attention.apply, *states, *arguments), states)  # noqa: B023


@pytest.mark.parametrize("probability", [0.0, 0.4])
def test_attention_is_the_formula_with_the_same_draws(probability):
    query, key, value = (torch.randn(2, 3, 11, 4) for _ in range(3))
    torch.manual_seed(4)
    found = _Attention.apply(query, key, value, probability, 0.5)
    weights = (query @ key.mT * 0.5).softmax(-1)
    if probability:
        torch.manual_seed(4)
        kept, scale = draw_kept(torch.Size([6, 11, 11]), probability)
        weights = weights * kept.view(2, 3, 11, 11) * scale
        assert scale == pytest.approx(1 / 0.6, rel=1e-4)
    torch.testing.assert_close(found, weights @ value)


def test_the_model_stays_what_it_was(tiny_config, tmp_path):
    tiny_config.hidden_dropout = tiny_config.attention_dropout = 0.2
    model = Music2VecForPreTraining(tiny_config)
    names, input_values = list(model.state_dict()), torch.randn(2, 4000)
    with torch.no_grad():
        before = model.eval()(input_values).last_hidden_state
        make_dropout_cheap(model)
        torch.testing.assert_close(model(input_values).last_hidden_state, before)
        assert list(model.state_dict()) == names
        assert not [name for name, module in model.named_modules() if type(module) is nn.Dropout]
        torch.manual_seed(5)
        outputs = torch.stack([model.train()(input_values).last_hidden_state for _ in range(2)])
    assert not torch.equal(*outputs), "nothing was dropped"
    model.save_pretrained(tmp_path)
    assert "cheap" not in (tmp_path / "config.json").read_text()


def test_a_mask_is_obeyed(tiny_student):
    """Padded keys have no say, with dropout on: transformers' own attention takes over."""
    module = tiny_student.data2vec_audio.encoder.layers[0].attention
    query, key, value = (torch.randn(1, 2, 5, 8) for _ in range(3))
    changed = value.clone()
    changed[:, :, 3:] = 100.0
    mask = torch.tensor([True, True, True, False, False])[None, None, None]
    results = []
    for values in (value, changed):
        torch.manual_seed(6)
        results.append(cheap_attention(module, query, key, values, mask, dropout=0.2, scaling=0.5)[0])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype, dropout", [(torch.bfloat16, 0.2), (torch.float16, 0.2), (torch.bfloat16, 0.0)])
def test_half_precision_is_near_float32(tiny_config, batch, dtype, dropout):
    """Under autocast, forward and backward, on the same draws."""
    tiny_config.hidden_dropout = tiny_config.attention_dropout = dropout
    student = Music2VecForPreTraining(tiny_config).train()
    make_dropout_cheap(student)
    teacher, found = EMATeacher(student), []
    for enabled in (False, True):
        torch.manual_seed(7)
        with torch.autocast("cpu", dtype, enabled=enabled):
            loss = student(batch[0], mask_time_indices=batch[1], teacher=teacher).loss
        student.zero_grad()
        loss.backward()
        found.append((loss.item(), student.data2vec_audio.encoder.layers[0].attention.q_proj.weight.grad.clone()))
    (loss, gradient), (half_loss, half_gradient) = found
    assert half_loss != loss and half_loss == pytest.approx(loss, rel=0.02)
    assert (half_gradient - gradient).norm() < 0.1 * gradient.norm()
