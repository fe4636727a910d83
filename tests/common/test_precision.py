"""Precision by name: what `auto` becomes on a device, and that a matrix product then runs in it."""

import pytest
import torch

from music2vec_hf.common.computing import autocast, choose_precision


@pytest.mark.parametrize(
    ("asked", "device", "gpu", "cpu", "found"),
    [
        ("fp16", "cpu", True, True, "fp16"),
        ("auto", "cuda", True, False, "bf16"),
        ("auto", "cuda", False, True, "fp32"),
        ("auto", "cpu", True, False, "fp32"),  # whatever the GPU beside it can do
        ("auto", "cpu", False, True, "bf16"),
        ("auto", "mps", True, True, "fp32"),
        ("auto", None, False, True, "bf16"),  # there is no GPU here
    ],
)
def test_auto_asks_the_device_in_use(asked, device, gpu, cpu, found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": cpu})
    assert choose_precision(asked, device) == found


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_products_run_in_it(name, dtype):
    with autocast(name, "cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_another_name_is_refused():
    with pytest.raises(ValueError, match=r"`precision` is 'fp8'. Use one of fp32, bf16, fp16, auto."):
        autocast("fp8", "cpu")
