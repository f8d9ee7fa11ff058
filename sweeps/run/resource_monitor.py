"""Resources used by a sweep: wall time, peak memory of all its processes, disk."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psutil

EVERY_S = 2.0
"""A sample reads all memory maps: at twice a second it took a tenth of a core."""
_GIB = 2**30


class Measurement:
    """Samples the memory of this process and its descendants until the end of the ``with`` block.

    Memory is the proportional set size where available (shared pages are counted once), else the
    resident set size.
    """

    def __init__(self, runs_dir: Path) -> None:
        self._runs_dir = runs_dir
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.peak_bytes = 0
        self.wall_s = 0.0

    def __enter__(self) -> Measurement:
        self._begin = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.wall_s = time.perf_counter() - self._begin

    def report(self) -> str:
        files = [path for path in self._runs_dir.rglob("*") if path.is_file()]
        disk = sum(path.lstat().st_size for path in files)
        return (
            f"wall time {self.wall_s:.0f} s, peak memory {self.peak_bytes / _GIB:.2f} GiB,"
            f" disk {disk / _GIB:.2f} GiB in {len(files)} files below {self._runs_dir}"
        )

    def _sample(self) -> None:
        while not self._ended.wait(EVERY_S):
            total = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    memory = process.memory_full_info()
                    total += getattr(memory, "pss", 0) or memory.rss
                except psutil.Error:
                    continue
            self.peak_bytes = max(self.peak_bytes, total)
