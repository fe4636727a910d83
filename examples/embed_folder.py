"""Embed every audio file of a folder and name each track's nearest neighbour.

python examples/embed_folder.py MODEL FOLDER
"""

import sys

import numpy as np

from music2vec_hf import embed
from music2vec_hf.audio.reading import find_audio_files


def main(model: str, folder: str) -> None:
    """Print one line per track: the track and its neighbour by cosine similarity of the last layer."""
    paths = find_audio_files(folder)
    vectors = embed(model, paths)[:, -1]  # [tracks, channels]
    vectors -= vectors.mean(0)  # what all tracks share says nothing about any of them
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T - 2 * np.eye(len(paths))
    for path, row in zip(paths, similarity, strict=True):
        print(f"{path.name}  ->  {paths[row.argmax()].name}  ({row.max():.2f})")


if __name__ == "__main__":
    main(*sys.argv[1:])
