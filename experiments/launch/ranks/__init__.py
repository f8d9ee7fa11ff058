"""The ranks of one run: their topology, and how they are launched and stopped."""
