"""Probing: how much of a task can be read linearly, or by one hidden layer, from frozen features.

The public names: `probe` and `run_suite` (suite), `paired_difference` (results), `write_report` and `format_table`
(report), `load_task` and `TASKS` (tasks). They are imported where they are used: importing the package is quick.
"""
