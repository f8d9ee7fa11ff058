"""Generating clips: inference networks, batches, conditioning frames and output files."""
