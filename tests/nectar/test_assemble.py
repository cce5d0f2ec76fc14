"""Joining prompts, responses, rankings and judgments: rows worked by hand, counts of what is left out, files that do not fit."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from starling.config import DatasetSection
from starling.errors import ArtifactError
from starling.nectar import assemble, read_nectar, write_splits
from starling.records import (
    Finish,
    Judgment,
    MergedRanking,
    Message,
    Outcome,
    PairSupport,
    PairVerdict,
    PlacedVerdict,
    Prompt,
    RankedPair,
    RankedPrompt,
    Response,
)


def prompt(text: str, split: str = "train", role: str = "user") -> Prompt:
    system = (Message(role="system", content="be nice"),) if role == "system" else ()
    return Prompt.make((*system, Message(role="user", content=text)), ("s",), split)


A, B, C = prompt("a"), prompt("b", "validation"), prompt("c")


def response(of: Prompt, model: str, finish: Finish = Finish.stop) -> Response:
    text = "" if finish is Finish.error else f"I am {model}"
    return Response(id=f"{of.id}-{model}", prompt_id=of.id, model=model, text=text, finish=finish, call_id="c")


def ids(of: Prompt, models: str) -> tuple[str, ...]:
    return tuple(f"{of.id}-{m}" for m in models)


def judgment(of: Prompt, best_first: str, verdicts: str = "") -> Judgment:
    """verdicts="xy>x yz>z": of x and y, named in this order, x wins; of y and z, z."""
    split = [v.split(">") for v in verdicts.split()]
    named = [PairVerdict(first=ids(of, a)[0], second=ids(of, b)[0], winner=ids(of, w)[0]) for (a, b), w in split]
    return Judgment(
        prompt_id=of.id, rubric="rubric", judge="judge", shown=tuple(sorted(ids(of, best_first))), pair_order=(),
        outcome=Outcome.ranked, ranking=ids(of, best_first), good_natured=False, pair_verdicts=tuple(named), call_id="call",
    )  # fmt: skip


def ranking(of: Prompt, *tiers: str, outcome: Outcome = Outcome.ranked, **changes: Any) -> MergedRanking:
    given: dict[str, Any] = {
        "prompt_id": of.id, "outcome": outcome, "tiers": tuple(ids(of, t) for t in tiers), "good_natured": False, "pairs": (),
        "contested": False, "calls": ("call",),
    }  # fmt: skip
    return MergedRanking.model_validate(given | changes)


def joined(prompts: Any, responses: Any, rankings: Any, judgments: Any = (), **settings: Any) -> tuple[list[RankedPrompt], Any]:
    found = assemble(prompts, responses, rankings, judgments, DatasetSection(**settings))
    return list(found), found.left_out


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_ranking_becomes_a_row_best_first() -> None:
    said = judgment(A, "yzx")
    [row], left_out = joined([A], [response(A, m) for m in "xyz"], [ranking(A, "y", "z", "x")], [said])
    assert [(a.model, a.answer, a.rank) for a in row.answers] == [("y", "I am y", 1), ("z", "I am z", 2), ("x", "I am x", 3)]
    assert row.prompt == A
    assert row.good_natured is False
    assert row.lineage == {"judge": "judge", "rubric": "rubric", "calls": "call"}
    assert (row.contested, row.judge_calls, row.pairs, row.verdicts) == (False, 1, (), ())
    assert left_out == {}


def test_pairs_and_verdicts_name_answers_by_their_place() -> None:
    """Two calls; y is first, z second, x third. The first call's verdict x over y is kept though the ranking says otherwise."""
    y, z, x = ids(A, "yzx")
    support = [(y, z, 2.0, 2.0), (y, x, 1.0, 2.0), (z, x, 1.5, 2.0)]
    merged = ranking(
        A, "y", "z", "x", contested=True, calls=("c1", "c2"), good_natured=True,
        pairs=tuple(PairSupport(better=b, worse=w, support=s, weight=n) for b, w, s, n in support),
    )  # fmt: skip
    calls = [judgment(A, "yzx", "xy>x zy>y"), judgment(A, "yxz", "xy>y")]
    [row], _ = joined([A], [response(A, m) for m in "xyz"], [merged], calls)
    assert row.pairs == tuple(
        RankedPair(better=b, worse=w, confidence=c, weight=2) for b, w, c in ((0, 1, 1.0), (0, 2, 0.5), (1, 2, 0.75))
    )
    assert row.verdicts == tuple(PlacedVerdict(first=f, second=s, winner=w) for f, s, w in ((2, 0, 2), (1, 0, 0), (2, 0, 0)))
    assert (row.contested, row.judge_calls, row.good_natured) == (True, 2, True)
    assert row.lineage["calls"] == "c1 c2"


def test_tiers_become_competition_ranks() -> None:
    [row], _ = joined([A], [response(A, m) for m in "vwxyz"], [ranking(A, "w", "yx", "v", "z")])
    assert [(a.model, a.rank) for a in row.answers] == [("w", 1), ("y", 2), ("x", 2), ("v", 4), ("z", 5)]
    assert row.tied
    [row], _ = joined([A], [response(A, m) for m in "xyz"], [ranking(A, "zyx")])
    assert [a.rank for a in row.answers] == [1, 1, 1]


