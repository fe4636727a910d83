"""The data set card that goes with every synthetic corpus."""


def corpus_card(summary: dict) -> str:
    """Write the card of a corpus as Markdown with a Hugging Face header.

    Args:
        summary: what `synthesize_corpus` returns.
    """
    command = f"music2vec synth OUT --clips {summary['num_clips']} --seed {summary['seed']}"
    if summary["clip_seconds"] != 10.0:
        command += f" --clip-seconds {summary['clip_seconds']:g}"
    splits = ", ".join(f"{count} {split}" for split, count in summary["splits"].items())
    hours = summary["num_clips"] * summary["clip_seconds"] / 3600
    return _CARD.format(
        command=command,
        splits=splits,
        hours=hours,
        genres=", ".join(summary["genres"]),
        tags=", ".join(summary["tags"]),
        **{name: summary[name] for name in ("num_clips", "clip_seconds", "seed", "generator_version")},
    )


_CARD = """---
license: cc0-1.0
pretty_name: Synthetic music of music2vec_hf
task_categories:
- audio-classification
tags:
- music
- synthetic
size_categories:
- n<100K
configs:
- config_name: default
  data_files:
  - split: train
    path: audio/train/*
  - split: validation
    path: audio/validation/*
  - split: test
    path: audio/test/*
---

# Synthetic music of music2vec_hf

**The audio is synthetic**: a program wrote the scores and a small synthesiser played them. Nobody performed, composed
or listened. **The labels are parameters of that program, not human ratings**: `arousal` and `valence` are proxies
computed from tempo, density, dynamics, articulation, brightness, mode and register.

{num_clips} clips of {clip_seconds:g} s ({hours:.1f} hours): {splits}. Mono FLAC, 16 kHz, 16 bit.

## How it was made

```
{command}
```

Generator version {generator_version}. Equal versions and seeds give equal files. Each clip is a composition of its
own, so the splits share none; they do share the rules by which the music is made.

## Labels (metadata.csv)

| column | meaning |
| --- | --- |
| file_name | audio file, relative to this folder |
| split | train, validation or test |
| track_id, composition_id | names of the clip and of the piece |
| genre | {genres} |
| key | 24 keys, from "C major" to "B minor", with flats |
| arousal, valence | proxies in (-1, 1) |
| tags | joined by ";": {tags} |
| duration | seconds |

Genres and keys are balanced and independent of each other. Genre lies in rhythm and harmony: all genres draw their
instruments from the same pools. No label depends on the absolute level of the audio.

## What it is for, and what it is not for

It shows that a chain of pretraining and probing works, offline and in minutes, and it serves tests. Do not use it to
claim anything about real music, about listeners' emotions or about the genres that its rules caricature, and do not
compare scores on it with scores on real data sets.

## Licence

CC0-1.0: audio and labels are dedicated to the public domain.
"""
