"""The arguments of ``generate`` and ``live``; imports nothing heavy."""

from __future__ import annotations

import argparse

from experiments.runs.folder import home_path


def declare_generate(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``python -m experiments generate``."""
    parser.add_argument("student", help=STUDENT)
    parser.add_argument("--prompt", action="append", default=[], help="may be given several times")
    parser.add_argument("--prompts", type=home_path, metavar="FILE", help="one prompt a line")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    parser.add_argument(
        "--frames",
        type=int,
        help="of the video, any number (those of the --keys, or of a training clip)",
    )
    parser.add_argument(
        "--keys",
        help="that walk, of each block in turn: 'w*10, wl*3, none*2, left' (students with cameras)",
    )
    parser.add_argument("--image", type=home_path, help="the first frame")
    parser.add_argument(
        "--out", type=home_path, help="a folder for videos, or one FILE.mp4 (generated/)"
    )
    declare_students(parser)


def generate(chosen: argparse.Namespace) -> None:
    """Write a video of each prompt."""
    from experiments.live.generate import generate_videos

    generate_videos(chosen)


STUDENT = (
    "a run, a folder with a network, a published checkpoint file, or a hub id (OWNER/NAME, or"
    " OWNER/NAME/FILE)"
)


def declare_students(parser: argparse.ArgumentParser) -> None:
    """The arguments that say how students are opened."""
    parser.add_argument("--steps", type=int, help="sampling steps (as the student was trained)")
    parser.add_argument(
        "--window", type=int, help="latent frames a block attends to (those of a training clip)"
    )
    parser.add_argument(
        "--sinks", type=int, default=0, help="first latent frames that stay in the window (0)"
    )
    parser.add_argument(
        "--sinks-follow",
        action="store_true",
        help="keep the RoPE positions of the sinks next to the window's (absolute positions)",
    )
    parser.add_argument("--scale", help="of a student that no run has trained (wan1.3b)")
    parser.add_argument(
        "--wan",
        type=home_path,
        help="the Wan2.1 folder of its VAE and text encoder (the scale's)",
    )
    parser.add_argument(
        "--blocks", help="latent frames per block of such a student: framewise, chunkwise, a number"
    )


def declare_live(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``python -m experiments live``."""
    parser.add_argument("students", nargs="+", metavar="student", help=f"one or two: {STUDENT}")
    parser.add_argument("--port", type=int, default=0, help="of the page (any free one)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to bind; others than loopback need the token"
    )
    parser.add_argument("--token", help="of other addresses than loopback (a new one)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--sessions", type=int, default=20, help="viewers served at once (20)")
    parser.add_argument(
        "--recordings", type=home_path, default=home_path("sessions"), help="a folder (sessions/)"
    )
    parser.add_argument(
        "--replay", type=home_path, metavar="FILE", help="replay a recording, without a page"
    )
    parser.add_argument(
        "--image", type=home_path, action="append", default=[], help="a first frame; several may be"
    )
    parser.add_argument(
        "--measure",
        type=float,
        metavar="SECONDS",
        help="open no page: measure what viewers get, three times so long, and write a JSON",
    )
    parser.add_argument("--out", type=home_path, help="of --measure: the JSON (live-STUDENT.json)")
    parser.add_argument("--mp4", type=home_path, metavar="OUT", help="of --replay: the video")
    declare_students(parser)


def live(chosen: argparse.Namespace) -> None:
    """Serve the page, or replay a recording."""
    from experiments.live.show import show

    show(chosen)
