"""Laws of the heads: which layer they read, also in training, and what their losses are."""

import itertools

import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers import Trainer, TrainingArguments

from music2vec_hf import Music2VecConfig, Music2VecForAudioFrameClassification, Music2VecForSequenceClassification

PROBLEMS = ["single_label_classification", "multi_label_classification", "regression"]
HEADS = [Music2VecForSequenceClassification, Music2VecForAudioFrameClassification]


@pytest.fixture
def build(tiny_config):
    """`build(head, **fields)`: a head on the tiny encoder, in eval mode, with four labels unless fields say more."""

    def build(head=Music2VecForSequenceClassification, **fields):
        own = {"model_type", "id2label", "label2id"}
        values = {key: value for key, value in tiny_config.to_dict().items() if key not in own}
        torch.manual_seed(0)
        return head(Music2VecConfig(**(values | {"num_labels": 4} | fields))).eval()

    return build


@pytest.fixture
def clips():
    return torch.randn(3, 8_000, generator=torch.Generator().manual_seed(0))  # 24 frames each


def labels_for(problem, shape):
    """Labels of clips or frames for four labels: `shape` of indices, or `[*shape, 4]`."""
    generator = torch.Generator().manual_seed(1)
    if problem == "single_label_classification":
        return torch.randint(4, shape, generator=generator)
    if problem == "multi_label_classification":
        return torch.randint(2, (*shape, 4), generator=generator)
    return torch.randn(*shape, 4, generator=generator)


def loss_by_hand(problem, logits, labels):
    if problem == "single_label_classification":
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten())
    if problem == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels.float())
    return F.mse_loss(logits, labels)


@pytest.mark.parametrize(
    "head, pooling, problem, layer, hidden",
    [  # every pair of settings once or more
        (HEADS[0], "mean", PROBLEMS[0], 1, 0),
        (HEADS[0], "mean", PROBLEMS[1], "weighted", 8),
        (HEADS[0], "mean", PROBLEMS[2], "conv", 0),
        (HEADS[0], "attention", PROBLEMS[0], "weighted", 0),
        (HEADS[0], "attention", PROBLEMS[1], "conv", 0),
        (HEADS[0], "attention", PROBLEMS[2], 1, 8),
        (HEADS[1], "mean", PROBLEMS[0], "conv", 8),
        (HEADS[1], "mean", PROBLEMS[1], 1, 0),
        (HEADS[1], "mean", PROBLEMS[2], "weighted", 0),
    ],
)
def test_every_setting_learns_and_survives_saving(build, clips, tmp_path, head, pooling, problem, layer, hidden):
    settings = {"problem_type": problem, "classifier_layer": layer, "classifier_pooling": pooling}
    settings |= {"classifier_hidden_size": hidden, "classifier_dropout": 0.1, "id2label": dict(enumerate("abcd"))}
    model = build(head, **settings)
    model.feature_mean.fill_(0.3)
    model.feature_std.fill_(0.7)
    labels = labels_for(problem, (3,) if head is Music2VecForSequenceClassification else (3, 24))
    with torch.no_grad():
        output = model(clips, labels=labels)
    assert output.loss.item() == pytest.approx(loss_by_hand(problem, output.logits, labels).item(), rel=1e-5)
    model.train()(clips, labels=labels).loss.backward()
    own = {name: p for name, p in model.named_parameters() if not name.startswith("data2vec_audio.")}
    present = {"classifier": True, "projector": hidden}
    present |= {"layer_weights": layer == "weighted", "pooling_query": pooling == "attention"}
    assert {name.partition(".")[0] for name in own} == {name for name, there in present.items() if there}
    # A constant added to all scores changes no softmax: that bias has no gradient in theory.
    assert all(p.grad is not None and p.grad.any() for name, p in own.items() if name != "pooling_query.bias")
    model.eval().save_pretrained(tmp_path)
    kind = "AudioClassification" if head is HEADS[0] else "AudioFrameClassification"
    reloaded = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(tmp_path).eval()
    assert type(reloaded) is head and reloaded.config.id2label == dict(enumerate("abcd"))
    with torch.no_grad():
        torch.testing.assert_close(reloaded(clips).logits, model(clips).logits, atol=0, rtol=0)


@pytest.mark.parametrize("layer", [None, 0, 1, 2, 3, "weighted", "conv"])
def test_a_head_reads_its_layer(build, clips, layer):
    for head in HEADS:
        model = build(head, classifier_layer=layer)
        encoder = model.data2vec_audio
        with torch.no_grad():
            states = encoder(clips, output_hidden_states=True).hidden_states
            if layer == "conv":
                frames = encoder.feature_extractor(clips).transpose(1, 2)
            elif layer == "weighted":  # all weights are equal at first
                frames = torch.stack(states).mean(0)
            else:
                frames = states[3 if layer is None else layer]
            expected = frames.mean(1) if head is HEADS[0] else frames
            torch.testing.assert_close(model(clips).logits, model.classifier(expected))


