"""Where the clips of a corpus lie: our own folder, foreign Parquet, archives, plain audio files, or the Hub."""

import glob
import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import fsspec
from datasets import Audio, Dataset, Features, IterableDataset, Value, load_dataset, load_dataset_builder
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import is_offline_mode

from music2vec_hf.audio.folder_metadata import METADATA_FILES
from music2vec_hf.audio.reading import AUDIO_SUFFIXES, find_audio_files
from music2vec_hf.audio.sources import SPLIT_ORDER
from music2vec_hf.common.hub import download_files, explain_hub_errors

# The storage of `datasets.Audio`. The feature itself wants torchcodec wherever Python rows are encoded, this does not.
CLIP = {"bytes": Value("binary"), "path": Value("string")}

ARCHIVES = (".tar", ".tar.gz", ".tgz")
HUB_ID = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(:(?P<config>[\w.-]+))?")

# Folders in a corpus that `prepare_corpus` has not finished; the second is of versions before 0.2.
UNFINISHED = (".unfinished", ".staging")

# Files of a folder of audio that make one shard of a stream.
FILES_PER_SHARD = 100


@dataclass(frozen=True)
class FoundCorpus:
    """The files of a corpus.

    Args:
        kind (`str`): "webdataset" (.tar), "audiofolder", or the name of a loader of `datasets`, such as "parquet".
        files (`dict[str, list[str]]`): paths or URLs by split.
        on_hub (`bool`): whether it was named by a Hub id.
    """

    kind: str
    files: dict[str, list[str]]
    on_hub: bool = False


def find_corpus(corpus: str | os.PathLike) -> FoundCorpus:
    """Find the files of a corpus; nothing is read but a folder's listing.

    Args:
        corpus: as in [`load_corpus`].

    Raises:
        ValueError: if there is nothing of the name, no audio in it, or files of several kinds.
    """
    text = os.fspath(corpus)
    if os.path.isdir(text):
        return _in_folder(Path(text))
    paths = [text] if os.path.isfile(text) else sorted(glob.glob(text, recursive=True))
    if paths:
        return _in_files(text, paths)
    match = HUB_ID.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text} is not a folder; make a corpus with `music2vec prepare SOURCE {text}`, or name a folder, "
            "a glob such as 'DIR/*.parquet', or a data set on the Hub as user/name."
        )
    return _on_hub(match["id"], match["config"])


def choose_splits(corpus: str | os.PathLike, found: FoundCorpus, split: str | None) -> list[str]:
    """The splits that `split` asks for, at least one.

    Raises:
        ValueError: if the split is missing or must be named.
    """
    names = sorted(found.files, key=lambda name: (SPLIT_ORDER.index(name) if name in SPLIT_ORDER else 99, name))
    if split == "all":
        return names
    if split is None and found.on_hub and "train" in names:
        return ["train"]
    if split is None and len(names) > 1:
        raise ValueError(f"{corpus} has the splits {', '.join(names)}; name one of them, or 'all'.")
    if split is not None and split not in names:
        raise ValueError(f"{corpus} has no split {split!r}, only {', '.join(names)}.")
    return [split or names[0]]


def open_files(kind: str, files: list[str], streaming: bool) -> Dataset | IterableDataset:
    """The rows of some files of one kind, nothing decoded.

    Args:
        kind (`str`), files (`list[str]`): as in [`FoundCorpus`].
        streaming (`bool`): read while iterating, instead of turning all into one Arrow file in the cache first. Files
            on the Hub are then read where they are, else, and offline, from its cache.

    Raises:
        ValueError: if the Hub does not give a file, or an archive is damaged; of a stream, while iterating.
    """
    if files[0].startswith("hf://") and (is_offline_mode() or not streaming):
        files = download_files(files)
    if kind not in ("webdataset", "audiofolder"):
        return load_dataset(kind, data_files={"train": files}, split="train", streaming=streaming)
    read, per_shard = (read_archives, 1) if kind == "webdataset" else (read_files, FILES_PER_SHARD)
    # Date and size are part of the cache's key: a changed file is read anew.
    sources = [(file, _stamp(file)) for file in files]
    shards = [sources[first : first + per_shard] for first in range(0, len(sources), per_shard)]
    features = Features({"audio": CLIP})
    if streaming:
        return IterableDataset.from_generator(read, features=features, gen_kwargs={"shards": shards})
    try:
        return Dataset.from_generator(read, features=features, gen_kwargs={"shards": shards})
    except DatasetGenerationError as error:
        raise ValueError(f"{os.path.commonpath(files)} cannot be read: {error.__cause__ or error}") from error


