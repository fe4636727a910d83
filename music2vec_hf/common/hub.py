"""What the Hub gives: its files in the cache, and one sentence where it gives nothing."""

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    StrictDataclassError,
)
from safetensors import SafetensorError
from tqdm import tqdm

_DATASET_FILE = re.compile(r"hf://datasets/(?P<repo_id>[^/@]+/[^/@]+)@(?P<revision>[^/]+)/(?P<filename>.+)")
_DOWNLOADS_AT_ONCE = 8
_TINY = " (`tiny` comes with the library and needs no network)"


class _SilentBar(tqdm):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, "disable": True})


@contextmanager
def explain_hub_errors(name: str | Path, what: str) -> Iterator[None]:
    """Turn whatever a Hub's client raises within the block into one sentence.

    Args:
        name (`str` or `Path`): folder or Hub id that is being read; for a folder nothing is changed.
        what (`str`): what it should be, as "a model".

    Raises:
        ValueError: for a missing or private repository, a bad token, a file that is not there, no connection, weights
            that are damaged or not safe, a configuration with impossible values.
    """
    if what == "a model" and os.path.isdir(name) and not os.path.isfile(os.path.join(name, "config.json")):
        raise ValueError(
            f"{name} has no config.json, so there is no model in it. Name a folder that `save_pretrained` or "
            "`music2vec pretrain` wrote (of a run that is not over, its last checkpoint), a Hub id, or `tiny`."
        )
    try:
        yield
    except (SafetensorError, UnpicklingError) as error:
        # What a .bin file holds beside numbers is never run; torch's advice to allow that is left out.
        reason = "a .bin file with more than numbers" if isinstance(error, UnpicklingError) else hub_reason(error)
        raise ValueError(
            f"The weights of {name} are damaged or not safe ({reason}); copy or save them again, or, for a Hub id, "
            "delete it from the cache."
        ) from error
    except StrictDataclassError as error:
        reason = " ".join(str(error.__cause__ or error).split()).rstrip(".")
        raise ValueError(f"The config.json of {name} cannot be used ({reason}); correct or save it again.") from error
    except (OSError, HTTPError) as error:
        # An error of the file system itself, such as a full disk, has a number.
        if os.path.isdir(name) or getattr(error, "errno", None) is not None:
            raise
        raise ValueError(
            f"{name} is neither a folder here nor {what} that the Hub gives ({hub_reason(error)}); check the name"
            f"{_TINY if what == 'a model' else ''}, the connection (offline, only what was loaded before is there) "
            "and, for a private one, `hf auth login`."
        ) from error


@contextmanager
def explain_push_errors(what: str | Path, repo_id: str) -> Iterator[None]:
    """Turn whatever a Hub's client raises while it uploads `what` into one sentence.

    Raises:
        ValueError: for a bad name or token, no right to write there, no connection, an upload that broke off.
    """
    try:
        yield
    except (HFValidationError, HTTPError, OSError, RuntimeError) as error:
        # The client wraps what happens to a large file in a RuntimeError.
        cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
        raise ValueError(
            f"{what} cannot be pushed to {repo_id} ({hub_reason(cause)}); check the name, the connection and `hf auth "
            "login`. Nothing is lost here: push it again with the same command, and what the Hub has already is not "
            "sent again."
        ) from error


def hub_reason(error: BaseException) -> str:
    """The Hub's own words, else the first sentence of the client's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HfHubHTTPError) and not isinstance(cause, EntryNotFoundError) and cause.server_message:
            return f"the Hub says: {cause.server_message.rstrip('.')}"
        cause = cause.__cause__
    return re.split(r"\n|\.\s|\.$", re.sub(r"\[Errno -?\d+\] ", "", str(error)).strip())[0]


def download_files(urls: list[str]) -> list[str]:
    """Fetch files of a data set on the Hub into its cache (`HF_HUB_CACHE`); those that are there are not asked for.

    Args:
        urls (`list[str]`): one or more, as `hf://datasets/user/name@commit/path`.

    Raises:
        ValueError: if the Hub does not give one of them, or is not to be asked and one is not in the cache.
    """
    parts = [_DATASET_FILE.fullmatch(url).groupdict() for url in urls]
    name = parts[0]["repo_id"]

    def fetch(part: dict[str, str]) -> str:
        return hf_hub_download(**part, repo_type="dataset", tqdm_class=_SilentBar)

    pool = ThreadPoolExecutor(_DOWNLOADS_AT_ONCE)
    try:
        with explain_hub_errors(name, "a data set"):
            return list(tqdm(pool.map(fetch, parts), total=len(urls), desc=f"fetching {name}", unit="file"))
    finally:
        pool.shutdown(cancel_futures=True)


def download_if_there(url: str) -> str | None:
    """Fetch one file as [`download_files`] does; None if the Hub, or offline the cache, has no such file."""
    try:
        return download_files([url])[0]
    except ValueError as error:
        if isinstance(error.__cause__, EntryNotFoundError):
            return None
        raise
