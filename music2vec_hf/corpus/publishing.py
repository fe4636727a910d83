"""Whole shards to a corpus: duplicates leave, files get their names, `corpus.json` comes last; and on to the Hub."""

import csv
import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from datasets import DatasetInfo, Features, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData, HfApi

from music2vec_hf import __version__
from music2vec_hf.audio.listing import Listing, Track
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.common.files import write_text, written_aside
from music2vec_hf.common.hub import explain_push_errors
from music2vec_hf.common.render import render
from music2vec_hf.corpus.clips import write_tables
from music2vec_hf.corpus.shards import Shard

# What `prepare_corpus` writes, and nothing that somebody put beside it.
PUSHED = ["data/*.parquet", "rejects.csv", "README.md", "corpus.json"]


def publish(source: str | os.PathLike, out: Path, plan: dict, listing: Listing, shards: list[Shard]) -> dict:
    """Make the corpus of shards that are all written; returns its `corpus.json`. A run that was killed goes on here.

    Args:
        source: what an error calls what was prepared.
        plan (`dict`): the settings, for `corpus.json`.
        listing (`Listing`), shards (`list[Shard]`): all tracks; their shards, whose folder is removed.

    Raises:
        ValueError: if no track has a clip; the sentence names the commonest reason.
    """
    work, found = shards[0].path.parent, [shard.results for shard in shards]
    results = drop_duplicates(listing.tracks, [result for shard in found for result in shard])
    rejects = [
        (track.source, kind, reason)
        for track, result in zip(listing.tracks, results, strict=True)
        for kind, reason in result["rejects"]
    ]
    if not any(result["clips"] for result in results):
        shutil.rmtree(work)
        ((kind, count),) = Counter(kind for _, kind, _ in rejects).most_common(1)
        example = next(f"{name}: {reason}" for name, found, reason in rejects if found == kind)
        raise ValueError(
            f"None of the {len(results)} audio files of {source} can be used; the commonest reason is {kind!r} "
            f"({count} times), for example {example}"
        )
    (out / "data").mkdir(exist_ok=True)
    by_split: dict[str, list[tuple[Shard, list[dict], list[dict]]]] = {}
    rest = iter(results)
    for shard, before in zip(shards, found, strict=True):
        after = [next(rest) for _ in before]
        if any(result["clips"] for result in after):
            by_split.setdefault(shard.tracks[0].split, []).append((shard, before, after))
    for split, filled in by_split.items():
        for number, moved in enumerate(filled):
            _move(*moved, out / "data" / f"{split}-{number:05d}-of-{len(filled):05d}.parquet")
    rows = [*listing.rejects, *((name, reason) for name, _, reason in rejects)]
    kinds = Counter([*(reason.split(":")[0] for _, reason in listing.rejects), *(kind for _, kind, _ in rejects)])
    summary = _summarise(plan, listing, results, {split: len(filled) for split, filled in by_split.items()}, kinds)
    texts = {
        "rejects.csv": _csv([("path", "reason"), *rows]),
        "README.md": _card(summary, Features.from_arrow_schema(shards[0].schema), out / "data", listing, results),
        "corpus.json": json.dumps(summary, indent=2) + "\n",
    }
    for name, text in texts.items():
        os.replace(write_text(work / name, text), out / name)
    shutil.rmtree(work, ignore_errors=True)
    return summary


def drop_duplicates(tracks: list[Track], results: list[dict]) -> list[dict]:
    """Keep the first of tracks that decode to the same 16 kHz samples, from their first to their last.

    What is dropped depends on the order of the tracks alone, not on who decoded them, or when.

    Returns:
        the results; for a duplicate one without clips, with a reject that names the first.
    """
    first: dict[str, Track] = {}
    kept = []
    for track, result in zip(tracks, results, strict=True):
        same = first.setdefault(result["sha256"], track) if result["clips"] else track
        if same is not track:
            reason = f"duplicate: it decodes to the same samples as {same.source}, which is kept."
            nothing = dict.fromkeys(("clips", "seconds", "remainder_seconds"), 0)
            result = {**result, **nothing, "rejects": [["duplicate", reason]], "rejected_file": True}
        kept.append(result)
    return kept


