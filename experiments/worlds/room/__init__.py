"""The camera world: a painted room that one walks through, rendered exactly from known cameras."""

SOURCES = {"room": "source"}
JUDGES = {"room": "score"}
