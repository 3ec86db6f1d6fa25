"""`proxykd chat`: a run's models side by side on one prompt, in the terminal or on a page."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from actors.cluster.http_options import HttpOptions
from proxykd.errors import ConfigError
from proxykd.evaluation.harness import Answerer
from proxykd.models.speaker import Sampling, Speaker, open_speaker
from proxykd.runs.run_directory import RunDirectory
from services.chat.conversations import WHO
from services.chat.page import serve_chat
from services.chat.terminal import TerminalChat
from services.cli.subjects import of_certificate


@dataclass(frozen=True)
class Chosen:
    """Whom to talk to: models of a run, all of them where `names` is None, in the run's dtypes or another."""

    run_directory: str
    names: tuple[str, ...] | None = None
    dtype: str | None = None


def chat_in_terminal(chosen: Chosen, sampling: Sampling, once: str | None) -> None:
    """Answers `once`, or what standard input asks until it ends.

    Raises:
        ProxykdError: no such run or model, or a prompt that a model cannot be asked.
    """
    chat = TerminalChat(open_speakers(chosen), sampling)
    if once is None:
        chat.converse()
    else:
        chat.ask(once)


def chat_on_page(chosen: Chosen, sampling: Sampling, http: HttpOptions) -> None:
    """Blocks until Ctrl-C.

    Raises:
        ProxykdError: no such run or model.
        ResourceError: the port is taken.
    """
    http = http.at_a_free_port()
    serve_chat(RunDirectory.open(chosen.run_directory).id, open_speakers(chosen), sampling, http)


def open_speakers(chosen: Chosen) -> dict[str, Speaker]:
    """Loads them, by name in the order in which they are named, and says so.

    Raises:
        BenchmarkError: the run has no student yet.
        ConfigError: it has no such model.
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    run = RunDirectory.open(chosen.run_directory)
    found = {one.name: one for one in of_certificate(run, Answerer(model=""), chosen.dtype)}
    names = dict.fromkeys(chosen.names or found)
    for name in names:
        if name not in found:
            raise ConfigError(f"--models {name!r}: {run.id} has {', '.join(found)}")
    device, speakers = "cuda" if torch.cuda.is_available() else "cpu", {}
    for name in names:
        print(f"loading {name}, {WHO[name]}", file=sys.stderr, flush=True)
        answerer = found[name].answerer
        speakers[name] = open_speaker(Path(answerer.model), answerer.dtype, device, found[name].adapter)
    return speakers
