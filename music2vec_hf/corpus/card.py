"""The data set card of a corpus."""

CARD = """---
tags:
- audio
- music
- music2vec
configs:
- config_name: default
  data_files:
{data_files}
---

# Music corpus for self-supervised learning

{hours:.2f} hours of audio: {clips} clips of at most {clip_seconds:g} s from {tracks} tracks, as mono 16-bit FLAC at
16 kHz. Made with `music2vec prepare` of music2vec_hf {version}.

| split | hours | clips | tracks | shards |
| --- | --- | --- | --- | --- |
{splits}

## Columns

| column | meaning |
| --- | --- |
| `audio` | `{{"bytes", "path"}}`: the clip as a FLAC file |
| `track_id` | names the track that the clip is from; clips of one track share it |
| `source` | the file, relative to the folder that was prepared |
| `clip_start` | where in the track the clip begins, in seconds |
| `duration` | length of the clip in seconds |
| `clip_mean`, `clip_std` | mean and population standard deviation of the clip's samples |
| `source_sampling_rate`, `source_channels`, `source_format` | what the file was |

Further columns, if any, come from the manifest.

## What was left out

{rejects}

`rejects.csv` names every file and clip with its reason. The rights in the audio are those of the tracks that it was
made from.
"""


def write_card(summary: dict) -> str:
    """The text of `README.md`, with its YAML header, for the content of `corpus.json`."""
    kinds = [f"- {kind}: {count}" for kind, count in summary["rejects"].items()]
    if summary["remainder_hours"]:
        seconds = summary["remainder_hours"] * 3600
        kinds.append(f"- ends of tracks shorter than {summary['settings']['min_seconds']:g} s: {seconds:.1f} s in all")
    if "not_sampled" in summary:
        hours, seed = summary["settings"]["hours"], summary["settings"]["seed"]
        kinds.append(f"- tracks outside the random sample of {hours:g} hours (seed {seed}): {summary['not_sampled']}")
    return CARD.format(
        data_files="\n".join(f"  - split: {name}\n    path: data/{name}-*" for name in summary["splits"]),
        hours=summary["hours"],
        clips=summary["clips"],
        tracks=summary["tracks"],
        clip_seconds=summary["settings"]["clip_seconds"],
        version=summary["versions"]["music2vec_hf"],
        splits="\n".join(
            f"| {name} | {split['hours']:.2f} | {split['clips']} | {split['tracks']} | {split['shards']} |"
            for name, split in summary["splits"].items()
        ),
        rejects="\n".join(kinds) or "Nothing.",
    )
