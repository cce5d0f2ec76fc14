"""`starling score`: every form of a row, nothing lost, bounded memory, the same bits in any company, resumed runs."""

import gzip
import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from starling import cli
from starling.errors import InputError, UsageError
from starling.models.encode import Encoded
from starling.progress import Progress
from starling.records import Message, Score, prompt_id
from starling.rows import Row, line_rows
from starling.scoring import Item, Tally, as_json, read_item, score_files, score_items, write_scores

U = {"role": "user", "content": "hello"}
A = {"role": "assistant", "content": "a cat"}
HELLO = (Message(role="user", content="hello"),)
HUMAN = "\n\nHuman: hello\n\nAssistant: "


def item(value: dict[str, Any]) -> Item:
    return read_item(Row(1, value))


# ── reading a row ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [U, A]},
        {"messages": [U], "response": "a cat"},
        {"messages": [{**U, "name": "Ann"}, {**A, "model": "x"}]},
        {"prompt": "hello", "response": "a cat"},
        {"prompt": "hello", "response": "a cat", "messages": None, "answers": None, "chosen": None},
        {"prompt": HUMAN, "response": "a cat"},
        {"prompt": [U], "response": "a cat"},
    ],
)
def test_a_row_with_one_reply(row: dict[str, Any]) -> None:
    found = item(row)
    assert (found.problem, found.replies, found.several) == ("", ((HELLO, "a cat"),), False)
    assert found.id == item({"prompt": "hello", "response": "a cat"}).id
    assert item({**row, "id": 7}).id == "7"


@pytest.mark.parametrize(
    "row",
    [
        {
            "prompt": HUMAN,
            "answers": [{"answer": "a cat", "model": "m", "rank": 1.0}, {"answer": "dog", "model": "n", "rank": 2.0}],
        },
        {"prompt": "hello", "answers": ["a cat", "dog"]},
        {"prompt": "hello", "chosen": "a cat", "rejected": "dog"},
        {"prompt": [U], "chosen": [A], "rejected": [{**A, "content": "dog"}]},
        {"chosen": [U, A], "rejected": [U, {**A, "content": "dog"}]},
        {"chosen": HUMAN + "a cat", "rejected": HUMAN + "dog"},
    ],
)
def test_a_row_with_several_replies(row: dict[str, Any]) -> None:
    found = item(row)
    assert (found.problem, found.replies, found.several) == ("", ((HELLO, "a cat"), (HELLO, "dog")), True)
    assert found.id == prompt_id(HELLO)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, "no field 'prompt'"),
        ({"prompt": "x"}, "it needs a conversation that ends with a user turn, and a reply"),
        ({"prompt": 3, "response": "y"}, "not int"),
        ({"prompt": "x", "response": 3}, "not int"),
        ({"prompt": "x", "response": None}, "and a reply"),
        ({"messages": [U]}, "and a reply"),
        ({"messages": []}, "and a reply"),
        ({"messages": [A], "response": "y"}, "ends with a user turn"),
        ({"messages": [{"role": "robot", "content": "x"}, A]}, "validation error"),
        ({"messages": [{"role": "user"}, A]}, "no field 'content'"),
        ({"prompt": "x", "answers": []}, "no answers"),
        ({"prompt": "x", "answers": [{"text": "y"}]}, "no field 'answer'"),
        ({"prompt": "x", "answers": ["y", 3]}, "not int"),
        ({"prompt": "x", "chosen": "y"}, "no field 'rejected'"),
        ({"chosen": "not a transcript", "rejected": HUMAN + "y"}, "no transcript"),
        ({"prompt": HUMAN + "\n\nHuman: x", "response": "y"}, "no Nectar transcript"),
    ],
)
def test_a_row_that_is_none_of_these_says_why(row: dict[str, Any], said: str) -> None:
    found = item({"id": "a", **row})
    assert said in found.problem
    assert (found.replies, found.id) == ((), "a")


def test_lines_that_are_no_rows() -> None:
    lines = [b'{"prompt": "hello", "response": "a cat"}\n', b"\n", b"not json\n", b"[1]\n", b"\xff\n", b'{"prompt": "\\ud800"}\n']
    found = [read_item(row) for row in line_rows(lines)]
    assert [(i.row, i.problem) for i in found] == [
        (1, ""),
        (3, "not json"),
        (4, "not an object"),
        (5, "not utf8"),
        (6, "not unicode"),
    ]


