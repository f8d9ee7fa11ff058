"""The thread that owns the students: one block at a time, the viewers in turn."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from time import strftime
from typing import Any

from experiments.generation.events import NewKeys
from experiments.generation.session import Session
from experiments.generation.student import Student
from experiments.live.protocol import Command, Start, said
from experiments.live.recording import Recorder, Recording
from experiments.live.viewer import Send, Viewer
from experiments.runs.errors import told

log = logging.getLogger(__name__)
WAITING = 64  # commands of a viewer that wait for the block at work; more are refused


class Engine:
    """Makes blocks for all viewers; the methods may be called from any thread.

    Args:
        students: one, or two to be seen side by side.
        sessions: viewers that are served at once; more wait.
        folder: of the recordings.
    """

    def __init__(self, students: Sequence[Student], sessions: int, folder: Path) -> None:
        self.students, self.folder, self._limit = students, folder, sessions
        self._viewers: list[Viewer] = []
        self._changed = threading.Condition()
        self._closing = False
        self._count = 0
        self._thread = threading.Thread(target=self._run, name="engine")

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def close(self) -> None:
        """End all sessions, after the block at work."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def join(self, send: Send) -> Viewer:
        """A new viewer."""
        viewer = Viewer(self.students, send, self._record)
        with self._changed:
            self._viewers.append(viewer)
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """The viewer is gone; its sessions end after the block at work."""
        viewer.gone = True
        with self._changed:
            self._changed.notify()

    def tell(self, viewer: Viewer, command: Command | Recording) -> None:
        """Hand on a command. Raises ValueError if too many wait, but the last keys are kept."""
        with self._changed:
            if len(viewer.commands) >= WAITING:
                if not all(isinstance(each, NewKeys) for each in (command, viewer.commands[-1])):
                    raise ValueError("too many commands at once")
                viewer.commands.pop()  # a key would stay down if its release were refused
            viewer.commands.append(command)
            if self._must_wait(viewer):
                ahead = [each for each in self._viewers if self._must_wait(each)]
                viewer.send(said("queued", position=1 + ahead.index(viewer)))
            self._changed.notify()

    @property
    def viewers(self) -> int:
        """Connections."""
        return len(self._viewers)

    def _run(self) -> None:
        while (turn := self._turn()) is not None:
            viewer, commands = turn
            try:
                if viewer.gone:
                    self._forget(viewer)
                    continue
                for command in commands:
                    self._obey(viewer, command)
                if viewer.has_credit:
                    viewer.make(self.viewers)
            except Exception as error:  # of one viewer's session: the others go on
                log.warning("a session failed: %s", told(error))
                viewer.send(said("error", text=told(error)))
                viewer.end("failed")
        for viewer in list(self._viewers):
            viewer.end("the server was stopped")
            self._forget(viewer)

    def _obey(self, viewer: Viewer, command: Command | Recording) -> None:
        try:
            viewer.obey(command)
        except ValueError as error:
            viewer.send(said("error", text=str(error)))

    def _turn(self) -> tuple[Viewer, list[Any]] | None:
        """The next viewer that something can be done for, and its commands; None at the end."""
        with self._changed:
            while not self._closing:
                for viewer in self._viewers:
                    if viewer.gone or viewer.has_credit or self._heard(viewer):
                        self._viewers.remove(viewer)
                        self._viewers.append(viewer)  # the others come first next time
                        commands, viewer.commands = viewer.commands, []
                        return viewer, commands
                self._changed.wait()
        return None

    def _heard(self, viewer: Viewer) -> bool:
        return bool(viewer.commands) and not self._must_wait(viewer)

    def _must_wait(self, viewer: Viewer) -> bool:
        """Whether it asks for a session while as many are watching as may."""
        asks = any(isinstance(each, Start | Recording) for each in viewer.commands)
        watching = sum(each.watching for each in self._viewers)
        return asks and not viewer.watching and watching >= self._limit

    def _forget(self, viewer: Viewer) -> None:
        viewer.end("left")
        with self._changed:
            self._viewers.remove(viewer)

    def _record(self, header: dict[str, Any]) -> Recorder:
        """A new recording; another server may write into the same folder."""
        while True:
            self._count += 1
            file = self.folder / f"{strftime('%Y%m%d-%H%M%S')}-{self._count}.jsonl"
            try:
                return Recorder(file, header)
            except FileExistsError:
                if not file.is_file():
                    raise


def warm_up(student: Student) -> None:
    """Allocate, compile and record everything before anyone waits for it."""
    blocks = 1 if student.device.type == "cpu" else student.window + 2
    session = Session(student, student.captions[0] if student.captions else "", 0)
    for _ in range(blocks):
        session.next()
