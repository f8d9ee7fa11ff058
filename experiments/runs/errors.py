"""What a user is told of an error: one line with the file or key, what is wrong, and the cure.

Every command, worker, rank and job ends here. Messages that our code raises on purpose are shown
as they are. Errors of the system and of libraries get the file and the cure. Anything else is a bug
of ours, and is called one. The traceback is in the run's log; where there is none yet, the
environment variable ``EXPERIMENTS_TRACEBACK`` shows it.
"""

from __future__ import annotations

import dis
import errno
import functools
import os
import re
import select
import subprocess
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from experiments.runs.system_errors import explain_system_error

SHOW = "EXPERIMENTS_TRACEBACK"
INTERRUPTED = 130
_ROOT = Path(__file__).parents[2]
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
_MEANT = (ValueError, OSError, RuntimeError)
"""What our code raises for users; others are mistakes, whoever raises them."""
_UNREADABLE = {
    "EOFError", "UnicodeDecodeError", "_csv.Error", "_lzma.LZMAError", "_pickle.UnpicklingError",
    "av.FFmpegError", "gzip.BadGzipFile", "json.JSONDecodeError", "lmdb.Error",
    "omegaconf.OmegaConfBaseException", "PIL.UnidentifiedImageError", "safetensors.SafetensorError",
    "safetensors_rust.SafetensorError", "tarfile.TarError", "xml.ParseError", "yaml.YAMLError",
    "zipfile.BadZipFile", "zlib.error",
}  # fmt: skip
"""Errors of libraries that read files, by package and name."""
_LOOP = re.compile(r"Symlink loop from '(.+)'")
_READ_AGAIN = "damaged, cut off, or not the kind of file that belongs there"
_OF_TORCH = (
    (r"out of memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED",
     "not enough memory: take a smaller batch, set launch.batch_per_device or"
     " launch.gradient_checkpointing=full, or use more devices"),
    (r"loading state_dict|size mismatch for",
     "weights and the network's config do not belong together: take both from one folder"),
    (r"shapes? cannot be multiplied|must match the size|shape .* is invalid|size of tensor"
     r"|expected input|to have \d+ channels|Sizes of tensors|stack expects each tensor",
     "shapes that do not fit each other: the data, clip_shape and the networks must be made for"
     " each other"),
    (r"PytorchStreamReader|unexpected pos|central directory|invalid header or archive",
     f"{_READ_AGAIN}; fetch or write it again"),
    (r"DataLoader worker|shared memory|/dev/shm|torch_shm_manager",
     "a process of the data loader ended: give the machine more memory, or set launch.workers"
     " lower (0 reads in the training process)"),
    (r"CUDA error|CUDA driver|cuDNN|NCCL|No CUDA GPUs",
     "the GPU failed: see nvidia-smi and dmesg; the same command resumes the run"),
)  # fmt: skip
"""What torch says in a RuntimeError, and the cure."""


def told(error: BaseException) -> str:
    """The line for the user (several only where our own message has several), with its notes."""
    return " ".join([_told(error), *(f"({note})" for note in getattr(error, "__notes__", ()))])


def _told(error: BaseException) -> str:
    if _on_purpose(error) and not isinstance(error, OSError | MemoryError):
        return str(error)
    if isinstance(error, OSError):
        if error.errno is None:
            return str(error)
        return explain_system_error(error, error.filename or file_at_hand(error))
    if loop := _LOOP.match(str(error)):  # pathlib's before Python 3.13
        return explain_system_error(OSError(errno.ELOOP, ""), loop[1])
    what = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
    if cure := _known(error):
        at = file_at_hand(error)
        return f"{at or _place(error)}: {cure} ({what})"
    return (
        f"{_place(error)}: {what}. This is a bug of the program, not of your input: please report"
        " it with its traceback"
    )


