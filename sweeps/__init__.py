"""Sweeps: the cells of a table, the runs behind them, their execution, and the report.

    plan/       the cells of a sweep's YAML, the graph of runs, costs
    executors/  where runs are executed: this machine's processes, or a Slurm cluster
    run/        the runner, and the state of every run
    report/     results, tables, claims, figures, the page

Planning imports no torch: it starts immediately and works on a login node.
"""
