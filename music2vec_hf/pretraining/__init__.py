"""Pretraining: recipes, schedules, the loop, checkpoints and monitors."""
