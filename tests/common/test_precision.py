"""Precision by name: what `auto` becomes, and that a matrix product then runs in it."""

import pytest
import torch

from music2vec_hf.common.precision import autocast, choose_precision


def test_precision_is_what_was_asked_for():
    assert [choose_precision(name) for name in ("fp32", "bf16", "fp16")] == ["fp32", "bf16", "fp16"]
    assert choose_precision("auto") in ("fp32", "bf16")


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_products_run_in_it(name, dtype):
    with autocast(name, "cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_another_name_is_refused():
    with pytest.raises(ValueError, match=r"`precision` is 'fp8'. Use one of fp32, bf16, fp16, auto."):
        autocast("fp8", "cpu")
