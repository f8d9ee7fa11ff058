"""``python -m experiments bench``: speed of rollout, training, pairs and VAE against the roofline.

    sizes.py      the sizes of a scale
    count.py      operations and bytes of a pass, from its shapes
    device.py     the device, and its peak throughput measured in the same run
    clock.py      the protocol: warm-up, repetitions, quantiles, memory
    rollout.py    few-step generation, in the paper's protocol and end to end
    train.py      a training step of each stage
    pairs.py      one trajectory of each teacher
    vae.py        encoding and decoding a clip
    predict.py    Table 2's Stage-2 columns from the measured times, against the paper's
    command.py    the command line and the JSON

Weights are random: speed does not depend on their values, and the JSON says so.
"""
