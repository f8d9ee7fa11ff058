"""What clips and students are scored by; a module each, with ``check(recipe)`` and ``run``."""
