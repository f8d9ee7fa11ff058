"""What a run is: a recipe with everything resolved, its folder, and its lock."""
