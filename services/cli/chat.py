"""`proxykd chat`: a run's models side by side on one prompt, in the terminal or on a page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from actors.cluster.http_options import HttpOptions
from proxykd.errors import ConfigError
from proxykd.evaluation.harness import Answerer
from proxykd.models.speaker import Sampling, Speaker, open_speaker
from proxykd.runs.run_directory import RunDirectory
from services.chat.conversations import WHO
from services.chat.page import serve_chat
from services.chat.terminal import TerminalChat
from services.cli.subjects import Subject, of_certificate


def chat_in_terminal(run_directory: str, names: Sequence[str] | None, sampling: Sampling, once: str | None) -> None:
    """Answers `once`, or what standard input asks until it ends.

    Raises:
        ProxykdError: no such run or model, or a prompt that a model cannot be asked.
    """
    chat = TerminalChat(_speakers(RunDirectory.open(run_directory), names), sampling)
    if once is None:
        chat.converse()
    else:
        chat.ask(once)


def chat_on_page(run_directory: str, names: Sequence[str] | None, sampling: Sampling, http: HttpOptions) -> None:
    """Blocks until Ctrl-C.

    Raises:
        ProxykdError: no such run or model.
        ResourceError: the port is taken.
    """
    run = RunDirectory.open(run_directory)
    serve_chat(run.id, _speakers(run, names), sampling, http)


def _speakers(run: RunDirectory, names: Sequence[str] | None) -> dict[str, Speaker]:
    """The named models of a run, all of them where None, in the order in which they are named."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = {one.name: one for one in of_certificate(run, Answerer(model=""), dtype=None)}
    wanted = list(found) if names is None else list(names)
    for name in wanted:
        if name not in found:
            raise ConfigError(f"--models {name!r}: {run.id} has {', '.join(found)}")
    return {name: _opened(found[name], device) for name in dict.fromkeys(wanted)}


def _opened(subject: Subject, device: str) -> Speaker:
    print(f"loading {subject.name}, {WHO[subject.name]}", file=sys.stderr, flush=True)
    answerer = subject.answerer
    return open_speaker(Path(answerer.model), answerer.dtype, device, subject.adapter)
