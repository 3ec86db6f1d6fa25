"""Writing behind the steps: what a GPU's weights and moments were copied to is written while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class BehindWriter:
    """One write at a time, so that the host's memory holds one copy. Without `behind` whoever writes waits: on a CPU
    what is written are the very tensors that the next step changes."""

    def __init__(self, behind: bool):
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if behind else None
        self._at_work: Future[None] | None = None

    def write(self, write: Callable[[], None]) -> None:
        """Raises:
        Exception: what `write` raises, or, behind the steps, the write before did.
        """
        self.finish()
        if self._threads is None:
            write()
        else:
            self._at_work = self._threads.submit(write)

    def finish(self) -> None:
        """Waits until all is written.

        Raises:
            Exception: what the last write raised.
        """
        at_work, self._at_work = self._at_work, None
        if at_work is not None:
            at_work.result()