def test_answers_that_the_judge_did_not_see_are_not_in_the_row() -> None:
    responses = [response(A, "x"), response(A, "y", Finish.error), response(A, "z", Finish.length)]
    [row], _ = joined([A], responses, [ranking(A, "z", "x")])
    assert [a.model for a in row.answers] == ["z", "x"]


def test_what_is_not_in_the_dataset_is_counted() -> None:
    system = prompt("d", role="system")
    prompts = [prompt(str(i)) for i in range(3)] + [B, system, A, C]
    responses = [response(p, m) for p in prompts for m in "xyz"]
    rankings = [
        *(ranking(p, outcome=o) for p, o in zip(prompts, (Outcome.unparsed, Outcome.unparsed, Outcome.too_long), strict=False)),
        ranking(B, "x", "y"),
        ranking(system, "x", "y", "z"),
        ranking(A, "x", "y", "z"),
    ]  # C was never judged: the ranking stage counted it
    rows, left_out = joined(prompts, responses, rankings, min_answers=3)
    assert [r.prompt for r in rows] == [A]
    assert left_out == {"no_transcript": 1, "too_few_answers": 1, "too_long": 1, "unparsed": 2}
    assert sum(left_out.values()) + len(rows) == len(rankings)


def test_it_can_be_read_twice_with_the_same_counts() -> None:
    found = assemble([A, B], [], [ranking(A, outcome=Outcome.refused)], [], DatasetSection())
    assert (list(found), found.left_out, list(found), found.left_out) == ([], {"refused": 1}, [], {"refused": 1})


# ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_reads_no_further_than_the_prompt_it_is_at() -> None:
    """Endless sources: whatever held all of one of them would never come back."""
    read = {"responses": 0, "rankings": 0}

    def counted(name: str, make: Any) -> Any:
        for number in itertools.count():
            for record in make(prompt(str(number))):
                read[name] += 1
                yield record

    rows = iter(
        assemble(
            (prompt(str(n)) for n in itertools.count()),
            counted("responses", lambda p: [response(p, m) for m in "xy"]),
            counted("rankings", lambda p: [ranking(p, "x", "y")]),
            (),
            DatasetSection(),
        )
    )
    assert [next(rows).prompt.messages[0].content for _ in range(5)] == ["0", "1", "2", "3", "4"]
    assert read == {"responses": 11, "rankings": 6}, "one record ahead, to see where a prompt's records end"


@pytest.mark.parametrize(
    ("prompts", "responses", "rankings", "judgments", "said"),
    [
        ([], [response(A, "x")], [], [], "A response belongs to a prompt that is not there"),
        ([A], [response(A, "x")], [ranking(A, "x", "y")], [], f"names the response '{A.id}-y', which is not there"),
        ([A], [response(A, "x"), response(A, "y")], [ranking(A, "x", "y")], [judgment(A, "xz", "xz>x")], "not there"),
        ([A], [response(A, "x"), response(A, "y")], [ranking(B, "x", "y")], [], "A ranking belongs to a prompt"),
        ([A, B], [], [ranking(B, "x", outcome=Outcome.ranked)], [judgment(A, "xy")], "no merged ranking of it"),
        ([A, B], [response(B, "x"), response(A, "x")], [], [], "out of the order of the prompts"),
        ([A, B], [response(A, "x"), response(B, "x"), response(A, "y")], [], [], "out of the order of the prompts"),
        ([A, B], [], [ranking(B, outcome=Outcome.refused), ranking(A, outcome=Outcome.refused)], [], "out of the order"),
        ([A], [], [ranking(A, outcome=Outcome.refused)] * 2, [], "several merged rankings of one prompt"),
        ([B], [], [ranking(B, outcome=Outcome.refused)], [judgment(A, "xy")], "A judgment belongs to a prompt"),
    ],
)  # fmt: skip
def test_files_of_different_runs_are_refused(prompts: Any, responses: Any, rankings: Any, judgments: Any, said: str) -> None:
    with pytest.raises(ArtifactError, match=said):
        joined(prompts, responses, rankings, judgments, min_answers=2)


def test_splits_go_into_files_of_their_own_in_prompt_order(tmp_path: Path) -> None:
    prompts = [prompt(str(i), ("train", "validation", "train", "test")[i % 4]) for i in range(12)]
    responses = [response(p, m) for p in prompts for m in "xy"]
    rows = assemble(prompts, responses, [ranking(p, "y", "x", calls=("a", "b")) for p in prompts], (), DatasetSection())
    assert write_splits(tmp_path, rows) == 12
    assert sorted(f.name for f in tmp_path.iterdir()) == ["test.parquet", "train.parquet", "validation.parquet"]
    train = read_nectar(tmp_path / "train.parquet")
    assert [r.prompt.messages[0].content for r in train] == ["0", "2", "4", "6", "8", "10"]
    assert {(r.contested, r.judge_calls) for r in train} == {(False, 2)}


def test_without_rows_there_is_an_empty_train_file(tmp_path: Path) -> None:
    assert write_splits(tmp_path, []) == 0
    assert [f.name for f in tmp_path.iterdir()] == ["train.parquet"]
    assert read_nectar(tmp_path / "train.parquet") == []
