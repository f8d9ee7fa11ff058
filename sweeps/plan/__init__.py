"""Which cells are wanted, the graph of runs behind them, and what they cost. No torch."""
