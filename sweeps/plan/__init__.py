"""The cells of a sweep, the graph of runs behind them, and their costs; without torch."""
