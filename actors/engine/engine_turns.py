"""One engine at a time for runs side by side: whoever wants the one that is up comes before whoever wants another."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class EngineTurns:
    """Memory holds one model at a time, and a start takes longer than most of what is asked: so few changes of it."""

    def __init__(self, stop: Callable[[str], None]):
        """`stop` ends the engine of a name."""
        self._stop = stop
        self._condition = threading.Condition()
        self._up: str | None = None
        self._busy = False
        self._wanted: Counter[str] = Counter()

    @contextmanager
    def turn(self, name: str, keep: bool = True) -> Iterator[None]:
        """Holds the turn while a run works with the engine `name`, which it starts if need be; every other is stopped.

        One that is not to `keep` is stopped afterwards, too.
        """
        with self._condition:
            self._wanted[name] += 1
            self._condition.wait_for(lambda: not self._busy and self._may_take(name))
            self._wanted[name] -= 1
            self._busy = True
        try:
            if self._up != name:
                self._end()
            self._up = name
            yield
        finally:
            try:
                if not keep:
                    self._end()
            finally:
                with self._condition:
                    self._busy = False
                    self._condition.notify_all()

    def close(self) -> None:
        """Ends the one that is up, once nobody works with it."""
        with self._condition:
            self._condition.wait_for(lambda: not self._busy)
            self._end()

    def _may_take(self, name: str) -> bool:
        return self._up is None or self._up == name or self._wanted[self._up] == 0

    def _end(self) -> None:
        if self._up is not None:
            ended, self._up = self._up, None
            self._stop(ended)
