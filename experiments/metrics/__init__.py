"""Columns of the table that need clips to be looked at: the `world.*` proxies of the tiny world.

`registry` names the metrics, `view` looks at clips once, `world` computes, `statistics` gives
intervals.
"""
