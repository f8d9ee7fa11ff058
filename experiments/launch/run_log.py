"""A run's log: every message of its process goes to a file, and short ones to the console."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.runs.errors import told

LOG_ONLY = {"log_only": True}
"""``extra`` of a message that the console does not show."""


class _File(logging.FileHandler):
    """A log that cannot be written (a full disk) is said once, and stops nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self._failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            error.filename = self.baseFilename
            print(f"the log is incomplete: {told(error)}", file=sys.stderr)

    def close(self) -> None:
        """Also where the rest of it does not fit on the disk."""
        try:
            super().close()
        except OSError:
            self.handleError(logging.makeLogRecord({}))


def log_to_console() -> None:
    """Show messages, but no tracebacks: these are in the run's log, with what torch says of itself
    when it ends.
    """
    console = logging.StreamHandler()
    console.addFilter(_is_for_the_user)
    logging.basicConfig(format="%(message)s", level=logging.INFO, handlers=[console])


def _is_for_the_user(record: logging.LogRecord) -> bool:
    of_torch = record.name.startswith("torch.") and record.levelno < logging.WARNING
    return not (record.exc_info or of_torch or getattr(record, "log_only", False))


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Appends all log messages to a file, including those of loggers that do not propagate."""
    handler = _File(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    before = {"": (root.level, root.handlers[:])}
    for name, logger in list(logging.Logger.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and (not logger.propagate or logger.handlers):
            before[name] = (logger.level, logger.handlers[:])
    root.setLevel(min(root.level or logging.INFO, logging.INFO))
    for name in before:
        if not name or not logging.getLogger(name).propagate:
            logging.getLogger(name).addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for name, (level, handlers) in before.items():
            logging.getLogger(name).setLevel(level)
            logging.getLogger(name).handlers[:] = handlers
        handler.close()
