"""`proxykd chat` in a terminal and in a pipe."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from proxykd.models.speaker import Said, Sampling
from proxykd.runs.run_directory import RunDirectory
from services.chat import terminal
from services.chat.conversations import Reply
from services.chat.terminal import Panes, TerminalChat
from services.cli.chat import Chosen, open_speakers
from services.cli.main import main
from tests.scripted_speaker import NEVER_ENDING, scripted_speaker
from tests.small_run import run_config

ROOT = Path(__file__).parents[3]
TALK = Sampling(max_tokens=40)


def chat(run, *arguments, stdin=None):
    return CliRunner().invoke(main, ["chat", str(run.root), *map(str, arguments)], input=stdin)


def by_model(stdout):
    found = {}
    for line in stdout.splitlines():
        name, bar, text = line.partition(" | ")
        if bar:
            found.setdefault(name.strip(), []).append(text)
    return {name: "\n".join(lines) for name, lines in found.items()}


def test_one_prompt_is_answered_by_every_model_of_the_run(run):
    done = chat(run, "--once", "one two three?", "--max-tokens", 12)
    assert done.exit_code == 0, done.output
    said = by_model(done.stdout)
    assert list(dict.fromkeys(sorted(said))) == ["base", "proxy", "sft", "student"]
    speakers = open_speakers(Chosen(str(run.root), ("student", "base")))
    for name, speaker in speakers.items():
        pieces = speaker.reply([{"role": "user", "content": "one two three?"}], Sampling(max_tokens=12))
        assert said[name] == "".join(piece.text for piece in pieces)
    assert "loading sft, the student by SFT on the same text" in done.stderr


def test_models_are_chosen_by_name_in_their_order(run):
    done = chat(run, "--once", "one?", "--models", "base, student", "--max-tokens", 4)
    assert done.exit_code == 0
    assert set(by_model(done.stdout)) == {"student", "base"}
    assert done.stderr.index("loading base") < done.stderr.index("loading student")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--models", "teacher"], "--models 'teacher': .* has student, sft, proxy, base"),
        (["--models", ""], "--models '': .* has student"),
        (["--once", "the red stone " * 300], r"student: the conversation has \d+ tokens, .* context of 512"),
        (["--once", "x", "--page"], "--once is answered in the terminal; leave out --page"),
        (["--once", "\udcff"], "give it in UTF-8"),
    ],
)
def test_what_cannot_be_asked_says_why(run, arguments, told):
    done = chat(run, *arguments)
    assert done.exit_code == 2
    assert re.search(told, done.stderr), done.stderr


def test_a_run_that_is_not_done_or_not_there_is_named(tmp_path):
    begun = RunDirectory.create(run_config("m", str(tmp_path)))
    done = chat(begun, "--once", "x")
    assert (done.exit_code, done.stderr.count("has no student yet; go on with: proxykd resume")) == (2, 1)
    done = chat(RunDirectory(tmp_path / "nowhere"), "--once", "x")
    assert (done.exit_code, done.stderr.count("is no run directory")) == (2, 1)


def hear(monkeypatch, chat, *lines):
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    chat.converse()


def test_each_model_keeps_its_own_conversation(monkeypatch, capsys):
    (a, heard_a), (b, heard_b) = scripted_speaker("red", "blue"), scripted_speaker("cat\ndog", "tree")
    talk = TerminalChat({"student": a, "base": b}, TALK)
    hear(monkeypatch, talk, "/system be brief", "", "one", "two", "/reset", "/system", "three", "/what", " /four")
    turn = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n".format
    system = "<|im_start|>system\nbe brief<|im_end|>\n"
    assert heard_a.model is not heard_b.model
    assert heard_a.heard == [
        system + turn("one"),
        system + turn("one") + "red<|im_end|>\n" + turn("two"),
        turn("three"),
        turn("three") + "blue<|im_end|>\n" + turn("/four"),
    ]
    assert heard_b.heard[1] == system + turn("one") + "cat\ndog<|im_end|>\n" + turn("two")
    out, err = capsys.readouterr()
    assert out.split("> one\n")[1].split("> two")[0].splitlines() == ["base    | cat", "student | red", "base    | dog"]
    assert "there is no /what: /reset forgets" in err


def test_a_pipe_ends_at_the_prompt_that_fails(run):
    done = chat(run, "--models", "base", "--max-tokens", 2, stdin=f"one\n{'the red stone ' * 300}\ntwo\n")
    assert done.exit_code == 2
    assert "context of 512" in done.stderr
    assert "> two" not in done.stdout


def test_a_cut_reply_and_an_empty_one_are_told(capsys):
    TerminalChat({"student": scripted_speaker(NEVER_ENDING)[0], "base": scripted_speaker("")[0]}, TALK).ask("x")
    out, err = capsys.readouterr()
    assert by_model(out) == {"student": (NEVER_ENDING * 40)[: len(by_model(out)["student"])], "base": ""}
    assert err == "student: cut at 40 tokens; --max-tokens allows more\n"


def test_ctrl_c_stops_the_reply_and_keeps_what_was_said(monkeypatch, capsys):
    speaker, model = scripted_speaker("the red cat", "two")
    answered = terminal.answer

    def interrupted(*asked):
        for count, one in enumerate(answered(*asked)):
            if count == 2 and len(model.heard) == 1:
                raise KeyboardInterrupt
            yield one

    monkeypatch.setattr(terminal, "answer", interrupted)
    talk = TerminalChat({"student": speaker}, TALK)
    talk.ask("one")
    begun = by_model(capsys.readouterr().out)["student"]
    assert begun
    assert "the red cat".startswith(begun)
    assert begun != "the red cat"
    talk.ask("more")
    assert f"assistant\n{begun}<|im_end|>\n" in model.heard[1]


def panes(width, height, replies):
    screen = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width, height=height)
    return screen, Panes({name: Reply(text, 3, "stop") for name, text in replies.items()}, screen)


def test_panes_stand_side_by_side_where_there_is_room():
    replies = {"student": "the cat", "base": "a dog"}
    for width, beside in ((80, True), (50, False)):
        screen, shown = panes(width, 20, replies)
        with shown:
            pass
        lines = screen.file.getvalue().splitlines()
        assert any("the cat" in line and "a dog" in line for line in lines) == beside
        assert any("a dog" in line for line in lines)


def test_a_pane_shows_the_end_of_what_is_longer_than_the_screen():
    screen, shown = panes(80, 12, {"student": "\n".join(f"line {i}" for i in range(50)), "base": "short"})
    with screen.capture() as begun:
        screen.print(shown._begun())
    lines = begun.get().splitlines()
    assert len(lines) <= 11
    assert "line 49" in begun.get()
    assert "line 30" not in begun.get()
    assert "short" in begun.get()


def test_a_models_text_gives_a_terminal_no_orders():
    screen, shown = panes(80, 20, {"student": "\x1b[2Jred\x9b31m 👩‍👧", "base": "x"})
    shown.show("base", Said("x", 1))
    with screen.capture() as drawn:
        screen.print(shown._panes(None))
    assert "\x1b[2J" not in drawn.get()
    assert "\x9b" not in drawn.get()
    assert "👩‍👧" in drawn.get()


def test_on_a_terminal_it_asks_shows_panes_and_leaves_at_end_of_input(run):
    """A pseudo-terminal of 80 columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = os.environ | {"TERM": "xterm", "PYTHONPATH": str(ROOT)}
    asked = ["chat", str(run.root), "--models", "student,base", "--max-tokens", "6"]
    command = [sys.executable, "-m", "services.cli.main", *asked]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)

    def read_until(text):
        shown = ""
        while text not in shown:
            shown += os.read(master, 65536).decode(errors="replace")
        return shown

    try:
        assert "student, base listen: /reset" in read_until("> ")
        os.write(master, b"one two\n")
        shown = read_until("> ")
        os.write(master, b"\x04")
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(master)
    assert "╭─ student " in shown
    assert "6 tokens, cut" in shown