def read_archives(shards: list[list[tuple[str, str]]]) -> Iterator[dict]:
    """Yield every audio file of some .tar archives, in their order; files of other kinds are passed over."""
    for shard in shards:
        for path, _ in shard:
            try:
                with _open(path) as file, tarfile.open(fileobj=file, mode="r|*") as archive:
                    for member in archive:
                        if member.isfile() and _is_audio_file(member.name):
                            data = archive.extractfile(member).read()
                            yield {"audio": {"bytes": data, "path": f"{path}/{member.name}"}}
            except (tarfile.ReadError, EOFError) as error:
                raise ValueError(
                    f"{path} is no whole .tar archive ({error}); fetch it anew or leave it out."
                ) from error


def read_files(shards: list[list[tuple[str, str]]]) -> Iterator[dict]:
    """Yield one row for each audio file: its path, and for a remote one its bytes."""
    for shard in shards:
        for path, _ in shard:
            data = None
            if "://" in path:
                with _open(path) as file:
                    data = file.read()
            yield {"audio": {"bytes": data, "path": path}}


def encoded_audio(audio: dict) -> bytes | str:
    """The encoded bytes of a row's `audio`, or the path of its file."""
    return audio["bytes"] if audio.get("bytes") is not None else audio.get("path") or b""


def audio_name(audio: dict) -> str | None:
    """What messages call a row's `audio`; None if it has no name."""
    return audio.get("path") or None


def name_audio_column(corpus: str | os.PathLike, dataset: Dataset | IterableDataset):
    """Find the one column that holds audio, by its type, and call it `audio`; it stays encoded.

    Raises:
        ValueError: if none or several of the columns hold audio.
    """
    columns = dataset.features or {}
    found = [name for name, feature in columns.items() if _holds_audio(feature)]
    if len(found) != 1:
        what = f"the audio columns {', '.join(found)}" if found else "no column of audio"
        raise ValueError(
            f"{corpus} has {what} (columns: {', '.join(columns)}); exactly one column must hold audio, as "
            "`datasets.Audio` or a struct of `bytes` and `path`: write such a data set with `to_parquet`."
        )
    if found[0] != "audio":
        if "audio" in columns:
            dataset = dataset.remove_columns("audio")
        dataset = dataset.rename_column(found[0], "audio")
    return dataset.cast_column("audio", CLIP if isinstance(dataset, IterableDataset) else Audio(decode=False))


def _holds_audio(feature) -> bool:
    if isinstance(feature, Audio):
        return True
    if not isinstance(feature, dict) or set(feature) != {"bytes", "path"}:
        return False
    types = {name: getattr(value, "dtype", "") for name, value in feature.items()}
    return types["bytes"] in ("binary", "large_binary") and types["path"] in ("string", "large_string")


def _is_audio_file(name: str) -> bool:
    base = os.path.basename(name)
    return not base.startswith(".") and os.path.splitext(base)[1].lower() in AUDIO_SUFFIXES


def _open(path: str):
    # fsspec would take "::" and the like in a local name for more than a name.
    return fsspec.open(path, "rb") if "://" in path else open(path, "rb")


def _stamp(file: str) -> str:
    if not os.path.exists(file):
        return ""
    status = os.stat(file)
    return f"{status.st_mtime_ns} {status.st_size}"


