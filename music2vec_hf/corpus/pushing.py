"""A finished corpus to a data set on the Hub."""

import os
from pathlib import Path

from huggingface_hub import HfApi

from music2vec_hf.common.hub import explain_push_errors
from music2vec_hf.corpus.claiming import read_finished

# What `prepare_corpus` writes, and nothing that somebody put beside it.
PUSHED = ["data/*.parquet", "rejects.csv", "README.md", "corpus.json"]


def push_corpus(out: str | os.PathLike, repo_id: str, private: bool = False) -> str:
    """Upload a corpus as a data set, which then loads by its id as it does from its folder.

    What the Hub has already is not sent again, so that a push that was interrupted goes on. Shards that an earlier
    corpus left there are removed.

    Args:
        out: the folder that `prepare_corpus` made.
        repo_id (`str`): `user/name`; made if it is not there.
        private (`bool`): whether a new one is seen by its owner alone.

    Returns:
        `str`: the address of the data set.

    Raises:
        ValueError: if `out` holds no finished corpus, or the Hub refuses.
    """
    out = Path(out)
    if not out.is_dir() or read_finished(out, {}) is None:
        raise ValueError(f"{out} holds no finished corpus; make one with `music2vec prepare SOURCE {out}`.")
    api = HfApi()
    with explain_push_errors(out, repo_id):
        url = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=out,
            allow_patterns=PUSHED,
            delete_patterns=["data/*.parquet"],
            commit_message="Corpus made with music2vec prepare",
        )
    return str(url)


__all__ = ["push_corpus"]
