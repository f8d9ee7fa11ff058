"""Columns of the table that need clips to be looked at: the `world.*` proxies of the tiny world.

`registry` names the metrics, `view` looks at clips once, `quality`, `adherence` and `truth`
compute, `statistics` gives intervals.
"""
