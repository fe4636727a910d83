"""Tracks with the same samples as a track before them are left out, and named."""

from collections.abc import Iterable, Iterator

from music2vec_hf.audio.sources import Track


def drop_duplicates(tracks: Iterable[Track], results: Iterable[dict]) -> Iterator[dict]:
    """Keep the first of tracks that decode to the same 16 kHz samples, from their first to their last.

    What is dropped depends on the order of the tracks alone, not on who staged them, or when.

    Args:
        tracks: the tracks, in the order of the corpus.
        results: what `stage_track` returned for each of them.

    Yields:
        `dict`: the result; for a duplicate one without clips, with a reject that names the first.
    """
    first: dict[str, str] = {}
    for track, result in zip(tracks, results, strict=True):
        if not result["clips"]:
            yield result
            continue
        if result["sha256"] not in first:
            first[result["sha256"]] = track.source
            yield result
            continue
        reason = f"duplicate: it decodes to the same samples as {first[result['sha256']]}, which is kept."
        nothing = dict.fromkeys(("clips", "seconds", "remainder_seconds"), 0)
        yield {**result, **nothing, "rejects": [["duplicate", reason]], "rejected_file": True}
