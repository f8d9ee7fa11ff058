"""Networks that are exact: velocities of laws known in closed form."""
