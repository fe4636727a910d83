"""What `--precision tf32` costs in accuracy: `python benchmarks/tf32.py [--output FILE.md]`.

Computed on a CPU, not on a GPU: the factors of all products are rounded to TF32's 10 bits, as tensor cores do, and the
sums are float32. Beside it bf16 by autocast. Compared are features and gradients of one update of base size.
"""

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from pretrain_step import make_batch
from torch.utils._python_dispatch import TorchDispatchMode

from music2vec_hf.common.computing import autocast
from music2vec_hf.pretraining.arguments import load_recipe
from music2vec_hf.pretraining.starting import prepare_training

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "addmm_", "convolution", "convolution_backward")


def rounded(values: torch.Tensor) -> torch.Tensor:
    """Float32 values with 10 bits behind the point, the nearest of them."""
    bits = values.detach().contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).view_as(values)


class RoundedFactors(TorchDispatchMode):
    """Rounds what products multiply."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Round the factors, not what is added."""
        name = str(func).removeprefix("aten.").split(".")[0]
        if name in PRODUCTS:
            first = 1 if name.startswith(("add", "badd")) else 0
            count = 3 if name == "convolution_backward" else 2
            args = [
                rounded(value)
                if first <= place < first + count and isinstance(value, torch.Tensor) and value.dtype == torch.float32
                else value
                for place, value in enumerate(args)
            ]
        return func(*args, **(kwargs or {}))


def one_update(precision: str, context) -> dict[str, torch.Tensor]:
    """What the student gives, and its gradients."""
    recipe = load_recipe(
        "crop5s",
        **dict.fromkeys(("batch_seconds", "mask_group_seconds"), 10.0),
        **dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.0),
        layerdrop=0.0,
        precision=precision,
    )
    state = prepare_training(recipe, Accelerator(cpu=True), None)
    batch = make_batch(recipe)
    with context:
        with autocast(precision, "cpu"):
            output = state.student(**batch, teacher=state.teacher)
        output.loss.backward()
    gradients = torch.cat([weight.grad.flatten() for weight in state.student.parameters() if weight.grad is not None])
    return {
        "features": output.last_hidden_state.detach().float(),
        "targets": output.targets.float(),
        "loss": output.loss.detach(),
        "gradient": gradients,
    }


def main() -> None:
    """Compute, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    args = parser.parse_args()
    exact = one_update("fp32", nullcontext())
    lines = ["| distance from float32, relative | " + " | ".join(exact) + " |", "| --- |" + " ---: |" * len(exact)]
    for name, context in (("tf32", RoundedFactors()), ("bf16", nullcontext())):
        found = one_update("fp32" if name == "tf32" else name, context)
        distances = [float((found[part] - value).norm() / value.norm()) for part, value in exact.items()]
        lines.append(f"| {name} | " + " | ".join(f"{distance:.1e}" for distance in distances) + " |")
    lines += ["", f"- command: `python benchmarks/tf32.py {' '.join(sys.argv[1:])}`"]
    print("\n".join(lines))
    if args.output:
        args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
