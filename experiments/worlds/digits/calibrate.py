"""Measure the constants of World Quality and World Reward into `metrics/calibration.yaml`.

    python -m experiments.worlds.digits.calibrate RUN_OF_PROBE RUN_OF_HELDOUT

Done once, by hand, when the world or the probe's recipe changes. It prints the line for the scale,
since scores name the constants' hash.
"""

import argparse
import json
from pathlib import Path

import yaml

from datamodules.atomic import write_text
from experiments.worlds.digits.calibration import FILE, SHARE, calibrate, digest
from experiments.worlds.digits.corruption import PIXELS
from experiments.worlds.digits.probe_network import ProbeNetwork
from experiments.worlds.digits.reference import Reference
from experiments.worlds.digits.score import read_clips, world_of


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("probe", type=Path, help="run folder of the probe")
    parser.add_argument("heldout", type=Path, help="run folder of the held-out clips")
    parser.add_argument("--clips", type=int, default=1024, help="half measured, half reference")
    parser.add_argument("--out", type=Path, default=FILE)
    chosen = parser.parse_args(arguments)
    real, attributes, manifest = read_clips(chosen.heldout / "shards", 0, chosen.clips)
    half = chosen.clips // 2
    probe = ProbeNetwork.load(chosen.probe / "probe")
    reference = Reference(real[:half], probe, world_of(manifest), manifest["fps"])
    found = calibrate(real[half:], attributes[half:], reference)
    meta = json.loads((chosen.probe / "probe" / "meta.json").read_text())
    found = {
        "made_from": {
            "probe": chosen.probe.name,
            "probe_sha256": meta["sha256"],
            "probe_gate": meta["gate"],
            "heldout": chosen.heldout.name,
            "clips": [half, chosen.clips],
            "real": [0, half],
            "floors": list(PIXELS),
            "bounds_keep": SHARE,
        },
        **found,
    }
    header = "# Written by python -m experiments.worlds.digits.calibrate; scores name its hash.\n"
    write_text(chosen.out, header + yaml.safe_dump(found, sort_keys=False))
    print(f"{chosen.out} is written; put this line into the scale (experiments/scale/*.yaml):")
    print(f'calibration: "{digest(found)}"')


if __name__ == "__main__":
    main()
