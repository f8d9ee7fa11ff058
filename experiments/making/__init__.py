"""What the verbs that make shard sets share: generation, encoding, and dividing the work."""
