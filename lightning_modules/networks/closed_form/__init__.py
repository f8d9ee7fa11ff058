"""Exact networks: velocities of distributions known in closed form."""

NETWORKS = {"ClosedForm": "network.ClosedForm"}
