"""What one viewer watches: one session or two side by side, made block by block on credit.

Nothing is made more than `LEAD` blocks before the page has shown it, so no queue can grow, a tab in
the background costs nothing, and a change is never behind stale frames.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image

from experiments.generation.events import NewKeys, NewPrompt, NewSteps
from experiments.generation.session import Block, Session
from experiments.generation.student import Student
from experiments.live.meters import memory_now
from experiments.live.protocol import (
    Command,
    Pause,
    Resume,
    Shown,
    Start,
    Stop,
    packed,
    said,
)
from experiments.live.recording import Recorder, Recording, as_png, digest_of
from experiments.runs.provenance import revision

LEAD = 2
QUALITY = 92  # of JPEG
Send = Callable[[str | bytes], None]


class Viewer:
    """A connection's sessions; used by the engine's thread alone, but for ``commands``.

    Args:
        students: the students there are.
        send: hands a message to the connection, from any thread.
        recorder: opens the file of a new recording.
    """

    def __init__(
        self,
        students: Sequence[Student],
        send: Send,
        recorder: Callable[[dict[str, Any]], Recorder],
    ) -> None:
        self.students, self.send, self._open = students, send, recorder
        self.commands: list[Command | Recording] = []
        self.gone = False
        self.sessions: list[Session] = []
        self._reset()

    def _reset(self) -> None:
        self._recorder: Recorder | None = None
        self._recording: Recording | None = None
        self._paused = False
        self._ends: list[int] = []  # the last frame of each block that was made and not yet shown
        self._different = ""
        self._began = self._told = perf_counter()
        self._first_s: float | None = None

    @property
    def watching(self) -> bool:
        """Whether it has a session."""
        return bool(self.sessions)

    @property
    def has_credit(self) -> bool:
        """Whether the next block may be made."""
        return self.watching and not self._paused and len(self._ends) < LEAD

    def obey(self, command: Command | Recording) -> None:
        """Do what the page asked for. Raises ValueError if that is not possible."""
        match command:
            case Start():
                self._start(command)
            case Recording():
                self._replay(command)
            case Stop():
                self.end("stopped")
            case Pause() | Resume():
                self._paused = isinstance(command, Pause)
            case Shown():
                self._ends = [end for end in self._ends if end > command.frame]
            case NewPrompt() | NewSteps() | NewKeys():
                if not self.watching or self._recording:
                    raise ValueError(
                        "start a session first; one that is replayed cannot be changed"
                    )
                for session in self.sessions:
                    session.request(command)
                if isinstance(command, NewPrompt):
                    self._warn_of(command.text)

    def make(self, viewers: int) -> None:
        """Make a block in every lane, and send its frames."""
        blocks = []
        for lane, session in enumerate(self.sessions):
            if self.gone:
                return
            block = session.next()
            self._send_block(lane, block)
            blocks.append(block)
        self._ends.append(blocks[0].first + len(blocks[0].frames) - 1)
        if self._first_s is None:
            self._first_s = perf_counter() - self._began
        if perf_counter() - self._told >= 1 or blocks[0].index == 0:
            self._tell(blocks, viewers)
        if self._recording and self._ends[-1] + 1 >= self._recording.frames:
            self.end("replayed")

    def end(self, reason: str) -> None:
        """End the sessions; their memory is free again."""
        recorder, recording, watched = self._recorder, self._recording, self.watching
        text = ""
        if recording and reason == "replayed":
            text = self._different or f"equal: all {recording.frames} frames"
        self.sessions = []
        if recorder:
            recorder.close()
        self._recorder = self._recording = None
        if watched:
            name = recorder.file.stem if recorder else ""
            self.send(said("ended", reason=reason, recording=name, text=text))

    def _start(self, start: Start) -> None:
        self.end("restarted")
        if start.lanes > len(self.students):
            raise ValueError(f"start.lanes: {start.lanes}, but there are {len(self.students)}")
        students, pictures = self.students[: start.lanes], self.students[0].pictures
        if start.picture is not None and start.picture >= len(pictures):
            raise ValueError(f"start.picture: {start.picture}, but there are {len(pictures)}")
        picture = None if start.picture is None else pictures[start.picture]
        first = (picture.frame, picture.start) if picture else (None, None)
        steps = start.steps or students[0].steps  # one number: a recording has no other
        self._begin([Session(each, start.prompt, start.seed, steps, *first) for each in students])
        if start.record:
            self._recorder = self._open(header(self.sessions))
        self.send(said("started", lanes=start.lanes, seed=start.seed))
        self._warn_of(start.prompt)

    def _warn_of(self, prompt: str) -> None:
        """Tell the page of a prompt that is longer than a student's text encoder reads."""
        cuts = {session.student.beyond([prompt]): None for session in self.sessions}
        for cut in filter(None, cuts):
            self.send(said("warning", text=cut))

    def _replay(self, recording: Recording) -> None:
        self.end("restarted")
        for old, now in zip(recording.students, self.students, strict=False):
            now.require_context(old)
        lanes = max(1, min(len(recording.students), len(self.students)))
        self._begin(
            [
                Session(each, recording.prompt, recording.seed, recording.steps,
                        recording.picture, recording.start, recording.events)
                for each in self.students[:lanes]
            ]
        )  # fmt: skip
        self._recording = recording
        for old, now in zip(recording.students, self.students, strict=False):
            if old.get("identity") != now.identity:
                self._different = f"recorded by {old.get('name')}, which is another student"
        self.send(said("started", lanes=lanes, seed=recording.seed))

    def _begin(self, sessions: list[Session]) -> None:
        self._reset()
        self.sessions = sessions

    def _send_block(self, lane: int, block: Block) -> None:
        digests = [digest_of(frame) for frame in block.frames]
        if self._recorder:
            self._recorder.add(lane, block, digests)
        for number, frame, digest in zip(
            range(block.first, block.first + len(digests)), block.frames, digests, strict=True
        ):
            if self._recording and not self._different:
                self._compare(lane, number, digest)
            image = jpeg(frame)
            times = block.denoise_s, block.decode_s
            self.send(packed(lane, number, block.index, block.keys, times, digest, image))

    def _compare(self, lane: int, number: int, digest: str) -> None:
        if self._recording.digests.get((lane, number), digest) != digest:
            self._different = f"different from frame {number} of lane {lane} on"

    def _tell(self, blocks: Sequence[Block], viewers: int) -> None:
        self._told = perf_counter()
        lanes = [
            {"steps": block.steps, "prompt": block.prompt, "block_ms": 1000 * block.denoise_s,
             "decode_ms": 1000 * block.decode_s}
            for block in blocks
        ]  # fmt: skip
        self.send(
            said("stats", lanes=lanes, viewers=viewers, ahead=len(self._ends),
                 first_s=self._first_s, block=blocks[0].index,
                 memory=memory_now(self.students[0].device))
        )  # fmt: skip


def header(sessions: Sequence[Session]) -> dict[str, Any]:
    """What a recording begins with."""
    import torch

    first, students = sessions[0], [session.student for session in sessions]
    told = ("name", "identity", "blocks", "window", "sinks", "sinks_follow", "precision")
    return {
        "students": [
            {key: getattr(each, key) for key in told}
            | ({"camera": each.camera.as_dict()} if each.camera else {})
            for each in students
        ],
        "prompt": first.prompt,
        "seed": first.seed,
        "steps": first.steps,
        "picture": None if first.image is None else b64encode(as_png(first.image)).decode(),
        "start": first.start,
        "revision": revision(),
        "machine": {
            "device": str(first.student.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
    }


def jpeg(frame: np.ndarray) -> bytes:
    """A frame uint8 ``[H, W, 1 or 3]``, compressed."""
    image = Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame)
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=QUALITY, subsampling=0)
        return file.getvalue()