def report(error: BaseException) -> str:
    """The traceback, ending with the line for the user: what a failed run keeps."""
    text, line = "".join(traceback.format_exception(error)).rstrip(), told(error)
    return text if text.endswith(line) else f"{text}\n\n{line}"


def fail(error: BaseException, status: int, log: Path | None = None) -> int:
    """Print an error for the user; returns ``status``.

    Args:
        log: where its traceback is.
    """
    if os.environ.get(SHOW):
        traceback.print_exception(error)
    print(f"error: {told(error)}", file=sys.stderr)
    if log is not None:
        print(f"the log: {log}", file=sys.stderr)
    elif not _on_purpose(error) and not os.environ.get(SHOW):
        print(f"its traceback: set {SHOW}=1 and repeat the command", file=sys.stderr)
    return status


def answered(main: Callable[..., int]) -> Callable[..., int]:
    """A command line's ``main`` that ends without a traceback, whatever happens.

    The exit status is that of ``main``; 2 for an error, 130 when interrupted, and 1 when the reader
    of stdout is gone (``| head``).
    """

    @functools.wraps(main)
    def answering(*arguments: Any, **named: Any) -> int:
        try:
            try:
                return main(*arguments, **named)
            finally:
                sys.stdout.flush()
        except KeyboardInterrupt as stop:
            print(f"\n{str(stop) or 'interrupted'}", file=sys.stderr)
            return INTERRUPTED
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _reader_is_gone():
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushed at exit
                return 1
            return fail(error, 2)

    return answering


def _reader_is_gone() -> bool:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return bool(poll.poll(0))


def _known(error: BaseException) -> str:
    """The cure for an error of a library that a user can cause, or ""."""
    kinds = type(error).__mro__
    names = {f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in kinds}
    if {name.removeprefix("builtins.") for name in names} & _UNREADABLE:
        return f"{_READ_AGAIN}; mend it, or fetch or write it again"
    if isinstance(error, subprocess.TimeoutExpired):
        return "a program does not answer; see what holds it (nvidia-smi: the driver), and repeat"
    if isinstance(error, MemoryError):
        return _OF_TORCH[0][1]
    said = str(error) if isinstance(error, RuntimeError | ValueError) else ""
    return next((cure for pattern, cure in _OF_TORCH if re.search(pattern, said)), "")


def _on_purpose(error: BaseException) -> bool:
    """Whether code that is no library raised it by a ``raise``, with a message for a user."""
    last = next(_frames(error), None)
    if last is None:  # made elsewhere, such as in another process
        return isinstance(error, _MEANT)
    code = last.tb_frame.f_code
    raised = code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return isinstance(error, _MEANT) and raised and not _of_library(last)


def _frames(error: BaseException) -> Iterator[TracebackType]:
    """The frames of a traceback, innermost first."""
    step, found = error.__traceback__, []
    while step is not None:
        found.append(step)
        step = step.tb_next
    return reversed(found)


def _of_library(step: TracebackType) -> bool:
    file = step.tb_frame.f_code.co_filename
    return file.startswith((*_LIBRARIES, "<"))


def _place(error: BaseException) -> str:
    """File and line of our innermost frame."""
    for step in _frames(error):
        if not _of_library(step):
            file = Path(step.tb_frame.f_code.co_filename)
            shown = file.relative_to(_ROOT) if file.is_relative_to(_ROOT) else file
            return f"{shown}, line {step.tb_lineno}"
    return "unknown place"


def file_at_hand(error: BaseException) -> str:
    """The file that the innermost frame was working on; "" if none is seen.

    Errors of parsers, and of writing to an open file, do not say which file it was.
    """
    for step in _frames(error):
        for value in reversed(list(step.tb_frame.f_locals.values())):
            name = value if isinstance(value, Path) else getattr(value, "name", None)
            opened = isinstance(value, Path) or hasattr(value, "fileno")
            if opened and isinstance(name, str | Path) and os.path.isfile(name):
                return str(name)
    return ""
