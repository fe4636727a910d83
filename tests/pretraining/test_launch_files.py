"""The launch files under examples/: accelerate and the shell can read them, and the script does what it says."""

import os
import subprocess
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

LAUNCH = Path(__file__).parents[2] / "examples" / "launch"


@pytest.mark.parametrize(
    ("name", "machines", "processes"), [("one_gpu", 1, 1), ("eight_gpus", 1, 8), ("two_hosts", 2, 16)]
)
def test_accelerate_reads_it(name, machines, processes):
    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    assert (config.num_machines, config.num_processes) == (machines, processes)
    assert config.mixed_precision == "no"


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (1, False), (0, False)])
def test_slurm_requeues_after_a_stop_request_only(code, requeued, tmp_path):
    """With stand-ins for `srun` and `scontrol`, and one for Python that ends with a given code."""
    called = tmp_path / "called"
    programs = {
        "srun": 'SLURM_PROCID=3 SLURM_LOCALID=1 SLURM_NTASKS=16 "$@"',
        "scontrol": f'[ "$1" = show ] && echo host0 || echo "scontrol $*" >> {called}',
        "python": f'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $*" >> {called}; exit {code}',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", LAUNCH / "slurm.sh", "my corpus", "my run"], env=environment)
    lines = called.read_text().splitlines()
    assert done.returncode == code
    assert lines[0].startswith("3 1 16 host0 -m music2vec_hf pretrain --recipe crop5s --corpus my corpus --output my")
    assert lines[1:] == (["scontrol requeue 7"] if requeued else [])
