"""The types of settings, for everything that a recipe can configure. Every package imports it."""
