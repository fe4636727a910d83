"""Readers of data sets, one file each: `TASKS`, the declarations, and `read(task, folder)`, which gives `TaskData`.

A reader knows the official layout and the usual variants of it. It reads annotations only: whether the audio files are
there and can be opened is for `checking.py`. Nothing is ever downloaded.
"""
