"""A toy run without dropout, whose losses do not depend on how many processes share it; as a program, one process:
`python -m toy_processes CORPUS OUTPUT [CHANGES]`, with changes of the recipe as JSON."""

import json
import sys
from pathlib import Path

from toy_run import toy

from music2vec_hf.pretraining.loop import pretrain
from music2vec_hf.pretraining.signals import REQUEUE_EXIT_CODE, TrainingInterrupted


def run(corpus, output, **changes):
    """Run it, or go on with it."""
    quiet = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0}
    recipe = toy(**{**quiet, "max_steps": 12, "keep_last": 10, **changes})
    return pretrain(recipe, corpus, Path(output), resume=True)


if __name__ == "__main__":
    try:
        run(sys.argv[1], sys.argv[2], **json.loads((sys.argv[3:] or ["{}"])[0]))
    except TrainingInterrupted:
        sys.exit(REQUEUE_EXIT_CODE)
