"""Audio for tests: seeded noise at 16 kHz."""

import numpy as np
import pandas


def noise(seconds, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(int(16_000 * seconds))).astype(np.float32)


def write_metadata(path, rows):
    """A metadata file of a folder of audio, of the kind that its name says: .csv, .jsonl or .parquet."""
    table = pandas.DataFrame(rows)
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path)
