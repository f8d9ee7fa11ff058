"""The tiny world: moving handwritten digits, the probe (evaluator network), and the scores."""

SOURCES = {"moving_digits": "source"}
JUDGES = {"probe": "score"}
