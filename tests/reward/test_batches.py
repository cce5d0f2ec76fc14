"""Rankings as tokens on disk: what was put in comes out, once made it is not made again, bad ones are counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starling.config import RewardSection
from starling.errors import InputError
from starling.models.encode import Encoder
from starling.models.tree import pack
from starling.records import RankedAnswer, RankedPair, RankedPrompt
from starling.reward import batches
from starling.reward.batches import EncodedRanking, TokenStore, build_store, encode_rankings
from starling.reward.train import sharing

Make = Callable[..., Any]
SETTINGS = RewardSection(over_long="drop")


class Once:
    """Rows that can be read again and say how often they were; never a list."""

    def __init__(self, rows: list[RankedPrompt]) -> None:
        self.rows, self.times = rows, 0

    def __iter__(self) -> Iterator[RankedPrompt]:
        self.times += 1
        return iter(self.rows)


@pytest.fixture
def encoder(decoder_tokenizer: Any) -> Encoder:
    return Encoder(decoder_tokenizer, 64)


def mixed(make_rankings: Make) -> list[RankedPrompt]:
    """Ties, pairs, several K, one answer too long, one ranking with a single answer that fits, one that is empty text."""
    rows: list[RankedPrompt] = make_rankings(300, k=3) + make_rankings(4, k=7, seed=2) + make_rankings(3, k=2, seed=3)
    long = "dog " * 80
    first, second = rows[0], rows[1]
    tied = (
        first.answers[0],
        first.answers[1].model_copy(update={"rank": 2.0}),
        first.answers[2].model_copy(update={"rank": 2.0}),
    )
    pairs = (RankedPair(better=0, worse=2, confidence=0.75, weight=2.0),)
    rows[0] = first.model_copy(update={"answers": tied, "pairs": pairs})
    shortened = (RankedAnswer(answer=long, model="x", rank=1.0), *second.answers[1:])
    rows[1] = second.model_copy(
        update={"answers": shortened, "pairs": (*pairs, RankedPair(better=1, worse=2, confidence=1.0, weight=1.0))}
    )
    alone = (RankedAnswer(answer="cat", model="x", rank=1.0), RankedAnswer(answer=long, model="y", rank=2.0))
    rows[2] = rows[2].model_copy(update={"answers": alone})
    rows[3] = rows[3].model_copy(update={"answers": (RankedAnswer(answer="", model="x", rank=1.0), *rows[3].answers[1:])})
    return rows


def test_what_was_put_in_comes_out(make_rankings: Make, encoder: Encoder, tmp_path: Path) -> None:
    rows = mixed(make_rankings)
    store = build_store(tmp_path / "store", Once(rows), encoder, SETTINGS)
    wanted: list[EncodedRanking] = list(encode_rankings(rows, encoder, SETTINGS, Counter()))
    assert list(store) == wanted
    assert len(store) == len(rows) - 1
    assert store[0].ranks == (1, 2, 2)
    assert store[0].pairs == rows[0].pairs
    assert store[1].ranks == (1, 2)  # the best was too long: the second became the first
    assert [(p.better, p.worse) for p in store[1].pairs] == [(0, 1)]
    assert store[-1] == wanted[-1]
    assert store[2:4] == wanted[2:4]
    assert store.sizes.tolist() == [len(r.answers) for r in wanted]
    assert store.longest.tolist() == [r.longest for r in wanted]
    assert store.shared.tolist() == [pack([[a.ids for a in r.answers]]).tokens for r in wanted]  # as the rows are that are made
    answers = 300 * 3 + 4 * 7 + 3 * 2 - 1
    assert store.counts == {
        "answers/whole": answers - 2, "answers/dropped": 2, "rankings/read": 307, "rankings/shortened": 1, "rankings/dropped": 1,
        "rankings/without_confidence": 307 - sum(bool(row.pairs) for row in rows),
    }  # fmt: skip
    with pytest.raises(IndexError):
        store[len(store)]


def test_chunks_change_nothing(make_rankings: Make, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = mixed(make_rankings)[:20]
    whole = build_store(tmp_path / "whole", rows, encoder, SETTINGS)
    monkeypatch.setattr(batches, "CHUNK", 3)
    cut = build_store(tmp_path / "cut", rows, encoder, SETTINGS)
    assert (cut.digest, cut.counts, list(cut)) == (whole.digest, whole.counts, list(whole))


def test_it_is_made_once_per_rows_tokenizer_and_lengths(
    make_rankings: Make, encoder: Encoder, decoder_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rankings(5)
    built = build_store(tmp_path / "store", rows, encoder, SETTINGS)
    made: list[Path] = []
    original = batches._write
    monkeypatch.setattr(batches, "_write", lambda folder, *rest: made.append(folder) or original(folder, *rest))
    assert build_store(tmp_path / "store", rows, encoder, SETTINGS).digest == built.digest
    assert made == []
    changed = [rows[0].model_copy(update={"answers": rows[1].answers}), *rows[1:]]
    for other in (
        (changed, encoder, SETTINGS),
        (rows[:4], encoder, SETTINGS),
        (rows[:4], Encoder(decoder_tokenizer, 63), SETTINGS),
        (rows[:4], Encoder(decoder_tokenizer, 63), RewardSection(over_long="truncate_left")),
    ):
        build_store(tmp_path / "store", *other)
        build_store(tmp_path / "store", *other)
    assert len(made) == 4


def test_an_order_is_the_ranking_without_tokens(make_rankings: Make, encoder: Encoder, tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", make_rankings(3), encoder, SETTINGS)
    for i, whole in enumerate(store):
        order = store.order(i)
        assert (order.prompt_id, order.ranks, order.pairs) == (whole.prompt_id, whole.ranks, whole.pairs)
        assert [a.ids for a in order.answers] == [()] * len(whole.answers)
        assert all(a.ids for a in whole.answers)


def test_a_draft_that_a_kill_left_is_made_anew(make_rankings: Make, encoder: Encoder, tmp_path: Path) -> None:
    draft = tmp_path / ".store.draft"
    draft.mkdir()
    (draft / "ids.bin").write_bytes(b"half")
    assert len(build_store(tmp_path / "store", make_rankings(3), encoder, SETTINGS)) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_nothing_and_nothing_left(make_rankings: Make, encoder: Encoder, decoder_tokenizer: Any, tmp_path: Path) -> None:
    empty = build_store(tmp_path / "a", [], encoder, SETTINGS)
    assert (len(empty), list(empty), empty.longest.tolist(), empty.sizes.tolist()) == (0, [], [], [])
    none = build_store(tmp_path / "b", make_rankings(3), Encoder(decoder_tokenizer, 3), SETTINGS)
    assert len(none) == 0
    assert none.counts["rankings/dropped"] == 3


def test_too_long_is_an_error_that_leaves_no_store(make_rankings: Make, decoder_tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="more than max_length = 5"):
        build_store(tmp_path / "s", make_rankings(3), Encoder(decoder_tokenizer, 5), RewardSection(over_long="raise"))
    assert not (tmp_path / "s").exists()


def test_tokens_are_mapped_not_read(make_rankings: Make, encoder: Encoder, tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", make_rankings(4), encoder, SETTINGS)
    assert isinstance(store._ids, np.memmap)
    assert json.loads((tmp_path / "store" / "meta.json").read_text())["digest"] == TokenStore(tmp_path / "store").digest


def test_the_trial_takes_a_ranking_that_shares_tokens(encoder: Encoder, make_rankings: Make, tmp_path: Path) -> None:
    """Answers that are cut on the left down to themselves share nothing."""
    rows = make_rankings(4, k=2)
    long = [RankedAnswer(answer=f"{word} " * 90, model="m", rank=rank) for word, rank in (("cat", 1.0), ("dog", 2.0))]
    rows[0] = RankedPrompt(prompt=rows[0].prompt, answers=tuple(long), good_natured=None)
    settings = RewardSection(over_long="truncate_left")
    store = build_store(tmp_path / "tokens", rows, encoder, settings)
    assert store.shared[0] == sum(len(a.ids) for a in store[0].answers)
    assert sharing(store).prompt_id == rows[1].prompt.id
    alone = build_store(tmp_path / "alone", rows[:1], encoder, settings)
    assert sharing(alone).prompt_id == rows[0].prompt.id
