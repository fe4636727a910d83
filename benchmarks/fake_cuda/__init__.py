"""CUDA tensors without data and without a GPU: what a program on them does is counted, nothing is computed.

[`environment`] makes, with a C++ compiler, what a process must be started with; inside of it
[`fake_cuda.counting.Gpu`] is the GPU. It counts operations, the bytes that they read and write, mixed devices and
types, and the waits: where the program asks for a value, or copies from pageable memory, before it goes on. It cannot
say how fast a kernel is, or that a number is right.
"""

import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).parent


def missing() -> str | None:
    """Why there can be no such process here, or `None`."""
    if shutil.which("g++") is None:
        return "there is no C++ compiler (g++)"
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    return None if _headers() else "there is no Triton, which brings along the headers of CUDA"


def _headers() -> Path | None:
    header = Path(sysconfig.get_path("purelib"), "triton/backends/nvidia/include/cuda_runtime_api.h")
    return header.parent if header.is_file() else None


def environment(folder: str | Path) -> dict[str, str]:
    """Compile into a folder, and give the variables that a process needs to see the GPU."""
    shim, driver = Path(folder) / "shim.so", Path(folder) / "libcuda.so.1"
    for words in (
        ["g++", f"-I{_headers()}", str(HERE / "shim.cpp"), "-o", str(shim)],
        ["gcc", str(HERE / "driver.c"), "-o", str(driver)],
    ):
        subprocess.run([words[0], "-shared", "-fPIC", *words[1:]], check=True)
    return {"LD_PRELOAD": str(shim), "LD_LIBRARY_PATH": str(folder), "TRITON_CACHE_DIR": str(Path(folder) / "triton")}


def run_again(program: str, arguments: list[str]) -> int:
    """Run a program in such a process; its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        command = [os.sys.executable, program, *arguments]
        return subprocess.run(command, env={**os.environ, **environment(folder)}, check=False).returncode


__all__ = ["environment", "missing", "run_again"]
