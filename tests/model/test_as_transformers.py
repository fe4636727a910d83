"""Whatever is done to transformers' own model (hooks, wrappers, offload, export, transforms) does the same to ours."""

import copy
import functools
import io

import accelerate
import pytest
import torch
import toy_model
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, prune
from transformers import Data2VecAudioConfig, Data2VecAudioModel, pipeline

import music2vec_hf as m2v
from music2vec_hf.model.encoder_music2vec import Music2VecPreTrainedModel

SIZES = toy_model.SIZES | {"num_hidden_layers": 1, "conv_bias": True, "attn_implementation": "eager"}


@pytest.fixture
def pair():
    """Our encoder and transformers' with the same weights, in eval mode and double precision."""
    torch.manual_seed(0)
    ours = m2v.Music2VecModel(m2v.Music2VecConfig(**SIZES)).double().eval()
    plain = Data2VecAudioModel(Data2VecAudioConfig(**SIZES)).double().eval()
    plain.load_state_dict(ours.state_dict())
    return ours, plain


@pytest.fixture
def input_values():
    return torch.randn(2, 3_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def layer(model, index=2):
    return model.feature_extractor.conv_layers[index]


class Doubled(nn.Module):
    """Somebody's wrapper of a module."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, values):
        return 2 * self.inner(values)


def halve_channels(module, inputs, output):
    assert output.ndim == 3
    return output * (torch.arange(output.shape[1]) % 2)[:, None]


def replace(parent, name, module):
    setattr(parent, name, module)


def add_lora(model, **settings):
    inject_adapter_in_model(LoraConfig(r=2, init_lora_weights=False, **settings), model)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    model.double()


def patch_forward(module):
    forward = module.forward
    module.forward = lambda *inputs: forward(*inputs).tanh()


def offload_to_disk(model, folder):
    accelerate.disk_offload(model, folder, execution_device=torch.device("cpu"))


def dispatch(model, folder):
    places = {"feature_extractor": "disk", "feature_projection": "disk", "encoder": "cpu", "masked_spec_embed": "cpu"}
    accelerate.dispatch_model(model, places, offload_dir=folder, force_hooks=True)


CHANGES = {
    "hook of a convolution": lambda m, _: layer(m).conv.register_forward_hook(halve_channels),
    "hook before a convolution": lambda m, _: layer(m).conv.register_forward_pre_hook(lambda _, x: (x[0].tanh(),)),
    "hook of the first convolution": lambda m, _: layer(m, 0).conv.register_forward_hook(halve_channels),
    "hook of a norm": lambda m, _: layer(m).layer_norm.register_forward_hook(
        lambda _m, _i, out: out[..., :4].repeat(1, 1, 2)
    ),
    "hook of an activation": lambda m, _: layer(m).activation.register_forward_hook(halve_channels),
    "hook of a layer": lambda m, _: layer(m).register_forward_hook(halve_channels),
    "hook of the front end": lambda m, _: m.feature_extractor.register_forward_hook(halve_channels),
    "hook of the projection": lambda m, _: m.feature_projection.register_forward_hook(
        lambda _m, _i, out: (2 * out[0], out[1])
    ),
    "hook of the positional convolution": lambda m, _: m.encoder.pos_conv_embed.layers[0].conv.register_forward_hook(
        halve_channels
    ),
    "weight norm": lambda m, _: parametrizations.weight_norm(
        layer(m).conv
    ).parametrizations.weight.original0.data.mul_(2),
    "spectral norm": lambda m, _: parametrizations.spectral_norm(layer(m).conv),
    "orthogonal projection": lambda m, _: parametrizations.orthogonal(m.feature_projection.projection),
    "pruned weights": lambda m, _: prune.ln_structured(layer(m).conv, "weight", amount=0.5, n=2, dim=0),
    "pruned bias of the first layer": lambda m, _: prune.l1_unstructured(layer(m, 0).conv, "bias", amount=0.5),
    "weights that are another tensor": lambda m, _: layer(m).conv._parameters.update(
        weight=layer(m).conv.weight.data * 2
    ),
    "wrapped convolution": lambda m, _: replace(layer(m), "conv", Doubled(layer(m).conv)),
    "wrapped norm": lambda m, _: replace(layer(m), "layer_norm", Doubled(layer(m).layer_norm)),
    "wrapped layer": lambda m, _: m.feature_extractor.conv_layers.__setitem__(2, Doubled(layer(m))),
    "patched forward": lambda m, _: patch_forward(layer(m).conv),
    "padded convolution": lambda m, _: setattr(layer(m).conv, "padding", (1,)),
    "dilated convolution": lambda m, _: setattr(layer(m).conv, "dilation", (2,)),
    "fewer layers": lambda m, _: m.feature_extractor.conv_layers.__delitem__(6),
    "LoRA on convolutions": lambda m, _: add_lora(m, target_modules=["conv"], exclude_modules=".*pos_conv.*"),
    "LoRA on the projection": lambda m, _: add_lora(m, target_modules=["projection", "q_proj"]),
    "dynamic quantisation": lambda m, _: torch.ao.quantization.quantize_dynamic(m.float(), {nn.Linear}, inplace=True),
    "offload to main memory": lambda m, _: accelerate.cpu_offload(m, torch.device("cpu")),
    "offload to disk": offload_to_disk,
    "dispatch": dispatch,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_computes_as_transformers_does(pair, input_values, tmp_path, change):
    torch.manual_seed(3)
    with torch.no_grad():
        before = pair[0](input_values).last_hidden_state
        for number, model in enumerate(pair):
            torch.manual_seed(3)
            CHANGES[change](model, tmp_path / str(number))
        values = input_values.to(next((p.dtype for p in pair[0].parameters() if p.is_floating_point()), torch.float32))
        found, expected = (model(values.clone()).last_hidden_state for model in pair)
    torch.testing.assert_close(found, expected, atol=1e-5 if values.dtype == torch.float32 else 1e-9, rtol=1e-5)
    same = found.shape == before.shape and torch.allclose(found.double(), before)
    assert same == ("offload" in change or change == "dispatch")


class LastState(nn.Module):
    """A model as a function of its waveform alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_values):
        return self.model(input_values).last_hidden_state


