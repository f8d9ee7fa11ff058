"""A student at work: a video in one command, and a live page (docs/live.md)."""
