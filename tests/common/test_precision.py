"""Precision by name: what `auto` becomes on a device, and that a matrix product then runs in it; which device; calls
side by side."""

import os

import pytest
import torch

from music2vec_hf.common import computing
from music2vec_hf.common.computing import autocast, choose_precision, float32_products, results_of
from music2vec_hf.features.encoders import choose_device

AMD, INTEL = ({"cpu_name": name, "avx512_bf16": True} for name in ("AMD EPYC", "Intel Xeon"))


@pytest.mark.parametrize(
    ("asked", "device", "gpu", "cpu", "found"),
    [
        ("fp16", "cpu", True, AMD, "fp16"),
        ("auto", "cuda", True, {}, "bf16"),
        ("auto", "cuda", False, AMD, "fp32"),
        ("auto", "cpu", True, {"cpu_name": "AMD EPYC"}, "fp32"),  # whatever the GPU beside it can do
        ("auto", "cpu", False, AMD, "bf16"),
        ("auto", "cpu", False, INTEL, "fp32"),  # which multiplies float32 faster
        ("auto", "cpu", False, INTEL | {"amx_bf16": True}, "bf16"),
        ("auto", "mps", True, AMD, "fp32"),
    ],
)
def test_auto_asks_the_device_in_use(asked, device, gpu, cpu, found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert choose_precision(asked, device) == found


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_products_run_in_it(name, dtype):
    with autocast(name, "cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_another_name_is_refused():
    with pytest.raises(ValueError, match=r"`precision` is 'fp8'. Use one of fp32, tf32, bf16, fp16, auto."):
        autocast("fp8", "cpu").__enter__()


@pytest.mark.parametrize("name", ["fp32", "tf32", "bf16"])
def test_products_and_convolutions_on_cuda_round_alike(name):
    def flags():
        products = torch.backends.cuda.matmul
        rounding = products.allow_tf32, torch.backends.cudnn.allow_tf32
        return *rounding, products.allow_bf16_reduced_precision_reduction

    before = flags()
    with float32_products(name, "cuda"):
        assert flags() == (name == "tf32", name == "tf32", False)
    with float32_products(name, "cpu"):
        assert flags() == before
    assert flags() == before


@pytest.mark.parametrize(
    ("gpu", "usable", "visible", "refused"),
    [
        (True, False, None, True),
        (True, False, "0", True),
        (True, False, "", False),  # the CPU is meant
        (True, True, None, False),
        (False, False, None, False),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_no_reason_to_take_the_cpu(
    gpu, usable, visible, refused, monkeypatch, tmp_path
):
    monkeypatch.setattr(computing, "_GPU", tmp_path if gpu else tmp_path / "none")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if refused:
        with pytest.raises(ValueError, match=r"torch cannot use it: .* set CUDA_VISIBLE_DEVICES= \(nothing\)"):
            choose_device("auto")
    else:
        assert choose_device("auto").type == ("cuda" if usable else "cpu")
    assert choose_device("cpu").type == "cpu"


def test_auto_takes_the_first_device_of_those_that_a_job_can_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").type == "mps"
    assert choose_device("auto", ("auto", "cpu", "cuda")).type == "cpu"  # probes, which know no mps
    with pytest.raises(ValueError, match="Use one of auto, cpu, cuda"):
        choose_device("mps", ("auto", "cpu", "cuda"))


@pytest.mark.parametrize("num_processes", [1, 2])
def test_results_come_in_order_and_an_error_as_it_is(num_processes):
    def refuse():
        raise ValueError("one clear sentence")

    calls = [lambda number=number: (number, os.getpid(), torch.get_num_threads()) for number in range(5)]
    found = list(results_of(calls, num_processes))
    assert [number for number, *_ in found] == list(range(5))
    processes = {process for _, process, _ in found}
    assert processes == {os.getpid()} if num_processes == 1 else len(processes - {os.getpid()}) == 2
    made = results_of([*calls, refuse], num_processes)
    with pytest.raises(ValueError, match=r"^one clear sentence$"):
        list(made)
