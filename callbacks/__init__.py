"""Lightning callbacks: what happens around a training step, never inside it."""
