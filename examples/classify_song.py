"""Classify a song of any format and length, and print how the answer changes over time.

python examples/classify_song.py MODEL SONG
"""

import sys

from transformers import pipeline

import music2vec_hf  # noqa: F401  registers the model and its pipeline


def main(model: str, song: str) -> None:
    """Print the three best labels of the whole song, then the best one of each window."""
    classify = pipeline("audio-classification", model=model)
    answer = classify(song, top_k=3, return_timeline=True)
    for label in answer["labels"]:
        print(f"{label['label']:<20}{label['score']:.2f}")
    for window in answer["timeline"]:
        best = window["labels"][0]
        print(f"{window['start']:6.1f} to {window['end']:6.1f} s  {best['label']:<20}{best['score']:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
