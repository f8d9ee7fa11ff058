"""Shard sets of samples in tar files: written, indexed, read, and made by many processes."""
