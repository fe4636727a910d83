"""Pretraining; here, what a run may end with beside success. Importing it costs nothing."""

REQUEUE_EXIT_CODE = 75  # sysexits' EX_TEMPFAIL: nothing is wrong, run the same command again


class TrainingStopped(RuntimeError):
    """The run ended itself; the message says why, in one sentence, and what was saved."""


class TrainingInterrupted(RuntimeError):
    """The run was asked to stop and has saved a checkpoint."""
