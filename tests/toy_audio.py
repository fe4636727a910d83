"""Audio for tests: seeded noise at 16 kHz."""

import numpy as np


def noise(seconds, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(int(16_000 * seconds))).astype(np.float32)
