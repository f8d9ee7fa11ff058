"""How a run is executed: devices, processes, strategies, and the memory that they have."""
