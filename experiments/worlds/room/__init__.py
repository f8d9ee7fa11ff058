"""The camera world: a painted room that one walks through, rendered exactly from known cameras."""

SOURCES: dict[str, str] = {}
JUDGES: dict[str, str] = {}
