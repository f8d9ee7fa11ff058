"""The five verbs, each with ``check(recipe)`` and ``run(recipe, folder)``; and the tools."""
