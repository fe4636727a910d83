"""Probing tasks: declarations, readers of data sets (`read_*(task, folder)`), and `load_task`, which checks the data.

A reader knows the official layout and the usual variants of it. It reads annotations only: whether the audio files are
there and can be opened is for `loading.py`. Nothing is ever downloaded.
"""
