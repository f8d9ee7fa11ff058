"""What a run is: a recipe with everything resolved, its folder, and who works in it."""
