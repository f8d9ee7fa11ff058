"""Execution of a sweep: checks, the runner, its display, and the state of every run."""
