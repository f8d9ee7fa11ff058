"""Shard sets of samples in tar files: writing, index, reading, and parallel creation."""
