"""A toy run without dropout, whose losses do not depend on how many processes share it; as a program, one process:
`python -m toy_processes CORPUS OUTPUT`."""

import sys
from pathlib import Path

from toy_run import toy

from music2vec_hf.pretraining.loop import pretrain
from music2vec_hf.pretraining.signals import REQUEUE_EXIT_CODE, TrainingInterrupted


def run(corpus, output):
    """Run it, or go on with it."""
    quiet = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0}
    return pretrain(toy(**quiet, max_steps=12, keep_last=10), corpus, Path(output), resume=True)


if __name__ == "__main__":
    try:
        run(sys.argv[1], sys.argv[2])
    except TrainingInterrupted:
        sys.exit(REQUEUE_EXIT_CODE)
