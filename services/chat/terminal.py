"""Conversations in a terminal, a pane a model; in a pipe, each line of a reply after its model's name."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from proxykd.errors import ProxykdError
from proxykd.models.speaker import Said, Sampling, Speaker, answer
from services.chat.conversations import Conversations, Reply

PANE_WIDTH = 36
"""Columns of a terminal that a pane needs; where there are fewer, panes stand below each other."""
FRAMES_PER_S = 8
CONTROLS = {code: 0xFFFD for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""What a model's text must not say to a terminal."""
COMMANDS = "/reset forgets the conversation, /system TEXT sets what stands before it, ^C stops a reply, ^D leaves"


class View(Protocol):
    """Shows replies as they come; on leaving it, all of what was said is there."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def show(self, name: str, said: Said) -> None: ...


class Panes:
    """A pane a model, side by side. While they are written each shows as much of its end as the screen holds."""

    def __init__(self, replies: Mapping[str, Reply], console: Console):
        self._replies, self._console = replies, console
        self._live = Live(console=console, get_renderable=self._begun, refresh_per_second=FRAMES_PER_S, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        self._console.print(self._panes(None))

    def show(self, name: str, said: Said) -> None:
        """The screen is drawn at its own pace."""

    def _begun(self) -> Table:
        rows = math.ceil(len(self._replies) / self._columns)
        return self._panes(max(1, (self._console.height - 1) // rows - 2))

    @property
    def _columns(self) -> int:
        return min(len(self._replies), max(1, self._console.width // PANE_WIDTH))

    def _panes(self, most: int | None) -> Table:
        table = Table.grid(expand=True)
        for _ in range(self._columns):
            table.add_column(ratio=1)
        panes = [self._pane(name, reply, most) for name, reply in self._replies.items()]
        for at in range(0, len(panes), self._columns):
            table.add_row(*panes[at : at + self._columns])
        return table

    def _pane(self, name: str, reply: Reply, most: int | None) -> Panel:
        text = Text(reply.text.translate(CONTROLS))
        if most is not None:
            lines = text.wrap(self._console, self._console.width // self._columns - 4)
            text = Text("\n").join(lines[-most:])
        return Panel(text, title=name, title_align="left", subtitle=reply.told, subtitle_align="right")


class Lines:
    """Each line of a reply as soon as it is whole, after its model's name."""

    def __init__(self, replies: Mapping[str, Reply]):
        self._replies = replies
        self._unfinished = dict.fromkeys(replies, "")
        self._width = max(map(len, replies))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name, rest in self._unfinished.items():
            if rest or not self._replies[name].text:
                self._print(name, rest)
        for name, reply in self._replies.items():
            if reply.ended == "length":
                print(f"{name}: cut at {reply.tokens} tokens; --max-tokens allows more", file=sys.stderr, flush=True)

    def show(self, name: str, said: Said) -> None:
        *lines, rest = (self._unfinished[name] + said.text).split("\n")
        self._unfinished[name] = rest
        for line in lines:
            self._print(name, line)
        if said.ended and rest:
            self._print(name, rest)
            self._unfinished[name] = ""

    def _print(self, name: str, line: str) -> None:
        print(f"{name:<{self._width}} | {line}", flush=True)


class TerminalChat:
    """A conversation with several models, by name."""

    def __init__(self, speakers: Mapping[str, Speaker], sampling: Sampling):
        self._speakers, self._sampling = speakers, sampling
        self._conversations = Conversations(speakers)
        self._console = Console(highlight=False)

    def ask(self, prompt: str) -> None:
        """Shows every model's reply. Ctrl-C stops them: what was said by then are the replies.

        Raises:
            ProxykdError: a model cannot be asked this; no conversation has changed.
        """
        said = answer(self._speakers, self._conversations.asked(prompt), self._sampling)
        replies = {name: Reply() for name in self._speakers}
        view: View = Panes(replies, self._console) if self._console.is_terminal else Lines(replies)
        with view:
            try:
                for name, one in said:
                    replies[name].add(one)
                    view.show(name, one)
            except KeyboardInterrupt:
                pass
        self._conversations.keep(prompt, replies)

    def converse(self) -> None:
        """Takes prompts and commands from standard input until it ends; a prompt that fails is said, and is not asked.

        Raises:
            ProxykdError: what the last prompt failed of, where nobody sits at a terminal.
        """
        if sys.stdin.isatty():
            print(f"{', '.join(self._speakers)} listen: {COMMANDS}")
        for line in _lines():
            if not sys.stdin.isatty():
                print(f"> {line}", flush=True)
            try:
                self._take(line)
            except ProxykdError as error:
                if not sys.stdin.isatty():
                    raise
                print(f"proxykd: {error}", file=sys.stderr)

    def _take(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if command == "/reset":
            self._conversations.forget()
        elif command == "/system":
            self._conversations.system = rest.strip()
        elif command.startswith("/"):
            print(f"there is no {command}: {COMMANDS}; a space before it makes it a prompt", file=sys.stderr)
        elif line.strip():
            self.ask(line.strip())


def _lines() -> Iterator[str]:
    """Of standard input; a terminal is asked for each."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    import readline  # noqa: F401  (what `input` edits a line by)

    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