def _move(shard: Shard, before: list[dict], after: list[dict], target: Path) -> None:
    """Give a shard its final name, without the clips of tracks that are left out."""
    if target.exists() and not shard.path.exists():
        return  # by a run that was killed after it
    if before == after:
        os.replace(shard.path, target)
        return
    is_kept = np.repeat([result["clips"] > 0 for result in after], [result["clips"] for result in before])

    def tables() -> Iterator[pa.Table]:
        first = 0
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            yield table.filter(pa.array(is_kept[first : first + len(table)]))
            first += len(table)

    with pq.ParquetFile(shard.path) as file, written_aside(shard.path.with_suffix(".kept")) as aside:
        write_tables(aside, shard.schema, tables())
    os.replace(shard.path.with_suffix(".kept"), target)
    shard.path.unlink()


def _csv(rows: Iterable[tuple[str, str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _summarise(plan: dict, listing: Listing, results: list[dict], num_shards: dict, rejects: Counter) -> dict:
    """The content of `corpus.json`; shards are counted by split, rejects by kind."""
    by_split: dict[str, list[dict]] = {}
    for track, result in zip(listing.tracks, results, strict=True):
        if result["clips"]:
            by_split.setdefault(track.split, []).append(result)

    def hours(of: Iterable[dict], what: str = "seconds") -> float:
        return round(sum(result[what] for result in of) / 3600, 6)

    splits = {
        name: {
            "hours": hours(kept),
            "clips": sum(result["clips"] for result in kept),
            "tracks": len(kept),
            "shards": num_shards[name],
        }
        for name, kept in by_split.items()
    }
    return {
        "hours": hours(results),
        "clips": sum(split["clips"] for split in splits.values()),
        "tracks": sum(split["tracks"] for split in splits.values()),
        "sampling_rate": SAMPLING_RATE,
        "splits": splits,
        "rejected_files": len(listing.rejects) + sum(result["rejected_file"] for result in results),
        "rejects": dict(sorted(rejects.items())),
        "remainder_hours": hours(results, "remainder_seconds"),
        **({} if listing.not_sampled is None else {"not_sampled": listing.not_sampled}),
        "settings": plan,
        "versions": {
            "music2vec_hf": __version__,
            "libsndfile": soundfile.__libsndfile_version__,
            **{name: version(name) for name in ("soundfile", "torch", "torchaudio", "pyarrow", "datasets")},
        },
    }


def _card(summary: dict, features: Features, data: Path, listing: Listing, results: list[dict]) -> str:
    """The text of `README.md`.

    Its header tells `datasets` what the corpus holds. `datasets` keeps rows in its cache under the name of the folder
    and a hash of that header: by the digest in it corpora of equal names and sizes are told apart.
    """
    digest = hashlib.sha256(json.dumps([summary["settings"], listing.digest()]).encode())
    for track, result in zip(listing.tracks, results, strict=True):
        digest.update(f"{track.track_id} {result['clips']} {result.get('sha256')}".encode())
    num_bytes = {name: sum(path.stat().st_size for path in data.glob(f"{name}-*")) for name in summary["splits"]}
    splits = SplitDict(
        {name: SplitInfo(name, num_bytes[name], split["clips"]) for name, split in summary["splits"].items()}
    )
    size = sum(num_bytes.values())
    files = [{"split": name, "path": f"data/{name}-*"} for name in summary["splits"]]
    about = {"config_name": "default", "data_files": files, "description": f"content {digest.hexdigest()[:32]}"}
    header = DatasetCardData(tags=["audio", "music", "music2vec"], configs=[about])
    info = DatasetInfo(features=features, splits=splits, download_size=size, dataset_size=size)
    DatasetInfosDict({"default": info}).to_dataset_card_data(header)
    return render(
        Path(__file__).with_name("card.md.jinja"),
        **{"not_sampled": None, **summary},
        header=header.to_yaml(),
        store=summary["settings"]["store"].upper(),
        split_rows=[
            (name, f"{split['hours']:.2f}", split["clips"], split["tracks"], split["shards"])
            for name, split in summary["splits"].items()
        ],
    )


def push_corpus(out: str | os.PathLike, repo_id: str, private: bool = False) -> str:
    """Upload a corpus as a data set, which then loads by its id as it does from its folder.

    What the Hub has already is not sent again, so that a push that was interrupted goes on. Shards that an earlier
    corpus left there are removed.

    Args:
        repo_id (`str`): `user/name`; made if it is not there.
        private (`bool`): whether a new one is seen by its owner alone.

    Raises:
        ValueError: if `out` holds no finished corpus, or the Hub refuses.
    """
    out = Path(out)
    if not (out / "corpus.json").is_file():
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
