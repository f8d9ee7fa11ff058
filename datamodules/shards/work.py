"""Making a shard set: by one process or many, today or after an interruption, with one result.

The items of a set are cut into tars of equal numbers of items. Any process makes any tar that is
not finished and that no living process has claimed, so that

- an interrupted run goes on after its last finished tar,
- further processes, on this machine or others, may join at any time and may die at any time,
- the finished set is the same, bit for bit, however many there were.

Where a number of samples is wanted, items are candidates: tars are made from the first on until
those without a gap hold enough, and the set is exactly the first samples that were accepted.

A claim is a lock on a file beside the tar; the kernel drops it when its holder ends.
"""

from __future__ import annotations

import csv
import fcntl
import io
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from datamodules.atomic import flock, write_text
from datamodules.curation.refusal import Refusal, counted
from datamodules.shards.shard_file import Note, tar_path
from datamodules.shards.shard_set import ShardSet

log = logging.getLogger(__name__)
POLL_S = 1.0
TELL_EVERY_S = 0.5  # to whoever watches
SAY_EVERY_S = 10.0  # in the log

Sample = tuple[str, dict[str, np.ndarray], dict[str, Any]]  # key, arrays, info


@dataclass(frozen=True)
class Work:
    """A shard set to be made.

    Args:
        kind: of the shards.
        about: manifest entries; work is gone on with only where they are the same. What items
            there are must follow from them (`split.digest_of`).
        items: what samples are made of, in order.
        make: samples of some consecutive items, in order, and what had to be refused; a function
            of the items and of nothing else.
        items_per_shard: how many items a tar is made of.
        negative: makes the embedding of the negative prompt, [L, D].
        refused: what was refused before any item was looked at closely.
        wanted: samples: exactly the first so many that are accepted; None: all that are.
    """

    kind: str
    about: dict[str, Any]
    items: Sequence[Any]
    make: Callable[[Sequence[Any]], Iterator[Sample | Refusal]]
    items_per_shard: int
    negative: Callable[[], np.ndarray]
    refused: Sequence[Refusal] = ()
    wanted: int | None = None

    def __post_init__(self) -> None:
        if not self.items:
            raise ValueError(f"nothing to curate; refused: {counted(self.refused)}")
        if self.items_per_shard < 1:
            raise ValueError(f"items_per_shard is {self.items_per_shard}; at least 1")

    def items_of(self, number: int) -> Sequence[Any]:
        """The items of one tar."""
        return self.items[number * self.items_per_shard : (number + 1) * self.items_per_shard]

    def count_of(self, number: int) -> int:
        """How many items one tar is made of."""
        return min(self.items_per_shard, len(self.items) - number * self.items_per_shard)

    @property
    def shards(self) -> int:
        """How many tars there are to make."""
        return -(-len(self.items) // self.items_per_shard)


class Folder(Protocol):
    """Where a set is made, and who hears of it; a run's folder is one."""

    path: Path

    def progress(self, done: int, total: int, note: str = "") -> None:
        """How far it is."""

    def record(self, update: Mapping[str, Any]) -> None:
        """What came of it."""


class ShardMaker:
    """One process among those that make a set in `folder/shards`."""

    def __init__(self, work: Work, folder: Folder) -> None:
        """Look at what is there.

        Raises:
            ValueError: tars of another set lie there.
        """
        self._work, self._folder = work, folder
        self._set = ShardSet(folder.path / "shards", work.kind, work.about)
        self._notes: dict[int, Note] = {}
        self._total = len(work.items) if work.wanted is None else work.wanted
        self._look()
        self._before, self._started = self._done(), time.monotonic()
        self._told = self._said = self._started
        if self._before:
            log.info("going on after %d of %d", self._before, self._total)

    def help(self) -> int:
        """Make what nobody else is making; returns how many tars that were.

        Raises:
            ValueError: fewer samples than wanted can come out.
        """
        made = 0
        while self._make_next():
            made += 1
        return made

    def make_all(self) -> None:
        """Return when all tars that are needed are finished, made here or elsewhere.

        Raises:
            ValueError: fewer samples than wanted can come out.
        """
        while not self._set.complete and self._tars() is None:
            if not self.help():
                time.sleep(POLL_S)
            self._look()
            self._say()

    def complete(self) -> None:
        """Make the finished tars a set, and say what was refused."""
        if self._set.complete:
            self._set.tidy()
            return
        tars = self._tars()
        assert tars is not None  # `make_all` has returned
        refused = self._refused(tars)
        self._write_refused(refused)
        self._require_supply()
        notes = self._trimmed(tars)
        counts = dict(sorted(Counter(each.reason for each in refused).items()))
        about = {"candidates": sum(map(self._work.count_of, range(tars))), "refused": counts}
        self._set.seal(notes, self._work.negative(), about)
        count = sum(note["shard"]["count"] for note in notes)
        self._folder.progress(self._total, self._total, self._work.kind)
        self._folder.record({"counters": {self._work.kind: count, "refused": len(refused)}})
        log.info("%d %s; refused: %s", count, self._work.kind, counted(refused))

    def _make_next(self) -> bool:
        """Make the first tar that is missing and that nobody is making; False if there is none.

        The first, also if it was left by somebody who died: else candidates without end would be
        made behind a gap.
        """
        for number in range(self._work.shards):
            if self._look_at(number):
                continue
            if self._set.complete or self._tars() is not None:
                return False
            self._require_supply()
            with self._claimed(number) as mine:
                if mine and not self._set.complete and not self._look_at(number):
                    self._make(number)
                    return True
        return False

    def _tars(self) -> int | None:
        """How many tars, from the first on, make the set; None while one of them is missing."""
        accepted = 0
        for number in range(self._work.shards):
            if self._work.wanted is not None and accepted >= self._work.wanted:
                return number
            if number not in self._notes:
                return None
            accepted += self._notes[number]["shard"]["count"]
        return self._work.shards

    def _require_supply(self) -> None:
        """Stop as soon as fewer samples than wanted can come out."""
        work, accepted = self._work, self._accepted()
        left = len(work.items) - sum(map(work.count_of, self._notes))
        if work.wanted is not None and accepted + left < work.wanted:
            raise ValueError(
                f"curate.count: {work.wanted} {work.kind} wanted; of {len(work.items)} candidates"
                f" {accepted} were accepted and {left} are left (refused:"
                f" {counted(self._refused(work.shards))}). Lower it (data.clips of the scale) or"
                " widen curate.limits or curate.video; or bring more, and remove"
                f" {self._set.folder} to start again"
            )

    def _trimmed(self, tars: int) -> list[Note]:
        """Notes of the set's tars, of which the last is cut to what is wanted; others are removed.

        Many processes may have made more than was needed in the end.
        """
        for number in range(tars, self._work.shards):
            tar_path(self._set.folder, number).unlink(missing_ok=True)
        notes = [self._notes[number] for number in range(tars)]
        made = sum(note["shard"]["count"] for note in notes)
        if self._work.wanted is not None and made > self._work.wanted:
            kept = notes[-1]["shard"]["count"] - (made - self._work.wanted)
            notes[-1] = self._set.shortened(tars - 1, notes[-1], kept)
        return notes

    def _make(self, number: int) -> None:
        shard, remarks = self._set.start(number), []
        try:
            for made in self._work.make(self._work.items_of(number)):
                if isinstance(made, Refusal):
                    remarks.append(vars(made))
                else:
                    shard.write(*made)
                seen = len(shard.keys) + (len(remarks) if self._work.wanted is None else 0)
                self._say(seen)
            if self._set.complete:  # without it: others had made enough meanwhile
                shard.abandon()
            else:
                self._notes[number] = shard.finish(remarks)
        except BaseException:
            shard.abandon()
            raise

    @contextmanager
    def _claimed(self, number: int) -> Iterator[bool]:
        """Whether this process may make tar `number`; any may where the disk has no locks."""
        self._set.folder.mkdir(parents=True, exist_ok=True)
        with open(self._set.folder / f"{number:06d}.claim", "wb") as claim:
            try:
                flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def _look(self) -> None:
        for number in range(self._work.shards):
            self._look_at(number)

    def _look_at(self, number: int) -> bool:
        """Whether a tar is finished."""
        if number not in self._notes:
            note = self._set.finished(number)
            if note is not None:
                self._notes[number] = note
        return number in self._notes

    def _accepted(self) -> int:
        return sum(note["shard"]["count"] for note in self._notes.values())

    def _done(self) -> int:
        """Of items, or of the samples that are wanted."""
        if self._work.wanted is None:
            return sum(map(self._work.count_of, self._notes))
        return min(self._accepted(), self._work.wanted)

    def _refused(self, tars: int) -> list[Refusal]:
        """What was refused before, and in the first `tars` tars."""
        notes = [self._notes[number] for number in range(tars) if number in self._notes]
        later = [Refusal(**remark) for note in notes for remark in note["remarks"]]
        return [*self._work.refused, *later]

    def _say(self, more: int = 0) -> None:
        """How far it is and how long it will take at the rate so far; called as often as may be."""
        now = time.monotonic()
        if now - self._told < TELL_EVERY_S:
            return
        self._told = now
        done, total = min(self._done() + more, self._total), self._total
        made = done - self._before
        seconds = (now - self._started) * (total - done) / max(made, 1)
        note = self._work.kind + (f", {timedelta(seconds=round(seconds))} to go" if made else "")
        self._folder.progress(done, total, note)
        if now - self._said > SAY_EVERY_S:
            self._said = now
            log.info("%d of %d %s", done, total, note)

    def _write_refused(self, refused: Sequence[Refusal]) -> None:
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["name", "reason", "detail"])
        table.writerows((each.name, each.reason, each.detail) for each in refused)
        write_text(self._folder.path / "refused.csv", text.getvalue())