def _in_folder(folder: Path) -> FoundCorpus:
    """The files of a folder; a corpus that `prepare_corpus` left unfinished is refused."""
    ours = (folder / "corpus.json").exists()
    if not ours and any((folder / name).exists() for name in (*UNFINISHED, "rejects.csv")):
        raise ValueError(
            f"{folder} holds no finished corpus (corpus.json is missing); run `music2vec prepare SOURCE {folder}` "
            "to its end, started again it goes on where it stood."
        )
    paths = sorted(path for path in folder.rglob("*") if not set(UNFINISHED) & set(path.parts))
    by_kind = {
        "parquet": [path for path in paths if path.suffix == ".parquet" and path.name not in METADATA_FILES],
        "webdataset": [path for path in paths if path.name.endswith(ARCHIVES)],
        "audiofolder": [] if ours else find_audio_files(folder),
    }
    kinds = ["parquet"] if ours else [kind for kind, files in by_kind.items() if files]
    if len(kinds) != 1:
        what = f"files of several kinds ({', '.join(kinds)})" if kinds else "neither Parquet, .tar nor audio files"
        raise ValueError(
            f"{folder} holds {what}; name a folder with files of one kind, a glob such as '{folder}/*.tar', "
            f"or make a corpus with `music2vec prepare SOURCE {folder}`."
        )
    found = FoundCorpus(kinds[0], _by_split(kinds[0], folder, by_kind[kinds[0]]))
    if ours:
        _check_complete(folder, found.files)
    return found


def _in_files(pattern: str, paths: list[str]) -> FoundCorpus:
    by_kind: dict[str, list[Path]] = {}
    for path in map(Path, paths):
        if path.suffix == ".parquet":
            by_kind.setdefault("parquet", []).append(path)
        elif path.name.endswith(ARCHIVES):
            by_kind.setdefault("webdataset", []).append(path)
        elif _is_audio_file(path.name):
            by_kind.setdefault("audiofolder", []).append(path)
    if len(by_kind) != 1:
        what = f"files of several kinds ({', '.join(by_kind)})" if by_kind else "no Parquet, .tar or audio file"
        raise ValueError(f"{pattern} matches {what}; name files of one kind.")
    ((kind, files),) = by_kind.items()
    root = Path(os.path.commonpath([path.parent for path in files]))
    return FoundCorpus(kind, _by_split(kind, root, files))


def _by_split(kind: str, root: Path, paths: list[Path]) -> dict[str, list[str]]:
    """A file's split: its name, as in train-00000-of-00001.parquet, or the folder below `root`, or "train"."""
    files: dict[str, list[str]] = {}
    for path in paths:
        named = re.match(r"(\w+)-\d+-of-\d+", path.name) if kind != "audiofolder" else None
        top = path.relative_to(root).parts[0]
        split = named[1] if named else top if top in SPLIT_ORDER else "train"
        files.setdefault(split, []).append(os.path.abspath(path))
    return files


def _on_hub(name: str, config: str | None) -> FoundCorpus:
    """The files that a data set lists; offline, those that it listed when it was last opened."""
    listing = Path(datasets.config.HF_DATASETS_CACHE, "music2vec_hf", f"{name}--{config}.json".replace("/", "___"))
    if is_offline_mode() and listing.exists():
        return FoundCorpus(**json.loads(listing.read_text(encoding="utf-8")))
    with explain_hub_errors(name, "a data set"):
        builder = load_dataset_builder(name, config)
    files = {str(split): [str(url) for url in urls] for split, urls in (builder.config.data_files or {}).items()}
    if builder.name == "audiofolder":
        files = {split: [url for url in urls if _is_audio_file(url)] for split, urls in files.items()}
    files = {split: urls for split, urls in files.items() if urls}
    if not files:
        raise ValueError(f"{name} lists no files of audio (its loader is {builder.name}); prepare a corpus from it.")
    found = FoundCorpus(builder.name, files, on_hub=True)
    if not is_offline_mode():
        listing.parent.mkdir(parents=True, exist_ok=True)
        aside = listing.with_name(f"{listing.name}.{os.getpid()}")
        aside.write_text(json.dumps(asdict(found)), encoding="utf-8")
        os.replace(aside, listing)
    return found


def _check_complete(folder: Path, by_split: dict[str, list[str]]) -> None:
    splits = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))["splits"]
    for name, split in splits.items():
        found = len(by_split.get(name, []))
        if found != split["shards"]:
            raise ValueError(
                f"{folder} should hold {split['shards']} shards of the split {name} but holds {found}; "
                "copy it again, or remove it and prepare it anew."
            )


__all__ = [
    "FoundCorpus",
    "audio_name",
    "choose_splits",
    "encoded_audio",
    "find_corpus",
    "name_audio_column",
    "open_files",
]
