"""``live``: the page with one student, or two side by side; or a recording, without a page."""

from __future__ import annotations

import argparse
import asyncio
import logging
import webbrowser
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from socket import gethostname
from typing import Any

import numpy as np

from datamodules.cameras import ARROWS, MEANINGS
from experiments.generation.mp4 import write_mp4
from experiments.generation.session import Session
from experiments.generation.student import Picture, Student
from experiments.live.access import is_loopback, new_token
from experiments.live.engine import Engine, warm_up
from experiments.live.generate import image_of
from experiments.live.protocol import KEY_BITS
from experiments.live.recording import Recording, digest_of, read_recording
from experiments.live.server import application, serve
from experiments.live.students import open_student
from experiments.runs.provenance import revision

log = logging.getLogger(__name__)


def show(chosen: argparse.Namespace) -> None:
    """Serve the page, or replay.

    Raises:
        FileNotFoundError, ValueError: a student, recording or setting that does not fit.
        OSError: the port is taken.
    """
    if chosen.mp4 and not chosen.replay:
        raise ValueError("--mp4: is of a recording; give --replay FILE as well")
    if len(chosen.students) > 2:
        raise ValueError(f"{len(chosen.students)} students; the page shows one, or two")
    if chosen.measure is not None and not 1 <= chosen.measure <= 3600:
        raise ValueError(f"--measure: {chosen.measure:g} s; give 1 to 3600, such as 20")
    if chosen.out and not chosen.measure:
        raise ValueError("--out: is of --measure; give --measure SECONDS as well")
    if chosen.sessions < 1 or not 0 <= chosen.port < 65536:
        raise ValueError("--sessions must be at least 1, --port from 0 to 65535")
    recording = read_recording(chosen.replay) if chosen.replay else None
    students = [open_student(where, chosen) for where in chosen.students]
    given = tuple(Picture("", image_of(file, students[0])) for file in chosen.image)
    students[0] = replace(students[0], pictures=given + students[0].pictures)
    if recording:
        replay(recording, students[0], chosen.mp4)
    elif chosen.measure:
        _measure(students, chosen)
    else:
        _serve(students, chosen)


def replay(recording: Recording, student: Student, mp4: Path | None) -> None:
    """Make a recording's clip anew and compare every frame; write it as a video if asked to.

    Raises:
        ValueError: a frame differs, though it is the student that was recorded; or another context
            was recorded.
    """
    recorded = recording.students[0]
    student.require_context(recorded)
    session = Session(
        student,
        recording.prompt,
        recording.seed,
        recording.steps,
        recording.picture,
        recording.start,
        recording.events,
    )
    different: list[int] = []
    made = _replayed(session, recording, different)
    if mp4:
        write_mp4(mp4, made, student.fps)
        log.info("%s: %d frames", mp4, recording.frames)
    else:
        for _ in made:
            pass
    if not different:
        log.info("equal: all %d frames", recording.frames)
    elif recorded.get("identity") != student.identity:
        log.info(
            "%s was recorded, this is %s: the frames differ", recorded.get("name"), student.name
        )
    else:
        raise ValueError(
            f"different from frame {different[0]} on ({len(different)} of {recording.frames});"
            f" it was recorded by code {recording.revision}, this is {revision()}, on"
            f" {recording.machine}: other devices, threads or versions of torch round differently"
        )


def _replayed(session: Session, recording: Recording, different: list[int]) -> Iterator[np.ndarray]:
    """The frames of a recording; numbers of those that differ are appended to ``different``."""
    number = 0
    while number < recording.frames:
        for frame in session.next().frames[: recording.frames - number]:
            if recording.digests.get((0, number)) != digest_of(frame):
                different.append(number)
            number += 1
            yield frame


def _measure(students: list[Student], chosen: argparse.Namespace) -> None:
    from experiments.live.measure import measure

    warm_up(students[0])
    file = chosen.out or Path(f"live-{students[0].name}.json")
    measure(students[:1], about(students), chosen.measure, chosen.recordings, file)


def _serve(students: list[Student], chosen: argparse.Namespace) -> None:
    _require_alike(students)
    for student in students:
        warm_up(student)
    token = None if is_loopback(chosen.host) else chosen.token or new_token()
    engine = Engine(students, chosen.sessions, chosen.recordings)
    app = application(engine, about(students), chosen.host, token)

    def ready(port: int) -> None:
        everywhere = chosen.host in ("0.0.0.0", "::")
        host = gethostname() if everywhere else chosen.host
        at = f"[{host}]" if ":" in host else host
        url = f"http://{at}:{port}/" + (f"?token={token}" if token else "")
        print(f"{', '.join(each.name for each in students)}: {url} (Ctrl-C ends it)", flush=True)
        if chosen.open:
            webbrowser.open(url)

    engine.start()
    try:
        asyncio.run(serve(app, chosen.host, chosen.port, ready))
    finally:
        engine.close()


def _require_alike(students: list[Student]) -> None:
    """Two students are shown frame by frame."""
    for key in ("blocks", "fps", "size", "camera"):
        values = [getattr(student, key) for student in students]
        if any(value != values[0] for value in values):
            raise ValueError(f"the students differ in {key}: {values}; they cannot be side by side")


def about(students: list[Student]) -> dict[str, Any]:
    """What the page is told."""
    first = students[0]
    return {
        "students": [{"name": each.name, "steps": each.steps} for each in students],
        "captions": list(first.captions),
        "pictures": [each.caption for each in first.pictures],
        "fps": first.fps,
        "height": first.size[0],
        "width": first.size[1],
        "device": str(first.device),
        "keys": key_hints(first),
    }


def key_hints(student: Student) -> list[dict[str, Any]]:
    """Keys of a student's camera, as a browser names them; none without a camera.

    ``bit`` is that of `protocol.HEADER`, ``names`` are of KeyboardEvent.key in small letters.
    """
    arrows = {key: f"arrow{name}" for name, key in ARROWS.items()}
    return [
        {"key": key, "bit": KEY_BITS[key], "does": MEANINGS[key],
         "names": [key, *([arrows[key]] if key in arrows else [])]}
        for key in (student.camera.keys if student.camera else ())
    ]  # fmt: skip