def exported(model, values):
    program = LastState(model)
    if isinstance(model, m2v.Music2VecModel):  # to export theirs, too, takes as long again
        dynamic = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)
        program = torch.export.export(program, (values,), dynamic_shapes=dynamic).module()
    return [program(values.repeat(2, 3)[:3, :length]) for length in (3_001, 8_000)]


def traced(model, values):
    file = io.BytesIO()
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(LastState(model), values, check_trace=False), file)
        file.seek(0)
        return torch.jit.load(file)(values.flip(0))


def gradient_penalty(model, values):
    values = values.clone().requires_grad_()
    (slope,) = torch.autograd.grad(LastState(model)(values * 1.0).square().sum(), values, create_graph=True)
    slope.square().sum().backward()
    return [values.grad, *(p.grad for p in model.feature_extractor.parameters())]


def functional_gradient(model, values):
    def loss(weights):
        return torch.func.functional_call(model, weights, (values,)).last_hidden_state.square().sum()

    return list(torch.func.grad(loss)({name: p.detach() for name, p in model.named_parameters()}).values())


def gradient_of_each_clip(model, values):
    return torch.func.vmap(torch.func.grad(lambda clip: LastState(model)(clip[None] * 1.0).square().sum()))(values)


def forward_mode(model, values):
    return torch.func.jvp(LastState(model), (values,), (torch.ones_like(values),))


def dual_numbers(model, values):
    with forward_ad.dual_level():
        output = LastState(model)(forward_ad.make_dual(values, torch.ones_like(values)))
        return list(forward_ad.unpack_dual(output))


def on_meta(model, values):
    return torch.tensor(copy.deepcopy(model).to("meta")(values.to("meta")).last_hidden_state.shape)


JOBS = [
    exported, traced, gradient_penalty, functional_gradient, gradient_of_each_clip, forward_mode, dual_numbers,
    on_meta,
]  # fmt: skip


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)
def test_a_transform_gives_what_it_gives_of_transformers_model(pair, input_values, job):
    found, expected = (job(model, input_values.clone()) for model in pair)
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("use_reentrant", [None, False, True])
@pytest.mark.parametrize("what_is_learnt", ["a filter", "a filter alone", "the encoder"])
def test_checkpointing_changes_no_gradient_of_the_front_end_and_of_what_is_before_it(
    pair, input_values, use_reentrant, what_is_learnt
):
    gradients = []
    for model in pair:
        encoder = model.feature_extractor.train()
        if what_is_learnt == "a filter alone":
            encoder.requires_grad_(False)
        if model is pair[0] and use_reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        gain = torch.ones(1, dtype=torch.float64, requires_grad=what_is_learnt != "the encoder")
        values = input_values
        if gain.requires_grad:  # transformers' front end takes no input with a history
            encoder.train(model is pair[0])
            values = gain * input_values + gain
        encoder(values).square().sum().backward()
        gradients.append([gain.grad, *(parameter.grad for parameter in encoder.parameters())])
    for found, expected in zip(*gradients, strict=True):
        assert (found is None) == (expected is None)
        if found is not None:
            torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-7)