# ── scoring, with a toy whose reward is the number of letters ────────────────────────────────────────────────────────


class Toy:
    """Reward: characters of prompt and reply, beyond 90 infinite. A prompt with the word "system" is refused."""

    rows_at_once = 10

    def __init__(self, dies_after: int | None = None) -> None:
        self.scored = 0
        self._dies_after = dies_after

    def encode(self, conversations: Sequence[tuple[Any, str]]) -> list[Encoded]:
        for messages, _ in conversations:
            if "system" in messages[0].content:
                raise InputError("The template has no system turn", where="here", cure="drop it")
        return [Encoded(tuple(ord(c) for c in messages[-1].content + text), 1) for messages, text in conversations]

    def score(self, rows: Sequence[Encoded], done: Callable[[int], None] = lambda n: None) -> list[float]:
        self.scored += len(rows)
        if self._dies_after is not None and self.scored > self._dies_after:
            raise MemoryError
        done(len(rows))
        return [math.inf if len(row.ids) > 90 else float(len(row.ids)) for row in rows]


def toy_rows(n: int) -> list[dict[str, Any]]:
    """Every kind of row and failure, in turn."""
    kinds: list[dict[str, Any]] = [
        {"prompt": "x", "response": "y" * 3},
        {"prompt": "x", "answers": ["a", " ", "ccc"]},
        {"prompt": "system", "response": "y"},
        {"prompt": "x"},
        {"prompt": "x", "response": ""},
        {"prompt": "x" * 99, "response": "y"},
        {"prompt": "xx", "chosen": "yy", "rejected": "z"},
    ]
    return [{"id": f"r{i}", **kinds[i % len(kinds)]} for i in range(n)]


WANTED = [
    ("r0", None, 4.0, "scored"),
    ("r1", 0, 2.0, "scored"), ("r1", 1, None, "empty"), ("r1", 2, 4.0, "scored"),
    ("r2", None, None, "unreadable"),
    ("r3", None, None, "unreadable"),
    ("r4", None, None, "empty"),
    ("r5", None, None, "not_finite"),
    ("r6", 0, 4.0, "scored"), ("r6", 1, 3.0, "scored"),
]  # fmt: skip


def brief(scores: Sequence[Score]) -> list[tuple[Any, ...]]:
    return [(s.id, s.answer, s.reward, s.outcome) for s in scores]


@pytest.mark.parametrize("window", [1, 2, 3, 100])
def test_every_reply_has_a_score_or_a_named_reason_in_its_place(window: int) -> None:
    items = [item(row) for row in toy_rows(7)]
    found = list(score_items(Toy(), items, window=window))
    assert brief(found) == WANTED
    assert next(s.problem for s in found if s.outcome == "unreadable") == "The template has no system turn"


def test_strict_stops_at_what_cannot_be_read() -> None:
    rows = toy_rows(4)
    for kept, said in (([0, 1, 3], "and a reply"), ([0, 2], "no system turn")):
        scores = score_items(Toy(), [item(rows[i]) for i in kept], strict=True)
        with pytest.raises(InputError, match=said):
            next(scores)
    assert len(list(score_items(Toy(), [item(row) for row in rows[:2]], strict=True))) == 4


def test_no_more_than_a_window_is_read_ahead() -> None:
    read = 0

    def endless() -> Iterator[Item]:
        nonlocal read
        for i in itertools.count():
            read += 1
            yield item({"prompt": "x", "response": f"{i}"})

    scores = score_items(Toy(), endless(), window=8)
    for seen, _ in enumerate(itertools.islice(scores, 100), start=1):
        assert read <= seen + 8
    long = score_items(Toy(), (item({"prompt": "x" * 6_000_000, "response": "y"}) for _ in range(9)))
    next(long)


class Counts(Progress):
    def __init__(self) -> None:
        self.total = self.done = 0

    def start(self, what: str, total: int) -> None:
        self.total = total

    def advance(self, n: int = 1, note: str = "") -> None:
        assert n >= 0
        self.done += n

    def finish(self) -> None:
        return None


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def read_scores(path: Path) -> list[Score]:
    return [Score.model_validate_json(line) for line in path.read_text("utf-8").splitlines()]


