"""The types of settings: what a recipe may write under a key. Imported by every other package."""
