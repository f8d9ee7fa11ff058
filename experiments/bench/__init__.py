"""``python -m experiments bench``: speed of rollout, training, pairs and VAE against the roofline.

    sizes.py      the sizes of a scale
    count.py      operations and bytes of a pass, from its shapes
    device.py     the device, and its peak throughput measured in the same run
    clock.py      the protocol: warm-up, repetitions, quantiles, memory
    rollout.py    few-step generation, in the paper's protocol and end to end
    train.py      a training step of each stage
    pairs.py      one trajectory of each teacher
    vae.py        encoding and decoding a clip
    attention.py  one layer's attention in training, by each kernel
    agreement.py  whether every way to make the calls gives the same clip
    catalogue.py  the rows that there are, most valuable first
    row.py        what a measurement says
    predict.py    Table 2's Stage-2 columns from the measured times, against the paper's
    report.py     the JSON, whole after every row
    worker.py     the process of one row
    isolated.py   starts it, and ends one that hangs
    gpu_check.py  ``make gpu-check``
    command.py    the command line: which rows, in what time

Weights are random: speed does not depend on their values, and the JSON says so.
"""
