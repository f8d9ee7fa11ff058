"""What goes on in threads while a network generates: noise, decoding, and mp4 files.

    foreground   generates batch n + 1
    drawer       draws the noise of batch n + 2
    decoder      decodes batch n, on CUDA in a stream of its own
    writers      encode the clips of batch n - 1, one each

torch and libav release the GIL. Results come back in order and no result depends on the number of
threads, so shards and files have the same bytes as without them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Event
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from experiments.generation.outputs import Saver

WRITERS = 4
"""Threads that write mp4 files. A clip of 81 frames at 480p takes 3.6 s of a core, and an H100
generates and decodes one in less than half of that."""

Item, Result = TypeVar("Item"), TypeVar("Result")
Stored = tuple[dict[str, Any], dict[str, np.ndarray]]
"""A sample, and the arrays of it that go into its shard."""


class Background:
    """Stores batches of clips while the foreground generates the next ones.

    A context manager. Entering it reads the autoencoder's weights. Leaving it early waits for the
    batch that is being decoded and ends the files that are being written, of which nothing remains.

    Args:
        saver: decodes and writes.
        batch: clips in a batch.
        device: of the clips.
        writers: threads that write files.
    """

    def __init__(
        self, saver: Saver, batch: int, device: torch.device, writers: int = WRITERS
    ) -> None:
        self._saver = saver
        self.limit = 1 + -(-writers // batch)
        """Batches held at most: one is decoded, the clips of the others keep all writers busy."""
        self._held: deque[Future[list[tuple[Stored, Future[None]]]]] = deque()
        self._decoder = ThreadPoolExecutor(1, "decoder")
        self._writers = ThreadPoolExecutor(writers, "writer")
        self._ended = Event()
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __enter__(self) -> Background:
        self._saver.load()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for pool in (self._decoder, self._writers):  # the first one feeds the second
            pool.shutdown(cancel_futures=True)

    def put(self, samples: Sequence[dict[str, Any]], clips: Tensor) -> Iterator[Stored]:
        """Begin to store a batch; yields what is stored by now, and waits if too much is held.

        Args:
            samples: one for each clip.
            clips: ``[B, F, C, H, W]``, not to be changed afterwards.

        Raises:
            Exception: what an earlier batch failed with; a note names the sample.
        """
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(clips.device))
        self._held.append(self._decoder.submit(self._decode, samples, clips))
        while len(self._held) > self.limit or (self._held and _done(self._held[0])):
            yield from self._oldest()

    def rest(self) -> Iterator[Stored]:
        """Wait for all that is held, and yield it. Raises as `put`."""
        while self._held:
            yield from self._oldest()

    def _oldest(self) -> Iterator[Stored]:
        for stored, written in self._held.popleft().result():
            written.result()
            yield stored

    def _decode(
        self, samples: Sequence[dict[str, Any]], clips: Tensor
    ) -> list[tuple[Stored, Future[None]]]:
        """In the decoder's thread. What it returns lies on the host, so the stream is done."""
        with _naming(samples), self._on_stream():
            stored = self._saver.stored(samples, clips)
        return [
            ((sample, arrays), self._writers.submit(self._write, sample, video))
            for sample, (arrays, video) in zip(samples, stored, strict=True)
        ]

    def _write(self, sample: dict[str, Any], video: np.ndarray | None) -> None:
        """In a writer's thread."""
        if video is not None:
            with _naming([sample]):
                self._saver.write(sample, self._until_ended(video))

    def _until_ended(self, video: np.ndarray) -> Iterator[np.ndarray]:
        for frame in video:
            if self._ended.is_set():
                raise CancelledError
            yield frame

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[tuple[Item, Result]]:
    """Each item with its result; a thread computes the next one's meanwhile."""
    with ThreadPoolExecutor(1, "drawer") as pool:
        before: tuple[Item, Future[Result]] | None = None
        for item in items:
            coming = item, pool.submit(function, item)
            if before is not None:
                yield before[0], before[1].result()
            before = coming
        if before is not None:
            yield before[0], before[1].result()


def _done(batch: Future[list[tuple[Stored, Future[None]]]]) -> bool:
    """Whether to wait for nothing: also where it failed."""
    if not batch.done():
        return False
    return batch.exception() is not None or all(written.done() for _, written in batch.result())


@contextmanager
def _naming(samples: Sequence[dict[str, Any]]) -> Iterator[None]:
    """Add the keys of the samples to errors that name none of them."""
    keys = [sample["key"] for sample in samples]
    try:
        yield
    except Exception as error:
        if not any(key in str(error) for key in keys):
            error.add_note(f"of sample {', '.join(map(repr, keys))}")
        raise
