"""`starling sample`: every form of a prompt, replies in order, and what cannot be answered."""

import gzip
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from starling import cli, sampling
from starling.chat import to_transcript
from starling.errors import InputError
from starling.records import Message, Sampling
from starling.sampling import Asked, Reply, answer, asked_in, asked_on, load

ASK = (Message(role="user", content="name three animals"),)
TALK = (*ASK, Message(role="assistant", content="a cat"), Message(role="user", content="and now?"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def lines(*rows: Any) -> list[bytes]:
    return [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_form_of_a_prompt() -> None:
    turns = [{"role": m.role, "content": m.content, "name": "x"} for m in TALK]
    found = list(
        asked_on(
            lines(
                {"id": 7, "prompt": "name three animals"},
                b"\xef\xbb\xbfname three animals\r\n",
                b"   ",
                {"prompt": to_transcript(TALK)},
                {"prompt": turns},
                {"messages": turns, "prompt": "not this"},
                b"17",
                b'"quoted"',
                "höher".encode(),
            )
        )
    )
    assert [a.problem for a in found] == [""] * 8
    assert [a.messages for a in found[:5]] == [ASK, ASK, TALK, TALK, TALK]
    assert [a.messages[0].content for a in found[5:]] == ["17", '"quoted"', "höher"]
    assert [a.row for a in found] == [1, 2, 4, 5, 6, 7, 8, 9]
    assert found[0].id == "7"
    assert found[2].id == found[3].id == found[4].id != found[1].id


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b'{"prompt": "broken', "not json"),
        (b"\xff\xfe", "not utf8"),
        ({"text": "x"}, "no field 'prompt'"),
        ({"prompt": None}, "no field 'prompt'"),
        ({"prompt": 3}, "a conversation is a text or a list of messages, not int"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "ends with a user turn"),
        ({"messages": []}, "ends with a user turn"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "validation error"),
    ],
)
def test_what_is_no_prompt_is_told(row: Any, said: str) -> None:
    (found,) = asked_on(lines(row))
    assert found.messages == ()
    assert said in found.problem


def test_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.jsonl").write_text('{"prompt": "three"}\nplain\n')
    with gzip.open(tmp_path / "c.csv.gz", "wt") as file:
        file.write("id,prompt\nx,four\n")
    found = list(asked_in([tmp_path / "a.txt", tmp_path / "b.jsonl", tmp_path / "c.csv.gz"]))
    assert [(a.row, a.messages[0].content if a.messages else a.problem) for a in found] == [
        (1, "one"), (3, "two"), (1, "three"), (2, "not json"), (1, "four"),
    ]  # fmt: skip
    assert found[-1].id == "x"
    assert found[0].file == str(tmp_path / "a.txt")
    with pytest.raises(InputError, match="does not exist"):
        list(asked_in([tmp_path / "none.txt"]))


# ── answering ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_replies_in_order_whatever_the_windows(backbone: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, encoder = load(backbone("llama"), batch=4)
    asked = [Asked(f"p{i}", i, None, (Message(role="user", content=f"name {i} animals"),)) for i in range(11)]
    asked.insert(3, Asked("bad", 99, None, (), "it is broken"))
    settings = Sampling(max_tokens=6)
    whole = list(answer(sampler, encoder, asked, settings, samples=3, seed=1))
    assert [(r.id, r.sample) for r in whole[:10]] == [(f"p{i}", k) for i in range(3) for k in range(3)] + [("bad", 0)]
    assert len(whole) == 34
    assert whole[9] == Reply("bad", 99, None, 0, "", "error", 0, None, "it is broken")
    monkeypatch.setattr(sampling, "WINDOW_BATCHES", 1)
    small = list(answer(sampler, encoder, asked[::-1], settings, samples=3, seed=1))
    assert {(r.id, r.sample): r.text for r in small} == {(r.id, r.sample): r.text for r in whole}
    other = list(answer(sampler, encoder, asked, settings, samples=3, seed=2))
    assert [r.text for r in other] != [r.text for r in whole]
    for reply in whole:
        if reply.finish != "error":
            assert reply.logprob is not None
            assert reply.logprob < 0
            assert reply.finish == ("stop" if reply.tokens < 6 else reply.finish)


def test_prompts_beyond_the_models_positions_get_no_reply(backbone: Callable[..., Path]) -> None:
    sampler, encoder = load(backbone("gpt2"), batch=4)
    long = Asked("long", 1, None, (Message(role="user", content="name three animals " * 60),))
    first, second = answer(sampler, encoder, [long, Asked("b", 2, None, ASK)], Sampling(max_tokens=5))
    assert (first.finish, second.id) == ("error", "b")
    assert "the model has room for 123" in first.problem
    assert second.finish in ("stop", "length")


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, list[Any], str]:
    code = cli.call([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def test_the_command(
    backbone: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def given(*rows: Any) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(lines(*rows)))))

    given(b"name three animals", {"id": "q", "prompt": "what is 3 + 4?"})
    code, found, err = run(capsys, "sample", backbone("llama"), "--samples", 2, "--max-tokens", 5, "--batch", 3)
    assert (code, err) == (0, "")
    assert [(r["row"], r["sample"]) for r in found] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert found[2]["id"] == "q"
    assert set(found[0]) == {"id", "row", "sample", "text", "finish", "tokens", "logprob"}
    assert all(1 <= r["tokens"] <= 5 for r in found)
    given({"prompt": "what is 3 + 4?", "id": "q"})
    assert run(capsys, "sample", backbone("llama"), "--samples", 2, "--max-tokens", 5)[1][1]["text"] == found[3]["text"]
    given({"prompt": "what is 3 + 4?"}, {"no": 1})
    code, found, err = run(capsys, "sample", backbone("llama"), "--temperature", 0, "--max-tokens", 5)
    assert (code, len(found), found[1]["finish"]) == (1, 2, "error")
    assert "1 rows got no reply" in err
    assert "line 2 of the input" in err
    assert run(capsys, "sample", tmp_path)[0] == 1
    assert run(capsys, "sample", backbone("llama"), "--top-p", 0)[0] == 2