def test_files_in_and_out(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    a = write_jsonl(tmp_path / "a.jsonl", toy_rows(7))
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write('{"prompt": "x", "response": "yy"}\n')
    pq.write_table(pa.Table.from_pylist([{"prompt": "x", "response": "y"}] * 3), tmp_path / "c.parquet")
    files = [a, tmp_path / "b.jsonl.gz", tmp_path / "c.parquet"]
    progress = Counts()
    with pytest.raises(InputError, match=r"2 rows hold no conversation.*first: The template has no system turn") as caught:
        score_files(Toy, files, tmp_path / "out.jsonl", "key", progress=progress)
    assert caught.value.where == f"{a}, row 3"
    found = read_scores(tmp_path / "out.jsonl")
    assert brief(found[:10]) == WANTED
    assert [(s.file, s.row, s.reward) for s in found[10:]] == [
        (str(files[1]), 1, 3.0), (str(files[2]), 1, 2.0), (str(files[2]), 2, 2.0), (str(files[2]), 3, 2.0),
    ]  # fmt: skip
    assert progress.done == progress.total == 11

    with pytest.raises(InputError, match="2 rows"):
        score_files(Toy, files, tmp_path / "out.parquet", "key")
    assert [Score.model_validate(row) for row in pq.read_table(tmp_path / "out.parquet").to_pylist()] == found
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl.gz", "c.parquet", "out.jsonl", "out.parquet"]
    with pytest.raises(InputError, match=r"\.jsonl or \.parquet"):
        score_files(Toy, files, tmp_path / "out.csv", "key")
    with pytest.raises(UsageError, match="one of the files to read"):
        score_files(Toy, [tmp_path], tmp_path / "out.jsonl", "key")
    assert read_scores(tmp_path / "out.jsonl") == found


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    rows = [row for i, row in enumerate(toy_rows(140)) if i % 7 not in (2, 3)]  # 100 rows, 160 replies, 100 of them scored
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    counts = score_files(Toy, [source], tmp_path / f"whole{suffix}", "key")
    assert counts == {"scored": 100, "empty": 40, "not_finite": 20}
    out, part = tmp_path / f"out{suffix}", tmp_path / f"out{suffix}.part"
    with pytest.raises(MemoryError):
        score_files(lambda: Toy(dies_after=70), [source], out, "key")
    assert not out.exists()
    lines = part.read_bytes().splitlines(keepends=True)
    assert len(lines) > 50
    part.write_bytes(b"".join(lines[:-3]) + lines[-3][:5])  # killed while it wrote, in the middle of a row
    toy = Toy()
    progress = Counts()
    assert score_files(lambda: toy, [source], out, "key", progress=progress) == counts
    assert progress.done == progress.total == 100
    assert toy.scored < 70, "of 120: what was scored is not scored again"
    assert out.read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert sorted(p.name for p in tmp_path.glob("out*")) == [out.name]


@pytest.mark.parametrize("changed", ["model", "rows"])
def test_a_part_of_another_input_or_model_is_not_continued(changed: str, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", toy_rows(2))
    part = tmp_path / "out.jsonl.part"
    with pytest.raises(MemoryError):
        score_files(lambda: Toy(dies_after=0), [source], tmp_path / "out.jsonl", "key")
    part.write_text(as_json(Score(id="old", reward=1.0, outcome="scored", file=str(source), row=1)) + "\n" * 2, "utf-8")
    if changed == "rows":
        write_jsonl(source, toy_rows(2)[1:] + toy_rows(1))
    score_files(Toy, [source], tmp_path / "out.jsonl", "other" if changed == "model" else "key")
    assert "old" not in (tmp_path / "out.jsonl").read_text()


def test_two_rows_of_one_number_in_two_files_are_two_rows(tmp_path: Path) -> None:
    tally = Tally()
    done: list[int] = []

    def scores(n: int) -> Iterator[Score]:
        done.append(n)
        yield from [Score(id=f, reward=1.0, outcome="scored", file=f, row=1) for f in ("a", "b", "c")][n:]

    (tmp_path / "o.jsonl.part").write_text("".join(as_json(s) + "\n" for s in scores(0)), "utf-8")
    (tmp_path / "o.jsonl.part.key").write_text("k", "utf-8")
    write_scores(tmp_path / "o.jsonl", scores, "k", tally)
    assert done == [0, 2]
    assert [s.id for s in read_scores(tmp_path / "o.jsonl")] == ["a", "b", "c"]
    assert tally.counts == {"scored": 3}


# ── with a real model ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def reward_model(backbone: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from starling.models.load import load_backbone_as_scalar, load_tokenizer, save_folder

    folder = tmp_path_factory.mktemp("reward")
    tokenizer = load_tokenizer(backbone("llama"))
    save_folder(folder, load_backbone_as_scalar(backbone("llama"), 0, tokenizer), tokenizer)
    return folder


def test_the_same_bits_in_any_order_window_and_company(reward_model: Path) -> None:
    from starling.models.scorer import Scorer, score_conversations

    scorer = Scorer(reward_model)
    rng = random.Random(0)
    rows: list[dict[str, Any]] = [
        {"id": str(i), "prompt": "hello " * rng.randint(1, 9), "answers": ["cat " * rng.randint(1, 40) for _ in range(3)]}
        for i in range(20)
    ]
    rows.append({**rows[3], "id": "again"})
    rows.append({"id": "long", "prompt": "hello", "answers": ["dog " * 300]})  # cut to the model's 128 tokens
    alone = {(s.id, s.answer): s.reward for row in rows for s in score_items(scorer, [item(row)])}
    for window in (1, 7, 100):
        rng.shuffle(rows)
        found = {(s.id, s.answer): s.reward for s in score_items(scorer, [item(row) for row in rows], window=window)}
        assert found == alone
    assert len(set(alone.values())) > 30
    plain = score_conversations(reward_model, [(HELLO, "dog " * 300, True)])
    assert alone["long", 0] == pytest.approx(plain[0], abs=1e-5)


def test_on_a_gpu_like_lengths_share_a_pass_and_the_scores_are_the_same_to_rounding(reward_model: Path) -> None:
    import torch

    from starling.models.scorer import Scorer

    scorer = Scorer(reward_model)
    rows = scorer.encode([(HELLO, "cat " * (i * 7 % 30 + 1)) for i in range(60)])
    alone = scorer.score(rows)
    told: list[int] = []
    scorer.device = torch.device("cuda")  # decides how rows are grouped; the weights stay where they are
    together = scorer.score(rows, told.append)
    assert together == pytest.approx(alone, abs=1e-5)
    assert sum(told) == 60
    assert len(told) < 10


def test_the_command_reads_files_and_writes_one(reward_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "hello", "response": "a cat"}, {"prompt": "hello", "chosen": "a cat", "rejected": "a dog"}]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert cli.call(["score", str(reward_model), str(source), "--out", str(tmp_path / "out.jsonl")]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"out": str(tmp_path / "out.jsonl"), "outcomes": {"scored": 3}}
    assert "scoring rows: 2/2 (100 %)" in err
    assert cli.call(["score", str(reward_model), str(source)]) == 0
    assert capsys.readouterr().out == (tmp_path / "out.jsonl").read_text("utf-8")
    found = read_scores(tmp_path / "out.jsonl")
    assert found[0].reward == found[1].reward != found[2].reward

    write_jsonl(source, [*rows, {"prompt": "hello"}])
    assert cli.call(["score", str(reward_model), str(source), "--out", str(tmp_path / "out.jsonl")]) == 1
    assert f"{source}, row 3" in capsys.readouterr().err
    assert [s.outcome for s in read_scores(tmp_path / "out.jsonl")] == ["scored"] * 3 + ["unreadable"]
    assert cli.call(["score", str(reward_model), "--out", "x.jsonl"]) == 2
    assert cli.call(["score", str(reward_model), str(source), "--dtype", "int8"]) == 2
    assert cli.call(["score", str(reward_model), str(tmp_path / "none.jsonl")]) == 1


def test_a_torch_checkpoint_is_sent_to_the_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rm.pt").touch()
    for path in (tmp_path, tmp_path / "rm.pt"):
        assert cli.call(["score", str(path)]) == 1
        assert "starling export-reward" in capsys.readouterr().err
