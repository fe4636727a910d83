"""Shards, and what is known of every track, to the files of a corpus; `corpus.json` last."""

import csv
import io
import json
import os
import shutil
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import soundfile

from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.audio.sources import Listing
from music2vec_hf.corpus.card import write_card
from music2vec_hf.corpus.claiming import STAGING
from music2vec_hf.corpus.clips import write_atomically


def refuse_empty(source: str | os.PathLike, listing: Listing, results: list[dict]) -> None:
    """Raise the ValueError for a source of which nothing can be used; it names the commonest reason."""
    reasons = Counter(kind for result in results for kind, _ in result["rejects"])
    kind, count = reasons.most_common(1)[0]
    example = next(
        f"{track.source}: {reason}"
        for track, result in zip(listing.tracks, results, strict=True)
        for found, reason in result["rejects"]
        if found == kind
    )
    raise ValueError(
        f"None of the {len(results)} audio files of {source} can be used; the commonest reason is {kind!r} "
        f"({count} times), for example {example}"
    )


def publish(out: Path, plan: dict, listing: Listing, results: list[dict], shards: list[dict]) -> dict:
    """Give the shards their final names, write the files beside them, `corpus.json` last."""
    (out / "data").mkdir(exist_ok=True)
    counts = Counter(shard["split"] for shard in shards)
    numbers: Counter = Counter()
    for shard in shards:
        split = shard["split"]
        target = out / "data" / f"{split}-{numbers[split]:05d}-of-{counts[split]:05d}.parquet"
        numbers[split] += 1
        staged = out / STAGING / "shards" / shard["file"]
        # A run that was killed here has moved some of them.
        if staged.exists() or not target.exists():
            os.replace(staged, target)
    write_atomically(out / "rejects.csv", _rejects_csv(listing, results))
    summary = _summarise(plan, listing, results, counts)
    write_atomically(out / "README.md", write_card(summary))
    write_atomically(out / "corpus.json", json.dumps(summary, indent=2) + "\n")
    shutil.rmtree(out / STAGING)
    return summary


def _rejects_csv(listing: Listing, results: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "reason"])
    writer.writerows(listing.rejects)
    for track, result in zip(listing.tracks, results, strict=True):
        writer.writerows((track.source, reason) for _, reason in result["rejects"])
    return text.getvalue()


def _summarise(plan: dict, listing: Listing, results: list[dict], num_shards: Counter) -> dict:
    splits: dict[str, dict] = {}
    for track, result in zip(listing.tracks, results, strict=True):
        if result["clips"]:
            split = splits.setdefault(track.split, {"hours": 0.0, "clips": 0, "tracks": 0, "shards": 0})
            split["hours"] += result["seconds"] / 3600
            split["clips"] += result["clips"]
            split["tracks"] += 1
    for name, split in splits.items():
        split["shards"] = num_shards[name]
        split["hours"] = round(split["hours"], 6)
    kinds = Counter(reason.split(":")[0] for _, reason in listing.rejects)
    kinds.update(kind for result in results for kind, _ in result["rejects"])
    return {
        "hours": round(sum(result["seconds"] for result in results) / 3600, 6),
        "clips": sum(split["clips"] for split in splits.values()),
        "tracks": sum(split["tracks"] for split in splits.values()),
        "sampling_rate": SAMPLING_RATE,
        "splits": splits,
        "rejected_files": len(listing.rejects) + sum(result["rejected_file"] for result in results),
        "rejects": dict(sorted(kinds.items())),
        "remainder_hours": round(sum(result["remainder_seconds"] for result in results) / 3600, 6),
        **({} if listing.not_sampled is None else {"not_sampled": listing.not_sampled}),
        "settings": plan,
        "versions": {
            "music2vec_hf": _version("music2vec_hf"),
            "libsndfile": soundfile.__libsndfile_version__,
            **{name: _version(name) for name in ("soundfile", "torch", "torchaudio", "pyarrow", "datasets")},
        },
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
