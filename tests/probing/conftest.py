"""Data sets in their official layouts, short searches and a toy model for probing."""

from dataclasses import replace

import pytest
from toy_datasets import DATASETS

from music2vec_hf.probing.probes import SEARCHES
from music2vec_hf.probing.tasks import loading


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Features and searches of all runs on the toy corpus, as a user's `--cache-dir`."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def short_searches(monkeypatch):
    """`quick` and `marble` with two settings each and few steps: for tests of what a run does with its scores."""
    for name, steps in (("quick", 40), ("marble", 2)):
        search = SEARCHES[name]
        short = replace(search, settings=search.settings[:2], max_steps=steps, by_task={})
        monkeypatch.setitem(SEARCHES, name, short)


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """Every data set of a task in its official layout, in a folder of its name; not to be changed."""
    root = tmp_path_factory.mktemp("toy")
    for name, build in DATASETS.items():
        build(root / name)
    return root


HEADERS = {}


@pytest.fixture(autouse=True)
def links_are_opened_once(monkeypatch):
    """A data set of full size is links of a few tones: of each the header is read once."""
    read = loading.read_headers

    def read_once(paths):
        seconds, faults = {}, {}
        for path in paths:
            about = path.stat() if path.is_file() else None
            key = about and (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, path.suffix)
            if about is None or about.st_nlink == 1 or key not in HEADERS:
                HEADERS[key] = [list(found.values()) for found in read([path])]
            for found, values in zip((seconds, faults), HEADERS[key], strict=True):
                found.update((path, value) for value in values)
        return seconds, faults

    monkeypatch.setattr(loading, "read_headers", read_once)
