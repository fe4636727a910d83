"""The toy recipe and what its runs leave; and runs in processes of their own, which a test can kill."""

import ctypes
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout

from accelerate.state import AcceleratorState
from toy_model import SIZES
from warm_python import fork

from music2vec_hf.pretraining import REQUEUE_EXIT_CODE, TrainingInterrupted
from music2vec_hf.pretraining.arguments import Recipe, load_recipe
from music2vec_hf.pretraining.loop import pretrain

TOY = SIZES | {
    "num_hidden_layers": 2, "crop_seconds": 1.0, "batch_seconds": 4.0, "mask_group_seconds": 4.0, "max_steps": 6,
    "average_top_k_layers": 2, "log_every": 1, "save_every": 2, "num_workers": 0, "precision": "fp32",
}  # fmt: skip
CLONE_NEWNET = 0x40000000  # of linux/sched.h
# Dropout is drawn per micro-batch and process: without it losses do not depend on how a batch is cut.
QUIET = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0}


def toy(**changes) -> Recipe:
    """The toy recipe with some values changed."""
    return load_recipe("crop5s", **{**TOY, **changes})


def read_records(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def losses(output):
    return [(record["step"], record["loss"], record["grad_norm"]) for record in read_records(output)]


def start(corpus, output, changes=None, network=None, **variables):
    """A process that starts, or goes on with, a run; `variables` are added to its environment.

    `network` names the network namespace that it lives in.
    """
    return fork(run, str(corpus), str(output), changes or {}, network, variables)


def run(corpus, output, changes, network, variables):
    """What the process does; it ends as the command does. Its words are in OUTPUT.<rank>.log."""
    os.environ.update(variables)
    AcceleratorState._reset_state(reset_partial_state=True)  # that of the process which forked
    if network:
        with open(f"/var/run/netns/{network}") as namespace:
            assert ctypes.CDLL(None).setns(namespace.fileno(), CLONE_NEWNET) == 0
    with open(f"{output}.{variables.get('RANK', 0)}.log", "a") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            pretrain(toy(**changes), corpus, output, resume=True)
        except TrainingInterrupted:
            sys.exit(REQUEUE_EXIT_CODE)


def end_with(processes, exit_code):
    """Wait for the processes, and check that each ended with `exit_code`."""
    for process in processes:
        process.join(timeout=240)
    ended = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert ended == [exit_code] * len(processes)
