"""`starling chat`: replies that grow are the replies drawn at once, Ctrl-C and errors leave the program alive, commands."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from starling import conversation
from starling.conversation import Conversation, Speaker, talk
from starling.errors import InputError
from starling.records import Message, Sampling

GREEDY = Sampling(temperature=0.0, max_tokens=24)
WARM = Sampling(temperature=1.0, max_tokens=24)
ASKED = (Message(role="user", content="name three animals"),)


@pytest.fixture(scope="module")
def speaker(backbone: Callable[..., Path]) -> Speaker:
    return Speaker(backbone("llama"))


class Screen:
    """Lines that are typed, and what was shown and told."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self.lines: Iterator[str | type[BaseException]] = iter(lines)
        self.shown: list[str] = []
        self.told: list[str] = []
        self.stop_after: int | None = None
        """Ctrl-C comes while this many pieces have been shown."""

    def read(self) -> str | None:
        line = next(self.lines, None)
        if isinstance(line, type):
            raise line
        return line

    def show(self, text: str) -> None:
        self.shown.append(text)
        if self.stop_after is not None and len(self.shown) == self.stop_after:
            raise KeyboardInterrupt

    def run(self, *talks: Conversation, commands: bool = True) -> Screen:
        talk(talks, self.read, self.show, self.told.append, commands=commands)
        return self


# ── replies ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_growing_reply_is_the_one_drawn_at_once(speaker: Speaker) -> None:
    pieces = list(speaker.reply(ASKED, GREEDY, 0))
    prompt = speaker._encoder.prompt_ids(ASKED)
    whole = speaker._sampler.generate([prompt], GREEDY, [0])[0]
    assert len(whole.ids) > conversation.FIRST_PIECE, "or there is nothing to show"
    assert "".join(pieces) == speaker._encoder.decode_reply(whole.ids)
    assert len(pieces) > 2


