"""The memory that a launch needs, counted before anything is loaded."""