@pytest.mark.parametrize("layer", [0, 2, "weighted", "conv"])
def test_layerdrop_never_changes_what_is_read(build, clips, layer):
    for head in HEADS:
        model = build(head, classifier_layer=layer, layerdrop=0.9)
        with torch.no_grad():
            in_eval = model(clips).logits
            for seed in range(3):
                torch.manual_seed(seed)
                torch.testing.assert_close(model.train()(clips).logits, in_eval)


def test_layerdrop_switched_on_again_is_refused_not_misread(build, clips):
    model = build(classifier_layer=1).train()
    model.config.layerdrop = 1.0
    with pytest.raises(ValueError, match="LayerDrop left out"):
        model(clips)


@pytest.mark.parametrize("fields", [{"classifier_layer": 3, "layerdrop": 0.5}, {"classifier_dropout": 0.5}])
def test_layerdrop_of_the_last_layer_and_dropout_act_in_training_only(build, clips, fields):
    model = build(**fields)
    assert model.config.layerdrop == fields.get("layerdrop", 0.0)
    with torch.no_grad():
        torch.testing.assert_close(model(clips).logits, model(clips).logits)
        logits = []
        for seed in range(4):
            torch.manual_seed(seed)
            logits.append(model.train()(clips).logits)
    assert not all(torch.allclose(logits[0], other) for other in logits)


def test_the_weighted_sum_is_the_softmax_of_its_weights(build, clips):
    one_layer, weighted = build(classifier_layer=2), build(classifier_layer="weighted")
    weighted.load_state_dict(one_layer.state_dict(), strict=False)
    weighted.layer_weights.data[2] = 50.0
    with torch.no_grad():
        torch.testing.assert_close(weighted(clips).logits, one_layer(clips).logits)


def test_standardisation_and_the_labels_own_units(build, clips):
    plain = build(num_labels=2)
    scaled = build(num_labels=2, problem_type="regression", target_mean=[5.0, 4.0], target_std=[2.0, 0.5])
    scaled.load_state_dict(plain.state_dict())
    scaled.feature_mean.copy_(torch.linspace(-1, 1, 16))
    scaled.feature_std.copy_(torch.linspace(0.5, 2, 16))
    with torch.no_grad():
        features = (plain.pool(clips)[0] - scaled.feature_mean) / scaled.feature_std
        output = scaled(clips, labels=torch.tensor([[5.0, 4.0], [7.0, 4.5], [1.0, 3.0]]))
        z_scores = plain.classifier(features)
        torch.testing.assert_close(output.logits, z_scores * torch.tensor([2.0, 0.5]) + torch.tensor([5.0, 4.0]))
        # The loss is that of the standardised targets: no dimension counts more for its unit.
        targets = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-2.0, -2.0]])
        torch.testing.assert_close(output.loss, F.mse_loss(z_scores, targets))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("units", [{}, {"target_mean": [126.37], "target_std": [30.0]}], ids=["raw", "scaled"])
