"""What the library does on a GPU, counted on CUDA tensors without data (`benchmarks/fake_cuda`): needs no GPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))
import fake_cuda  # noqa: E402

PRETRAINING = ("pretraining", "bf16, recomputing", "fp16, three masks", "tf32, clipping, spectra")
PRETRAINING += ("bf16, frozen teacher",)
HEADS = ("head of classes", "head of tags, weighted layers", "head of values, conv", "head of frames")
EMBED = ("embed", "embed bf16 frames")

pytestmark = pytest.mark.skipif(fake_cuda.missing() is not None, reason=f"no fake GPU: {fake_cuda.missing()}")


@pytest.fixture(scope="module")
def run_with_gpu(tmp_path_factory):
    """Run a Python program in a process that sees a GPU; its output."""
    gpu = fake_cuda.environment(tmp_path_factory.mktemp("gpu"))
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", os.environ.get("PYTHONPATH", ""))))

    def run(*words) -> str:
        command = [sys.executable, "-W", "ignore", *map(str, words)]
        process = subprocess.run(
            command, env={**os.environ, **gpu, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
        )
        assert process.returncode == 0, process.stderr[-2000:]
        return process.stdout

    return run


@pytest.fixture(scope="module")
def cases(run_with_gpu):
    return json.loads(run_with_gpu(ROOT / "tests" / "fake_gpu.py").splitlines()[-1])


@pytest.mark.parametrize("name", [*PRETRAINING, *EMBED, *HEADS, "weighted loss", "size of a pass", "large batch"])
def test_all_is_on_the_gpu_and_nothing_in_double_precision(name, cases):
    assert "error" not in cases[name] and cases[name]["mixed"] == cases[name]["double"] == []
    assert set(cases[name].get("gradients", ())) <= {"torch.float32"}


@pytest.mark.parametrize("name", PRETRAINING)
def test_an_update_waits_once(name, cases):
    assert cases[name]["waits"] == {"tolist": 1} and cases[name]["gradients"] == ["torch.float32"]


def test_embeddings_wait_for_their_layers_and_send_a_batch_for_each_length(cases):
    means, frames = (cases[name] for name in EMBED)
    assert means["shapes"] == [[4, 16]] * 3 and frames["shapes"] == [[4, 74, 16]] * 2 + [[4, 49, 16]]
    assert means["waits"] == frames["waits"] == {"copy from pageable memory": 2, "cpu": 2 * 4}


def test_probes_train_and_are_scored_in_single_precision(cases):
    assert cases["probes"]["probes"] > 1 and cases["probes"]["mixed"] == cases["probes"]["double"] == []


def test_a_batch_is_cut_where_kernels_count_in_32_bits(cases):
    assert cases["large batch"]["rows"] == 4 and cases["large batch"]["largest"] < 2**31


def test_a_size_is_found_without_reserving_more_than_there_is(cases):
    assert cases["size of a pass"]["rows"] == 5


@pytest.mark.slow
def test_the_benchmarks_of_a_gpu_run_to_their_last_page(run_with_gpu):
    name = "course of measurements"
    printed = json.loads(run_with_gpu(ROOT / "tests" / "fake_gpu.py", name).splitlines()[-1])[name]
    page, ended = printed["page"], printed["ended"]
    assert page.count("| bf16 | yes | 2 |") == page.count("| tf32 | no | 2 |") == page.count("| fp32 | yes | 2 |") == 1
    for wanted in ("| front end |", "| grouped convolution |", "## What to do next\n\n- Train with `--precision"):
        assert wanted in page
    assert "Not measured" not in page
    for what in ("bf16, compiled, 2 crops", "the parts", "the kernels", "the positional convolution"):
        assert f"- Not measured, for lack of time: {what}." in ended


@pytest.mark.parametrize(
    ("mistake", "seen"),
    [
        ("a mask left on the CPU", lambda case: "at least two devices" in case["error"]),
        ("a value asked for", lambda case: case["waits"] == {"item": 7, "tolist": 1}),  # one for each layer
        ("double precision", lambda case: case["double"] == ["_to_copy.default"]),
    ],
)
def test_a_mistake_is_seen(mistake, seen, cases):
    assert seen(cases[mistake])


@pytest.mark.slow
def test_a_compiled_update_waits_once_and_moves_few_bytes(run_with_gpu, tmp_path):
    """The bytes at base size, 47 crops, bf16: what docs/performance.md promises."""
    run_with_gpu(ROOT / "benchmarks" / "gpu_bytes.py", "--inside", "--output", tmp_path / "table.md")
    text = (tmp_path / "table.md").read_text()
    kernels, waits, *gigabytes = map(float, re.search(r"\| yes \| (.*) \|\n", text)[1].split(" | "))
    assert waits == 1 and kernels < 1500 and gigabytes[-1] <= 70
