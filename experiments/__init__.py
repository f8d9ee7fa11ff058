"""Recipes, the five verbs that execute them, and the worlds they are executed in.

    runs/         what a run is: recipe, settings, folder, lock
    checkpoints/  networks in folders: found, loaded, saved, imported and exported
    metrics/      what every world's metrics share
    launch/       how a run is executed: processes, strategies, memory
    generation/   clips from a student, and the files they become
    worlds/       where clips come from and what judges them: digits, closed form, Wan
    bench/        speed and memory beside a roofline
    verbs/        curate, fit, pairs, sample, score; and the tools

Empty on purpose: importing ``experiments.runs`` must not import torch.
"""
