"""Sweeps: which cells are wanted, the graph of runs behind them, and running it.

Imports ``experiments.recipe`` and ``experiments.folder`` only, hence no torch: planning starts in a
blink and works on a login node. Workers (``sweeps.worker``) are processes of their own.
"""
