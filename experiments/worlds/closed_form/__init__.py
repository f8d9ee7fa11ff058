"""The `law.*` metrics: clips and students beside a law whose densities and flow maps are known.

`view` holds what all share. Of clips: `clips`, `branches`. Of students: `students`, `history`. Of
the law alone: `facts`. All are exact: measured under their own names, no proxies.
"""

SOURCES = {"closed_form": "source"}
JUDGES = {"law": "score"}
