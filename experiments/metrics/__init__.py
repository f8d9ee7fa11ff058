"""What the metrics of all worlds share; the metrics themselves are in `experiments/worlds`.

`registry` holds the metrics, `distances` and `motion` the formulas, `statistics` the intervals,
`records` the files.
"""
