"""Recipes and the five verbs that execute them: curate, fit, pairs, sample, score.

Empty on purpose: importing ``experiments.recipe`` must not import torch.
"""