def test_second_derivatives_in_training(pair, input_values):
    """The front end's own backward, asked for a graph, gives gradients that have gradients."""
    encoder = pair[0].feature_extractor
    assert encoder._is_as_built()
    before, short, after = input_values[:1, :430].split([200, 80, 150], dim=1)
    short.requires_grad_()
    check = functools.partial(torch.autograd.gradgradcheck, fast_mode=True)  # in a direction drawn at random
    assert check(lambda x: encoder(torch.cat([before, x, after], 1)).mean(1), short)
    weight = layer(pair[0], 1).conv.weight
    assert check(lambda _: encoder(input_values[:1, :430])[:, :2], weight)


HEADS = [{"classifier_layer": "weighted"}, {"classifier_layer": "conv"}, {"classifier_pooling": "attention"}]


@pytest.mark.parametrize("fields", [*HEADS, {"window_average": "features", "classifier_hidden_size": 4}])
@pytest.mark.parametrize("offload", [offload_to_disk, CHANGES["offload to main memory"]])
def test_an_offloaded_head_answers_alone_and_in_the_pipeline(fields, offload, tmp_path):
    torch.manual_seed(0)
    config = m2v.Music2VecConfig(**SIZES, **fields, num_labels=3, window_seconds=0.1)
    model = m2v.Music2VecForSequenceClassification(config).eval()
    nn.init.normal_(model.classifier.weight)
    model.feature_mean.fill_(0.2)
    clips = torch.randn(1, 4_000)
    pipe = pipeline("audio-classification", model=model, feature_extractor=m2v.Music2VecFeatureExtractor())
    with torch.no_grad():
        logits, answer = model(clips).logits, pipe(clips[0].numpy())
        offload(model, tmp_path)
        torch.testing.assert_close(model(clips).logits, logits, atol=1e-5, rtol=1e-4)
    found = pipe(clips[0].numpy())
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in answer], abs=1e-5)


def test_an_offloaded_student_sees_its_masks(tmp_path):
    torch.manual_seed(0)
    student = m2v.Music2VecForPreTraining(m2v.Music2VecConfig(**SIZES)).eval()
    clips, mask = torch.randn(2, 4_000), torch.zeros(2, 12, dtype=torch.bool)
    mask[:, 3:9] = True
    with torch.no_grad():
        expected = student(clips, mask_time_indices=mask, teacher=m2v.EMATeacher(student))
        teacher = m2v.EMATeacher(student)
        accelerate.cpu_offload(student, torch.device("cpu"))
        found = student(clips, mask_time_indices=mask, teacher=teacher)
    torch.testing.assert_close(found.predictions, expected.predictions, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.loss, expected.loss, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_student_of_another_precision_has_targets_and_a_loss(dtype):
    student = m2v.Music2VecForPreTraining(m2v.Music2VecConfig(**SIZES)).to(dtype)
    mask = torch.ones(2, 12, dtype=torch.bool)
    output = student(torch.randn(2, 4_000, dtype=dtype), mask_time_indices=mask, teacher=m2v.EMATeacher(student))
    output.loss.backward()
    assert output.targets.dtype == torch.float32 and output.loss.isfinite()


def write_linears(self, module):
    if isinstance(module, nn.Linear):
        module.weight.data.normal_(0.0, 0.02)


def write_own_head(self, module):
    if hasattr(module, "tags"):
        module.tags.weight.data.fill_(0.7)


def write_everything(self, module):
    for parameter in module.parameters(recurse=False):
        parameter.data.uniform_(0.1, 0.2)


@pytest.mark.parametrize("write", [write_linears, write_own_head, write_everything])
@pytest.mark.parametrize(
    "parent", [Music2VecPreTrainedModel, m2v.Music2VecForPreTraining, m2v.Music2VecForSequenceClassification]
)
def test_a_subclass_that_initialises_in_place_keeps_its_trained_weights(parent, write, tmp_path):
    class Tagger(parent):
        def __init__(self, config):
            super().__init__(config)
            if parent is Music2VecPreTrainedModel:
                self.data2vec_audio = m2v.Music2VecModel(config)
            self.tags = nn.Linear(config.hidden_size, 5)
            self.post_init()

        def _init_weights(self, module):
            super()._init_weights(module)
            write(self, module)

    model = Tagger(m2v.Music2VecConfig(**SIZES))
    projection = m2v.Music2VecModel(m2v.Music2VecConfig(**SIZES)).feature_projection.projection
    assert projection.weight.std().item() == pytest.approx(8**-0.5 / 3**0.5, rel=0.2)  # not transformers' 0.02
    for parameter in model.parameters():
        nn.init.normal_(parameter)  # as if trained
    model.save_pretrained(tmp_path)
    again = Tagger.from_pretrained(tmp_path)
    for (name, trained), loaded in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(trained, loaded), name
