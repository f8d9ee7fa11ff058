"""Creation of a shard set by any number of processes, resumable, with a deterministic result.

The items of a set are divided into shards of equal numbers of items. Any process makes any shard
that is neither finished nor claimed by a live process (`claims.py`), so that

- an interrupted run resumes after its last finished shard,
- further processes, on this machine or others, may join or die at any time,
- the finished set is bit-identical for any number of processes.

Where a number of samples is wanted, items are candidates: shards are made in order until the
contiguous ones hold enough, and the set is exactly the first accepted samples.
"""

from __future__ import annotations

import csv
import io
import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from datamodules.atomic import write_text
from datamodules.curation.refusal import Refusal, counted
from datamodules.shards.claims import Claims
from datamodules.shards.pace import Pace
from datamodules.shards.shard_file import Note, tar_path
from datamodules.shards.shard_set import ShardSet

log = logging.getLogger(__name__)
POLL_S = 1.0
TELL_EVERY_S = 0.5  # between progress reports
SAY_EVERY_S = 10.0  # between log lines
WAITED_S = 60.0  # without a shard left to begin, before the log says who has them

Sample = tuple[str, dict[str, np.ndarray], dict[str, Any]]  # key, arrays, info


@dataclass(frozen=True)
class Work:
    """The plan of a shard set.

    Args:
        kind: of the shards.
        about: manifest entries; a set is resumed only if they are equal. They must determine the
            items (`split.digest_of`).
        items: inputs of the samples, in order.
        make: samples and rejections of some consecutive items, in order; must depend on the items
            alone. It is closed before a shard is finished or abandoned.
        items_per_shard: number of items per shard.
        negative: makes the embedding of the negative prompt, [L, D]; of a set without one, None.
        refused: rejections before any item is processed.
        wanted: number of samples: the first so many accepted ones; None: all accepted ones.
    """

    kind: str
    about: dict[str, Any]
    items: Sequence[Any]
    make: Callable[[Sequence[Any]], Generator[Sample | Refusal, None, None]]
    items_per_shard: int
    negative: Callable[[], np.ndarray | None]
    refused: Sequence[Refusal] = ()
    wanted: int | None = None

    def __post_init__(self) -> None:
        if not self.items:
            raise ValueError(f"nothing to curate; refused: {counted(self.refused)}")
        if self.items_per_shard < 1:
            raise ValueError(f"items_per_shard is {self.items_per_shard}; at least 1")

    def items_of(self, number: int) -> Sequence[Any]:
        """The items of one shard."""
        return self.items[number * self.items_per_shard : (number + 1) * self.items_per_shard]

    def count_of(self, number: int) -> int:
        """Number of items of one shard."""
        return min(self.items_per_shard, len(self.items) - number * self.items_per_shard)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-len(self.items) // self.items_per_shard)


class Folder(Protocol):
    """Output folder of a set, with progress and record; implemented by `RunFolder`."""

    path: Path

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Report progress."""

    def record(self, update: Mapping[str, Any]) -> None:
        """Store facts about the result."""


class ShardMaker:
    """One of the processes that make a set in `folder/shards`."""

    def __init__(self, work: Work, folder: Folder) -> None:
        """Read the existing shards.

        Raises:
            ValueError: the folder holds shards of another set.
        """
        self._work, self._folder = work, folder
        self._set = ShardSet(folder.path / "shards", work.kind, work.about)
        self._claims = Claims(self._set.folder)
        self._notes: dict[int, Note] = {}
        self._total = len(work.items) if work.wanted is None else work.wanted
        self._look()
        self._before, self._started = self._done(), time.monotonic()
        self._told = self._said = self._started
        self._pace = Pace(self._before, self._started)
        if self._before:
            log.info("going on after %d of %d", self._before, self._total)

    def help(self) -> int:
        """Make shards that no other process has claimed; returns their number.

        Raises:
            ValueError: fewer samples than wanted can come out.
        """
        made = 0
        while self._make_next():
            made += 1
        return made

    def make_all(self) -> None:
        """Return when all needed shards are finished, here or by other processes.

        Raises:
            ValueError: fewer samples than wanted can come out.
        """
        idle_since = time.monotonic()
        while not self._set.complete and self._tars() is None:
            if self.help():
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > WAITED_S:
                idle_since = time.monotonic()
                missing = [n for n in range(self._work.shards) if n not in self._notes]
                log.info("waiting for %s", ", ".join(self._claims.holders(missing)))
            else:
                time.sleep(POLL_S)
            self._look()
            self._say()

    def complete(self) -> None:
        """Complete the set from the finished shards, and log the rejections."""
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
        """Make the first missing, unclaimed shard; False if there is none.

        Always the first, also one abandoned by a dead process: otherwise any number of candidates
        would be processed behind a gap.
        """
        for number in range(self._work.shards):
            if self._look_at(number):
                continue
            if self._set.complete or self._tars() is not None:
                return False
            self._require_supply()
            with self._claims.take(number) as mine:
                if mine and not self._set.complete and not self._look_at(number):
                    self._make(number)
                    return True
        return False

    def _tars(self) -> int | None:
        """Number of leading shards that form the set; None while one of them is missing."""
        accepted = 0
        for number in range(self._work.shards):
            if self._work.wanted is not None and accepted >= self._work.wanted:
                return number
            if number not in self._notes:
                return None
            accepted += self._notes[number]["shard"]["count"]
        return self._work.shards

    def _require_supply(self) -> None:
        """Abort as soon as too few candidates remain for the wanted samples."""
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
        """Notes of the set's shards, the last one truncated to the wanted count; removes others.

        Several processes may have made more shards than needed.
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
            with closing(self._work.make(self._work.items_of(number))) as samples:
                for made in samples:
                    if isinstance(made, Refusal):
                        remarks.append(vars(made))
                    else:
                        shard.write(*made)
                    seen = len(shard.keys) + (len(remarks) if self._work.wanted is None else 0)
                    self._pace.arrived(self._done() + seen, time.monotonic())
                    self._say(seen)
            if self._set.complete:  # not needed: others had made enough meanwhile
                shard.abandon()
            else:
                self._notes[number] = shard.finish(remarks)
        except BaseException:
            shard.abandon()
            raise

    def _look(self) -> None:
        for number in range(self._work.shards):
            self._look_at(number)

    def _look_at(self, number: int) -> bool:
        """Whether a shard is finished."""
        if number not in self._notes:
            note = self._set.finished(number)
            if note is not None:
                self._notes[number] = note
        return number in self._notes

    def _accepted(self) -> int:
        return sum(note["shard"]["count"] for note in self._notes.values())

    def _done(self) -> int:
        """Progress in items, or in wanted samples."""
        if self._work.wanted is None:
            return sum(map(self._work.count_of, self._notes))
        return min(self._accepted(), self._work.wanted)

    def _refused(self, tars: int) -> list[Refusal]:
        """Rejections before processing, and in the first `tars` shards."""
        notes = [self._notes[number] for number in range(tars) if number in self._notes]
        later = [Refusal(**remark) for note in notes for remark in note["remarks"]]
        return [*self._work.refused, *later]

    def _say(self, more: int = 0) -> None:
        """Report progress and the estimated time left; rate-limited."""
        now = time.monotonic()
        if now - self._told < TELL_EVERY_S:
            return
        self._told = now
        done, total = min(self._done() + more, self._total), self._total
        each = self._pace.seconds_each(self._done() + more, now)
        left = "" if each is None else f", {timedelta(seconds=round(each * (total - done)))} to go"
        note = self._work.kind + left
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
