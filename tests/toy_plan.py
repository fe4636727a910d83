"""A batch plan of five crops of one second: a number that no epoch of the toy corpora is a multiple of."""

from music2vec_hf.corpus.crops import BatchPlan

PLAN = BatchPlan(
    seed=1,
    rows_per_update=5,
    num_samples=16_000,
    num_frames=49,
    mask_group_rows=3,
    mask_time_prob=0.65,
    mask_time_length=5,
)
