"""Clips from a student: the rollout in batches, what it is conditioned on, the files it becomes."""
