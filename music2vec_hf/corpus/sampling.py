"""So many hours of a collection: whole tracks, or all tracks of an artist, chosen at random by a seed."""

import hashlib
from dataclasses import replace

from tqdm import tqdm

from music2vec_hf.audio.decoding import AudioError
from music2vec_hf.audio.listing import Listing, Track
from music2vec_hf.audio.reading import AudioReader
from music2vec_hf.audio.resampling import SAMPLING_RATE

# No music is stored in fewer bits a second: a header that states more seconds than that states nothing.
MIN_BIT_RATE = 500.0


def sample_tracks(listing: Listing, hours: float, seed: int, progress: bool = True) -> Listing:
    """Choose tracks at random until they last `hours`, by the lengths that their headers state.

    Chosen are whole tracks; whole artists where the manifest has a column `artist_id`, so that no artist is on both
    sides. The order of the choice depends on the seed and on the names (track_id, artist_id) alone: the choice is the
    same on every machine, and with the same seed fewer hours are a part of more hours. A file that states no length,
    or cannot be opened, may be chosen but counts as 0 hours.

    Args:
        listing (`Listing`): all tracks.
        hours (`float`): at least how much; the last track, or artist, may go beyond.
        seed (`int`): another seed, another choice.
        progress (`bool`): show a bar while headers are read.

    Returns:
        `Listing`: the chosen tracks in the order of `listing`; `not_sampled` says how many were not.

    Raises:
        ValueError: if the tracks last less than `hours`.
    """
    groups: dict[str, list[int]] = {}
    for index, track in enumerate(listing.tracks):
        artist = track.metadata.get("artist_id")
        group = f"track {track.track_id}" if artist is None or artist == "" else f"artist {artist}"
        groups.setdefault(group, []).append(index)
    chosen: list[int] = []
    found = 0.0
    with tqdm(disable=not progress, total=hours, bar_format=BAR) as bar:
        for group in sorted(groups, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest()):
            for index in groups[group]:
                stated = _stated_hours(listing.tracks[index])
                found += stated
                bar.update(stated)
            chosen += groups[group]
            if found >= hours:
                break
    if found < hours:
        raise ValueError(
            f"The {len(chosen)} tracks last {found:.2f} h by their headers, fewer than the {hours:g} hours asked for; "
            "ask for fewer, or leave `hours` out to take all."
        )
    tracks = [listing.tracks[index] for index in sorted(chosen)]
    return replace(listing, tracks=tracks, not_sampled=len(listing.tracks) - len(tracks))


BAR = "choosing tracks: {percentage:3.0f}%|{bar}| {n:.2f}/{total:.2f} h of audio [{elapsed}<{remaining}]"


def _stated_hours(track: Track) -> float:
    try:
        with AudioReader(track.path, name=track.source) as reader:
            seconds = reader.num_samples / SAMPLING_RATE
    except AudioError:
        # Preparing it gives the reason for its rejection.
        return 0.0
    return seconds / 3600 if seconds <= track.num_bytes * 8 / MIN_BIT_RATE else 0.0
