"""Estimates of the memory that a launch needs, before anything is loaded."""
