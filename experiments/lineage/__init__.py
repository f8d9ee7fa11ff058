"""``python -m experiments explain PATH``: by which runs a result was made.

    subject.py   what lies at a path: a run, a checkpoint, weights, a shard, a clip, a table's cell
    ancestry.py  the runs behind it, with recipe, code, data, device, seed and cost
    tree.py      both as text
    command.py   the command line

Everything is read from run folders; nothing is written or executed.
"""
