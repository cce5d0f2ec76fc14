"""The figures of the card, worked by hand, and against plain counting over many rows."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from starling.errors import InputError
from starling.nectar import NectarFile, Ranks, check, summarise, write_nectar
from starling.records import Message, Prompt, RankedPair, RankedPrompt


def row(models: str, ranks: tuple[float, ...], good: bool | None, *sources: str, turns: int = 1, **more: object) -> RankedPrompt:
    said = [Message(role="user", content="a"), Message(role="assistant", content="b")] * turns
    return RankedPrompt.model_validate(
        {
            "prompt": Prompt.make(tuple(said[:-1]), sources),
            "answers": [{"answer": "x", "model": m, "rank": r} for m, r in zip(models, ranks, strict=True)],
            "good_natured": good,
            **more,
        }
    )


def pair(better: int, worse: int, confidence: float) -> RankedPair:
    return RankedPair(better=better, worse=worse, confidence=confidence, weight=2)


ROWS = [
    row("ab", (1, 2), True, "s", contested=False, judge_calls=1, pairs=(pair(0, 1, 1),)),
    row("ba", (1, 2), False, "s", "t", contested=True, judge_calls=3, pairs=(pair(0, 1, 0.75),)),
    row("acb", (1, 2, 2), True, turns=2, contested=True, judge_calls=3, pairs=(pair(0, 1, 0.5), pair(0, 2, 0.25), pair(1, 2, 0))),
    row("bc", (1, 1), None, "t", turns=2),
]


def test_figures_by_hand(tmp_path: Path) -> None:
    write_nectar(tmp_path / "a.parquet", ROWS[:3], extra=True)
    write_nectar(tmp_path / "b.parquet", ROWS[3:], extra=True)
    found = summarise([tmp_path / "a.parquet", tmp_path / "b.parquet"])
    assert found.rows == 4
    assert found.answers == {2: 3, 3: 1}
    assert found.turns == {1: 2, 2: 2}
    assert found.sources == {"s": 2, "t": 2}
    assert found.good_natured == {True: 2, False: 1, None: 1}
    assert found.good_natured_share == pytest.approx(2 / 3)
    assert found.tied == 2
    assert found.contested == {False: 1, True: 2, None: 1}
    assert found.judge_calls == {1: 1, 3: 2, None: 1}
    assert found.confidence == {"all for": 1, "most for": 1, "balanced": 1, "most against": 1, "all against": 1}
    a, b, c = (found.models[m] for m in "abc")
    assert a.every == Ranks(answers=3, rank_sum=4, firsts=2)
    assert a.every.mean == pytest.approx(4 / 3)
    assert (a.good_natured, a.not_good_natured) == (Ranks(2, 2, 2), Ranks(1, 2, 0))
    assert (b.every, b.good_natured, b.not_good_natured) == (Ranks(4, 6, 2), Ranks(2, 4, 0), Ranks(1, 1, 1))
    assert (c.every, c.good_natured, c.not_good_natured.mean) == (Ranks(2, 3, 1), Ranks(1, 2, 0), None)


def test_without_rows_and_without_extra_columns(tmp_path: Path) -> None:
    write_nectar(tmp_path / "a.parquet", [])
    empty = summarise([tmp_path / "a.parquet"])
    assert (empty.rows, empty.good_natured_share, empty.models) == (0, None, {})
    write_nectar(tmp_path / "b.parquet", ROWS)
    found = summarise([tmp_path / "b.parquet"])
    assert (found.rows, found.contested, found.judge_calls, found.confidence) == (4, {}, {}, {})


def test_many_rows_in_many_batches_are_what_plain_counting_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    rows = []
    for _ in range(300):
        k = rng.randint(2, 6)
        ranks = [1.0]
        for place in range(2, k + 1):
            ranks.append(ranks[-1] if rng.random() < 0.2 else float(place))
        rows.append(row("".join(rng.sample("abcdefg", k)), tuple(ranks), rng.choice([True, False, None]), rng.choice("st")))
    write_nectar(tmp_path / "a.parquet", rows, extra=True)
    monkeypatch.setattr(check, "BATCH_ROWS", 7)
    found = summarise([tmp_path / "a.parquet"])
    back = list(NectarFile(tmp_path / "a.parquet"))
    assert found.tied == sum(r.tied for r in back)
    assert found.sources == Counter(s for r in back for s in r.prompt.sources)
    for model, figures in found.models.items():
        for view, tally in ((None, figures.every), (True, figures.good_natured), (False, figures.not_good_natured)):
            own = [a.rank for r in back if view is None or r.good_natured is view for a in r.answers if a.model == model]
            assert tally == Ranks(len(own), sum(own), own.count(1.0))


def test_a_broken_row_is_no_figure(tmp_path: Path) -> None:
    write_nectar(tmp_path / "a.parquet", ROWS)
    table = pq.read_table(tmp_path / "a.parquet")
    pq.write_table(table.set_column(2, "turns", [[9] * 4]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="row 1"):
        summarise([tmp_path / "a.parquet"])