@pytest.mark.parametrize("hidden", [0, 8])
@pytest.mark.parametrize("head", HEADS)
def test_values_are_exact_under_autocast(head, hidden, units, dtype, build, clips):
    model = build(head, num_labels=1, problem_type="regression", classifier_hidden_size=hidden, **units)
    torch.nn.init.zeros_(model.classifier.weight)
    torch.nn.init.constant_(model.classifier.bias, 0.0 if units else 126.37)
    with torch.autocast("cpu", dtype=dtype):
        plain = model(clips).logits
        output = model(clips, labels=torch.full(plain.shape, 126.40))
    assert output.logits.dtype == output.loss.dtype == torch.float32
    torch.testing.assert_close(output.logits, torch.full(plain.shape, 126.37))
    torch.testing.assert_close(output.loss, torch.tensor((0.03 / (30.0 if units else 1.0)) ** 2), rtol=2e-3, atol=0)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_padding_is_not_pooled(build, pooling):
    model = build(classifier_layer="conv", classifier_pooling=pooling, classifier_hidden_size=8)
    clip = torch.randn(1, 16_000)
    padded = torch.cat([clip, torch.zeros(1, 3_200)], dim=1)
    mask = (torch.arange(19_200) < 16_000).long()[None]
    with torch.no_grad():  # deeper layers see that padded frames are zero, as in the reference
        torch.testing.assert_close(model(padded, attention_mask=mask).logits, model(clip).logits, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(model(padded).logits, model(clip).logits, atol=1e-5, rtol=1e-4)


def test_one_value_to_regress_takes_labels_of_one_axis_too(build, clips):
    model = build(num_labels=1, problem_type="regression")
    labels = torch.tensor([1.0, 2.0, 3.0])
    output = model(clips, labels=labels)
    torch.testing.assert_close(output.loss, ((output.logits[:, 0] - labels) ** 2).mean())
    torch.testing.assert_close(model(clips, labels=labels[:, None]).loss, output.loss)


@pytest.mark.parametrize(
    "fields, labels, sentence",
    [
        ({"num_labels": 1}, torch.tensor([0, 0, 0]), "at least two labels"),  # its cross-entropy would be 0 for ever
        ({"num_labels": 1}, torch.tensor([0.5, 0.1, 0.2]), "`config.problem_type` is not set"),
        ({}, torch.zeros(3, 4), "`config.problem_type` is not set"),
        ({}, torch.zeros(3, 4, dtype=torch.long), "Give one class index per clip"),
        ({"problem_type": "multi_label_classification"}, torch.tensor([0, 1, 2]), "takes \\(3, 4\\)"),
        ({"problem_type": "regression"}, torch.tensor([0.0, 1.0, 2.0]), "takes \\(3, 4\\)"),
    ],
)
def test_labels_that_do_not_fit_are_refused(build, clips, fields, labels, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(**fields)(clips, labels=labels)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_only_labelled_frames_of_the_clip_count(build, clips, problem):
    model = build(Music2VecForAudioFrameClassification, problem_type=problem)
    labels = labels_for(problem, (3, 24))
    labels[0, :5] = -100
    mask = torch.ones_like(clips).long()
    mask[1, 4_000:] = 0  # leaves 12 frames
    counted = torch.ones(3, 24, dtype=torch.bool)
    counted[0, :5] = counted[1, 12:] = False
    with torch.no_grad():
        output = model(clips, attention_mask=mask, labels=labels)
        by_hand = loss_by_hand(problem, output.logits[counted], labels[counted])
    assert output.loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    labels[1, 12:] = 0  # what a padded frame is labelled does not matter
    with torch.no_grad():
        torch.testing.assert_close(model(clips, attention_mask=mask, labels=labels).loss, output.loss)


def test_frames_that_do_not_fit_are_refused(build, clips):
    model = build(Music2VecForAudioFrameClassification)
    with pytest.raises(ValueError, match="3 clips of 24 frames"):
        model(clips, labels=torch.zeros(3, 25, dtype=torch.long))
    with pytest.raises(ValueError, match="No frame has a label"):
        model(clips, labels=torch.full((3, 24), -100))


def test_frame_times_are_the_centres_of_what_frames_see(build):
    model = build(Music2VecForAudioFrameClassification, classifier_layer="conv")
    clip = torch.randn(1, 4_000, requires_grad=True)
    frames = model(clip).logits[0]
    times = model.config.frame_times(len(frames))
    assert times[:2] == pytest.approx([0.0125, 0.0325])
    for frame, time in zip(frames, times, strict=True):
        (gradient,) = torch.autograd.grad(frame.sum(), clip, retain_graph=True)
        seen = gradient[0].nonzero()[:, 0]
        assert (seen.min() + seen.max() + 1).item() / 2 / 16_000 == pytest.approx(time)


def test_hidden_states_and_attentions_on_request(build, clips):
    for head, layer in itertools.product(HEADS, (1, 3, "weighted")):
        model = build(head, classifier_layer=layer, attn_implementation="eager")
        with torch.no_grad():
            assert model(clips).hidden_states is None
            output = model(clips, output_hidden_states=True, output_attentions=True)
        assert len(output.hidden_states) == 4 and len(output.attentions) == 3


def test_trainer_sees_one_batch_and_two_accumulated_halves_alike(build, clips, tmp_path):
    clips = torch.cat([clips, clips.flip(1)[:1]])
    rows = [{"input_values": clip, "labels": label} for clip, label in zip(clips, (0, 1, 2, 3), strict=True)]
    weights = []
    options = {"max_steps": 1, "learning_rate": 1.0, "lr_scheduler_type": "constant", "optim": "sgd"}
    options |= {"max_grad_norm": 0.0, "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    for rows_at_once, accumulated in ((4, 1), (2, 2)):
        model = build(classifier_layer=1)
        sizes = {"per_device_train_batch_size": rows_at_once, "gradient_accumulation_steps": accumulated}
        arguments = TrainingArguments(output_dir=tmp_path, **sizes, **options)
        Trainer(model=model, args=arguments, train_dataset=rows).train()
        weights.append(model.classifier.weight.detach().clone())
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=1e-4)
    assert not torch.allclose(weights[0], build(classifier_layer=1).classifier.weight)
