"""``python -m experiments bench``: how fast rollout, training, pairs and VAE are, and could be.

    sizes.py      what is measured: the numbers of a scale
    count.py      operations and bytes of a pass, from its shapes
    device.py     the device, and its peak, measured in the same run
    clock.py      the protocol: warm-up, repetitions, quantiles, memory
    rollout.py    few-step generation, in the paper's protocol and end to end
    train.py      a training step of each stage
    pairs.py      one trajectory of each teacher
    vae.py        encoding and decoding a clip
    predict.py    Table 2's Stage-2 columns from the measured times, beside the paper's
    command.py    the command line and the JSON

Weights are random: speed does not depend on their values, and the JSON says so.
"""
