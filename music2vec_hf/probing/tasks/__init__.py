"""Probing tasks: declarations, readers of data sets (`read_*(task, folder)`), and `load_task`, which checks the data.

A reader knows the official layout and the usual variants of it. It reads annotations only: whether the audio files are
there and can be opened is for `loading.py`. Nothing is ever downloaded. It raises FileNotFoundError if the folder is
not that of its data set or a table is not there, and says where to get it; ValueError if a table is not UTF-8, is
damaged or has other columns or values, or if the data set lies there twice.
"""

import importlib
import warnings


def __getattr__(name: str):
    if name not in ("TASKS", "TASK_GROUPS", "load_task", "resolve_tasks"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{name} has moved; import it from {__name__}.loading.", DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module(f"{__name__}.loading"), name)
