"""The `law.*` metrics: clips and students against a law whose densities and flow maps are known.

`context` holds what all share. On clips: `samples`, `branches`. On students: `students`, `history`.
On the law alone: `facts`. All metrics are exact, none is a proxy.
"""

SOURCES = {"closed_form": "source"}
JUDGES = {"law": "score"}
