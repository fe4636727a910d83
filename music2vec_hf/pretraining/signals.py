"""Requests to stop: SIGTERM and SIGUSR1, which clusters send before they take a machine back."""

import signal
import threading

import torch

# sysexits' EX_TEMPFAIL: nothing is wrong, run the same command again.
REQUEUE_EXIT_CODE = 75


class TrainingInterrupted(RuntimeError):
    """The run was asked to stop and has saved a checkpoint."""


class StopRequest:
    """Turns SIGTERM and SIGUSR1 into a question that the loop asks after each step.

    A context: on leaving it the earlier handlers are back.

    Args:
        accelerator (`accelerate.Accelerator`): with several processes one that was asked is enough for all to stop.
    """

    def __init__(self, accelerator):
        self.accelerator, self.received, self._earlier = accelerator, 0, {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is not threading.main_thread():
            return self  # Python delivers signals to the main thread only
        for number in (signal.SIGTERM, signal.SIGUSR1):
            self._earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _note(self, number, frame) -> None:
        self.received = number

    def pending(self) -> str | None:
        """Name of the signal that any process has received, or `None`."""
        received = self.received
        if self.accelerator.num_processes > 1:
            flags = self.accelerator.gather(torch.tensor([received], device=self.accelerator.device))
            received = int(flags.max())
        return signal.Signals(received).name if received else None


__all__ = ["REQUEUE_EXIT_CODE", "StopRequest", "TrainingInterrupted"]
