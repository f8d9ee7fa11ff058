"""The report on the closed-form worlds: every statement of the theory with the number it has there.

`numbers` reads what the two sweeps measured, `statements` answers `statements.yaml` from it,
`tables` and `figures` show it, `report` writes theory.md and index.html.
"""
