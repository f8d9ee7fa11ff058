"""The tiny world: handwritten digits that move, the probe that reads them, and its scores."""

SOURCES = {"moving_digits": "source"}
JUDGES = {"probe": "score"}