def test_half_a_character_is_not_shown(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = iter(["ab", "ab\ufffd", "abé", "abé\ufffd"])
    monkeypatch.setattr(speaker._encoder, "decode_reply", lambda ids: next(texts))
    reply = speaker.reply(ASKED, GREEDY.model_copy(update={"max_tokens": 13}), 0)
    assert list(reply) == ["ab", "é", "\ufffd"]  # the last one ends so


def test_the_seed_and_the_place_in_the_conversation_decide_the_draw(backbone: Callable[..., Path], speaker: Speaker) -> None:
    first, again, other = ("".join(speaker.reply(ASKED, WARM, n)) for n in (0, 0, 1))
    assert first == again != other
    assert first != "".join(Speaker(backbone("llama"), seed=1).reply(ASKED, WARM, 0))


def test_a_conversation_remembers_and_forgets(speaker: Speaker) -> None:
    one = Conversation(speaker, GREEDY)
    first = "".join(one.say("name three animals"))
    assert [m.role for m in one.messages] == ["user", "assistant"]
    assert one.messages[1].content == first
    second = "".join(one.say("name three animals"))
    assert len(one.messages) == 4
    assert second != first
    one.begin()
    assert "".join(one.say("name three animals")) == first


def test_a_conversation_longer_than_the_model_is_refused(speaker: Speaker) -> None:
    long = (Message(role="user", content="a cat " * 200),)
    with pytest.raises(InputError, match="holds 128"):
        list(speaker.reply(long, GREEDY, 0))


def test_an_adapter_speaks_as_its_merged_model(backbone: Callable[..., Path], tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    from starling.models.load import load_causal, load_tokenizer, save_folder

    base = backbone("llama")
    tuned = get_peft_model(load_causal(base), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    tuned.peft_config["default"].base_model_name_or_path = str(base)
    tuned.save_pretrained(tmp_path / "adapter")
    save_folder(tmp_path / "merged", tuned.merge_and_unload(), load_tokenizer(base))
    said = ["".join(Speaker(folder).reply(ASKED, GREEDY, 0)) for folder in (tmp_path / "adapter", tmp_path / "merged", base)]
    assert said[0] == said[1] != said[2]
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps(json.loads((tmp_path / "adapter" / "adapter_config.json").read_text()) | {"base_model_name_or_path": "gone"})
    )
    with pytest.raises(InputError, match="'gone' is no folder"):
        Speaker(tmp_path / "adapter")


# ── the program ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_control_c_stops_the_reply_and_what_was_said_stays(speaker: Speaker) -> None:
    one = Conversation(speaker, GREEDY)
    screen = Screen("name three animals", "/save", "hello there")
    screen.stop_after = 2
    screen.run(one)
    assert screen.told[0] == "(stopped)"
    assert one.messages[1].content == "".join(screen.shown[:2])
    assert [m.role for m in one.messages] == ["user", "assistant"] * 2, "the next line was answered"


def test_control_c_at_the_prompt_drops_the_line(speaker: Speaker) -> None:
    screen = Screen(KeyboardInterrupt, "hello there").run(Conversation(speaker, GREEDY))
    assert screen.shown[-1] == "\n"
    with pytest.raises(KeyboardInterrupt):
        Screen(KeyboardInterrupt).run(Conversation(speaker, GREEDY), commands=False)


def test_an_error_is_told_to_a_person_and_raised_in_a_pipe(speaker: Speaker) -> None:
    one = Conversation(speaker, GREEDY)
    screen = Screen("a cat " * 200, "hello there").run(one)
    assert "/reset" in screen.told[0]
    assert [m.content for m in one.messages][:1] == ["hello there"], "the turn without a reply is not remembered"
    with pytest.raises(InputError):
        Screen("a cat " * 200).run(one, commands=False)


def test_commands(speaker: Speaker, tmp_path: Path) -> None:
    file = tmp_path / "said.jsonl"
    one = Conversation(speaker, GREEDY)
    save = f"/save {file}"
    screen = Screen(
        save, "hello there", save, "/system be kind", "hello there", "", "/temperature 0.5", save, "hello there", save, "/reset",
        "/system", "/temperature warm", "/temperature nan", "/temperature -1", "/shout", f"/save {tmp_path}",
    ).run(one)  # fmt: skip
    told = screen.told
    assert told[0] == "nothing has been said yet"
    assert told[1] == told[5] == f"(added to {file})"
    assert told[2] == "(a new conversation)"
    assert told[3] == "(temperature 0.5)"
    assert told[4] == "nothing has been said yet", "an empty line begins anew"
    assert told[6:8] == ["(forgotten)", "(a new conversation)"]
    assert all("wants a number from 0 on" in line for line in told[8:11])
    assert "/shout is no command" in told[11]
    assert one.messages == ()
    assert one.sampling.temperature == 0.5
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert [[m["role"] for m in row["messages"]] for row in rows] == [
        ["user", "assistant"], ["system", "user", "assistant"],
    ]  # fmt: skip


def test_save_tells_what_the_system_says(speaker: Speaker, tmp_path: Path) -> None:
    screen = Screen("hello there", f"/save {tmp_path}").run(Conversation(speaker, GREEDY))
    assert screen.told == [f"{tmp_path} cannot be written: Is a directory"]


def test_help_lists_every_command(speaker: Speaker) -> None:
    (told,) = Screen("/help").run(Conversation(speaker, GREEDY)).told
    assert [line.split()[0] for line in told.splitlines()[:-1]] == ["/reset", "/system", "/temperature", "/save", "/help"]


def test_commands_are_text_in_a_pipe_and_after_a_blank(speaker: Speaker) -> None:
    for line, commands in (("/help", False), (" /help", True)):
        one = Conversation(speaker, GREEDY)
        assert Screen(line).run(one, commands=commands).told == []
        assert one.messages[0].content == "/help"


def test_two_models_side_by_side(backbone: Callable[..., Path], speaker: Speaker) -> None:
    other = Speaker(backbone("qwen2"))
    talks = Conversation(speaker, GREEDY), Conversation(other, GREEDY)
    text = "".join(Screen("hello there", "/temperature 2").run(*talks).shown)
    assert text == "".join(f"{one.speaker.name}> {one.messages[1].content}\n" for one in talks)
    assert [one.sampling.temperature for one in talks] == [2, 2]


# ── at a terminal ────────────────────────────────────────────────────────────────────────────────────────────────────


# Done by the child itself, not in preexec_fn: that runs between fork and exec, where a lock that another thread of the test
# process held stays held for good (seen once, on a busy machine).
_WITH_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.e2e
def test_at_a_terminal(backbone: Callable[..., Path]) -> None:
    """A real terminal: greeting, a reply, a command, Ctrl-C at the prompt, Ctrl-D."""
    master, slave = pty.openpty()
    command = [sys.executable, "-c", _WITH_TERMINAL, "-m", "starling", "chat", str(backbone("llama")), "--greedy"]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, close_fds=True, start_new_session=True)
    os.close(slave)
    try:
        _until(master, "you> ")
        os.write(master, b"hello there\n")
        assert len(_until(master, "you> ").splitlines()) >= 2
        os.write(master, b"/temperature 0.5\n")
        assert "(temperature 0.5)" in _until(master, "you> ")
        os.write(master, b"\x03")
        _until(master, "you> ")
        os.write(master, b"\x04")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)


def _until(master: int, text: str, seconds: float = 120) -> str:
    """What comes until this text."""
    seen, end = "", time.monotonic() + seconds
    while text not in seen:
        left = end - time.monotonic()
        ready: list[Any] = select.select([master], [], [], max(left, 0))[0]
        assert ready, f"waited for {text!r}, saw {seen!r}"
        seen += os.read(master, 4096).decode("utf-8", "replace")
    return seen
