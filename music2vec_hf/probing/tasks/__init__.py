"""Probing tasks: declarations, readers of data sets (`read_*(task, folder)`), and `load_task`, which checks the data.

A reader knows the official layout and the usual variants of it. It reads annotations only: whether the audio files are
there and can be opened is for `loading.py`. Nothing is ever downloaded.
"""

import importlib
import warnings


def __getattr__(name: str):
    if name not in ("TASKS", "TASK_GROUPS", "load_task", "resolve_tasks"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{name} has moved; import it from {__name__}.loading.", DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module(f"{__name__}.loading"), name)
