"""Where a run starts, and how much of it fits a device."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_run import toy
from transformers import Data2VecAudioModel

from music2vec_hf import EMATeacher, Music2VecForPreTraining
from music2vec_hf.common import computing
from music2vec_hf.hub.conversion import export_data2vec_audio
from music2vec_hf.pretraining import loop
from music2vec_hf.pretraining.loop import pretrain
from music2vec_hf.pretraining.starting import count_micro_steps, largest_pass, make_accelerator, new_learners


@pytest.fixture
def checkpoint(whole_run):
    return whole_run / "checkpoint-6"


def same(one, other):
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_a_checkpoint_gives_student_head_and_teacher(checkpoint):
    student, teacher = new_learners(toy(init_from=str(checkpoint)))
    assert same(student.state_dict(), load_file(checkpoint / "model.safetensors"))
    assert same(teacher.state_dict(), load_file(checkpoint / "teacher.safetensors"))
    assert not same(teacher.state_dict(), EMATeacher(student).state_dict())


def test_plain_data2vec_gives_the_encoder_and_a_new_head(checkpoint, tmp_path):
    plain = export_data2vec_audio(checkpoint, tmp_path / "plain")
    torch.manual_seed(0)
    student, teacher = new_learners(toy(init_from=str(plain)))
    theirs = Data2VecAudioModel.from_pretrained(plain).state_dict()
    ours = student.data2vec_audio.state_dict()
    assert all(ours[name].equal(tensor) for name, tensor in theirs.items())
    assert same(teacher.state_dict(), EMATeacher(student).state_dict())
    assert student.final_proj.weight.std() > 0.05


def test_a_run_from_a_model_begins_where_it_ended(checkpoint, toy_corpus, tmp_path):
    recipe = toy(init_from=str(checkpoint), max_steps=1, learning_rate=0.0, weight_decay=0.0)
    output = pretrain(recipe, toy_corpus, tmp_path / "run")
    assert same(load_file(output / "model.safetensors"), load_file(checkpoint / "model.safetensors"))


def test_what_no_recipe_sets_comes_from_the_model(checkpoint, tmp_path):
    model = Music2VecForPreTraining.from_pretrained(checkpoint)
    model.config.hidden_act = "relu"
    model.save_pretrained(tmp_path / "other")
    student, _ = new_learners(toy(init_from=str(tmp_path / "other"), hidden_dropout=0.3))
    assert (student.config.hidden_act, student.config.hidden_dropout) == ("relu", 0.3)


def test_another_shape_is_refused(checkpoint):
    with pytest.raises(ValueError, match=r"has another shape .*`hidden_size` 16 there and 32 here"):
        new_learners(toy(init_from=str(checkpoint), hidden_size=32))


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate more than there is.",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
@pytest.mark.parametrize("holds", [0, 1, 3, 8])
def test_the_largest_pass_is_found_by_trying(holds, message, monkeypatch):
    recipe = toy()
    student = Music2VecForPreTraining(recipe.model_config())
    teacher, forward = EMATeacher(student), student.forward

    def small(input_values, *rest):
        if len(input_values) > holds:
            raise RuntimeError(message)
        return forward(input_values, *rest)

    monkeypatch.setattr(student, "forward", small)
    state = torch.get_rng_state()
    if holds:
        assert largest_pass(recipe, torch.device("cpu"), student, teacher, 8) in range(max(1, holds // 2), holds + 1)
    else:
        with pytest.raises(ValueError, match=r"one crop of 1 s fits cpu. Use `--gradient_checkpointing true`"):
            largest_pass(recipe, torch.device("cpu"), student, teacher, 8)
    assert all(parameter.grad is None for parameter in student.parameters())
    assert torch.get_rng_state().equal(state) and student.config.layerdrop == recipe.layerdrop


@pytest.mark.parametrize("asked", ["false", "true"])
def test_a_run_does_not_take_the_cpu_because_torch_cannot_use_the_gpu(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(computing, "_GPU", tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", asked)
    if asked == "true":
        assert make_accelerator(toy(), tmp_path).device.type == "cpu"
    else:
        with pytest.raises(ValueError, match="torch cannot use it"):
            make_accelerator(toy(), tmp_path)


def test_a_resumed_run_keeps_the_size_that_was_found(toy_corpus, tmp_path, monkeypatch):
    found = iter([2.0, 4.0])
    monkeypatch.setattr(loop, "fitting_seconds", lambda *rest: next(found))
    recipe = {"max_seconds_per_device": "auto"}
    pretrain(toy(**recipe, max_steps=2), toy_corpus, tmp_path / "run")
    cut = []
    monkeypatch.setattr(loop, "count_micro_steps", lambda *rest: cut.append(rest[-1]) or count_micro_steps(*rest))
    monkeypatch.setattr(loop, "check_checkpoint", lambda *rest: None)  # of a longer run
    pretrain(toy(**recipe, max_steps=4), toy_corpus, tmp_path / "run", resume=True)
    assert cut == [2.0]


def test_deterministic_algorithms_are_those_of_the_run_alone(toy_corpus, tmp_path, monkeypatch):
    used, steps, asked = [], loop.run_steps, torch.are_deterministic_algorithms_enabled
    monkeypatch.setattr(loop, "run_steps", lambda *rest: used.append(asked()) or steps(*rest))
    pretrain(toy(deterministic=True, max_steps=1), toy_corpus, tmp_path / "run")
    assert used == [True] and not asked()


def test_a_teacher_of_another_layout_is_refused(checkpoint, tmp_path):
    student = Music2VecForPreTraining.from_pretrained(checkpoint)
    student.save_pretrained(tmp_path / "odd")
    save_file({"layers.0.something": torch.ones(1)}, tmp_path / "odd" / "teacher.safetensors")
    with pytest.raises(RuntimeError, match="something"):
        new_learners(toy(init_from=str(tmp_path / "odd")))
