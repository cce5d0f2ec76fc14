"""Votes from every known kind of file; every row under a named outcome; parquet and text alike."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from starling.errors import InputError
from starling.ratings import reading
from starling.ratings.battles import STYLE_FEATURES, Battles
from starling.ratings.reading import read_categories, read_votes
from starling.records import Comparison, Outcome

META = {
    "sum_assistant_a_tokens": 100,
    "header_count_a": {"h1": 1, "h2": 2, "h3": 0, "h4": 0, "h5": 0, "h6": 0},
    "list_count_a": {"ordered": 4, "unordered": 1},
    "bold_count_a": {"**": 3, "__": 0},
    "sum_assistant_b_tokens": 50,
    "header_count_b": {"h1": 0, "h2": 0, "h3": 0, "h4": 0, "h5": 0, "h6": 0},
    "list_count_b": {"ordered": 0, "unordered": 2},
    "bold_count_b": {"**": 0, "__": 1},
}
LOG: list[dict[str, Any]] = [
    {
        "question_id": "q1", "model_a": "x", "model_b": "y", "winner": "model_a", "judge": "arena_user_1", "turn": 1,
        "anony": True,
        "language": "English", "tstamp": 1682351591.1, "conv_metadata": META,
    },
    {
        "question_id": "q2", "model_a": "y", "model_b": "z", "winner": "tie (bothbad)", "judge": "arena_user_2", "turn": 2,
        "anony": False, "language": "German", "tstamp": 1682351600.0, "conv_metadata": META,
    },
    {
        "question_id": "q3", "model_a": " z ", "model_b": "x", "winner": "model_b", "judge": "arena_user_1", "turn": 1,
        "anony": True,
        "language": "English", "tstamp": 1682351700.0, "conv_metadata": META,
    },
]  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as the kind of file that the name says."""
    name = path.name
    if name.endswith(".parquet"):
        fields = dict.fromkeys(key for row in rows for key in row)
        pq.write_table(pa.table({key: [row.get(key) for row in rows] for key in fields}), path)
    elif name.removesuffix(".gz").endswith(".json"):
        text = json.dumps(rows, indent=1)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    elif not name.endswith(".parquet"):
        path.write_text(text, encoding="utf-8")
    return path


def names(battles: Battles, column: str) -> list[str]:
    named = getattr(battles, column)
    return [named.names[code] for code in named.codes_N]


def verdicts(battles: Battles) -> list[tuple[str, str, float]]:
    return [
        (battles.models[a], battles.models[b], score)
        for a, b, score in zip(battles.a_N, battles.b_N, battles.score_a_N.tolist(), strict=True)
    ]


@pytest.mark.parametrize("name", ["log.json", "log.json.gz", "log.jsonl", "log.jsonl.gz", "log.parquet"])
def test_a_battle_log(tmp_path: Path, name: str) -> None:
    votes = read_votes([write(tmp_path / name, LOG)])
    battles = votes.battles
    assert votes.outcomes == {"rated": 3}
    assert verdicts(battles) == [("x", "y", 1), ("y", "z", 0.5), ("z", "x", 0)]
    assert names(battles, "judge") == ["arena_user_1", "arena_user_2", "arena_user_1"]
    assert names(battles, "prompt") == ["q1", "q2", "q3"]
    assert names(battles, "language") == ["English", "German", "English"]
    assert names(battles, "turn") == ["1", "2", "1"]
    assert battles.category is None
    assert battles.time_N is not None
    assert battles.time_N.tolist() == [1682351591.1, 1682351600.0, 1682351700.0]
    assert battles.anonymous_N is not None
    assert battles.anonymous_N.tolist() == [True, False, True]
    assert battles.style_a_NF is not None
    assert battles.style_b_NF is not None
    assert battles.style_a_NF.tolist() == [[100, 3, 5, 3]] * 3
    assert battles.style_b_NF.tolist() == [[50, 0, 2, 1]] * 3


def test_columns_that_nobody_wants_are_not_there(tmp_path: Path) -> None:
    battles = read_votes([write(tmp_path / "log.parquet", LOG)], wanted=frozenset({"language"})).battles
    assert battles.language is not None
    assert [battles.judge, battles.prompt, battles.turn, battles.time_N, battles.anonymous_N, battles.style_a_NF] == [None] * 6


@pytest.mark.parametrize("name", ["log.jsonl", "log.parquet"])
def test_batches_and_several_files_are_one_reading(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [LOG[i % 3] | {"model_a": f"m{i % 5}", "question_id": f"q{i % 7}"} for i in range(40)]
    whole = read_votes([write(tmp_path / name, rows)]).battles
    monkeypatch.setattr(reading, "BATCH", 3)
    parts = [write(tmp_path / f"{i}{name}", rows[i : i + 20]) for i in (0, 20)]
    for paths in ([tmp_path / name], parts):
        battles = read_votes(paths).battles
        assert verdicts(battles) == verdicts(whole)
        assert names(battles, "prompt") == names(whole, "prompt")
        assert battles.style_a_NF is not None
        assert (battles.style_a_NF == whole.style_a_NF).all()


def test_a_column_of_one_of_two_files(tmp_path: Path) -> None:
    bare = [{"model_a": "p", "model_b": "q", "winner": "tie"}]
    battles = read_votes([write(tmp_path / "a.json", bare), write(tmp_path / "b.jsonl", LOG)]).battles
    assert names(battles, "judge") == ["", "arena_user_1", "arena_user_2", "arena_user_1"]
    assert battles.time_N is not None
    assert np.isnan(battles.time_N).tolist() == [True, False, False, False]
    assert battles.anonymous_N is not None
    assert battles.anonymous_N.tolist() == [False, True, False, True]
    assert battles.style_b_NF is not None
    assert np.isnan(battles.style_b_NF[0]).all()


@pytest.mark.parametrize("name", ["bad.jsonl", "bad.parquet"])
def test_every_row_has_an_outcome(tmp_path: Path, name: str) -> None:
    base = {"model_a": "x", "model_b": "y", "winner": "model_a", "score_a": None}
    rows = [
        base,
        base | {"winner": None},
        base | {"winner": ""},
        base | {"winner": "model_c"},
        base | {"model_b": "x"},
        base | {"model_a": None},
        base | {"model_a": "  "},
        base | {"winner": None, "score_a": 0.25},
        base | {"winner": None, "score_a": 1.5},
        base | {"winner": "tie (inconsistent)"},
        base | {"model_a": "idle", "winner": "?"},
    ]
    votes = read_votes([write(tmp_path / name, rows)])
    assert votes.outcomes == {
        "rated": 3, "no_verdict": 2, "unknown_winner": 2, "same_model": 1, "no_model": 2, "bad_score": 1
    }  # fmt: skip
    assert votes.rows == len(rows)
    assert votes.unknown_winners == ("?", "model_c")
    assert verdicts(votes.battles) == [("x", "y", 1), ("x", "y", 0.25), ("x", "y", 0.5)]
    assert votes.battles.models == ("x", "y")


def test_lines_that_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("nonsense\n[1]\n" + json.dumps(LOG[0]) + "\n" + '{"foreign": 1}\n', encoding="utf-8")
    assert read_votes([path]).outcomes == {"not_json": 1, "not_an_object": 1, "rated": 1, "no_model": 1}


@pytest.mark.parametrize("name", ["pair.jsonl", "pair.parquet"])
def test_pair_judgments_are_ties_unless_both_orders_agree(tmp_path: Path, name: str) -> None:
    base = {"question_id": 81, "model_1": "x", "model_2": "y", "judge": ["gpt-4", "pair-v2"], "turn": 1, "tstamp": 1.0}
    games = [("model_1", "model_1"), ("model_2", "model_2"), ("model_1", "model_2"), ("tie", "model_1"), ("tie", "tie")]
    games += [("error", "model_1"), ("model_2", "error")]
    votes = read_votes([write(tmp_path / name, [base | {"g1_winner": g1, "g2_winner": g2} for g1, g2 in games])])
    assert votes.battles.score_a_N.tolist() == [1, 0, 0.5, 0.5, 0.5]
    assert votes.outcomes == {"rated": 5, "error": 2}
    assert votes.unknown_winners == ()
    assert set(names(votes.battles, "judge")) == {"gpt-4/pair-v2"}
    assert set(names(votes.battles, "prompt")) == {"81"}


def test_left_or_right_votes_with_categories(tmp_path: Path) -> None:
    path = tmp_path / "crowd.csv"
    path.write_text(
        "id,prompt,model_x,model_y,worker,winner,left,right\n0,8,97,98,58,tie,X,Y\n0,5,97,98,83,left,X,Y\n1,9,97,98,58,right,Y,X\n"
        "1,9,97,98,58,,Y,X\n",
        encoding="utf-8",
    )
    prompts = write(tmp_path / "prompts.jsonl", [{"id": 8, "type": "reflexion"}, {"id": 5, "type": "knowledge"}, {"id": 1}])
    votes = read_votes([path], categories=read_categories(prompts))
    assert verdicts(votes.battles) == [("X", "Y", 0.5), ("X", "Y", 1), ("Y", "X", 0)]
    assert names(votes.battles, "category") == ["reflexion", "knowledge", ""]
    assert names(votes.battles, "judge") == ["58", "83", "58"]
    assert votes.outcomes == {"rated": 3, "no_verdict": 1}
    with pytest.raises(InputError, match="No prompt of the file has a category"):
        read_categories(path)


@pytest.mark.parametrize("name", ["own.jsonl", "own.parquet"])
def test_our_own_comparisons(tmp_path: Path, name: str) -> None:
    def row(winner: str | None, outcome: Outcome) -> dict[str, Any]:
        found = Comparison.model_validate(
            {"prompt_id": "p", "a": "base", "b": "tuned", "winner": winner, "by": "judge", "outcome": outcome}
        )
        return found.model_dump(mode="json")

    ranked = [row(winner, Outcome.ranked) for winner in ("a", "b", "tie")]
    votes = read_votes([write(tmp_path / name, [*ranked, row(None, Outcome.unparsed), row(None, Outcome.refused)])])
    assert verdicts(votes.battles) == [("base", "tuned", 1), ("base", "tuned", 0), ("base", "tuned", 0.5)]
    assert votes.outcomes == {"rated": 3, "unparsed": 1, "refused": 1}
    assert names(votes.battles, "judge") == ["judge"] * 3


HUMAN = {
    "question_id": 81, "model_a": "x", "model_b": "y", "winner": "model_b", "judge": "expert_1", "turn": 2,
    "conversation_a": [{"role": "user", "content": "# no"}, {"role": "assistant", "content": "# One\n- two\n- **three**"}],
    "conversation_b": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "a" * 40}],
}  # fmt: skip


@pytest.mark.parametrize("name", ["votes.jsonl", "votes.parquet"])
def test_style_is_counted_where_the_log_does_not_tell(tmp_path: Path, name: str) -> None:
    without_b = {k: v for k, v in META.items() if not k.endswith("_b") and k != "sum_assistant_b_tokens"}
    rows = [HUMAN, HUMAN | {"conv_metadata": META}, HUMAN | {"conv_metadata": without_b}, HUMAN | {"conversation_b": None}]
    battles = read_votes([write(tmp_path / name, rows)]).battles
    counted_a, counted_b = [6, 1, 2, 1], [10, 0, 0, 0]
    assert battles.style_a_NF is not None
    assert battles.style_b_NF is not None
    # A log that tells only one side is not believed: its tokens do not compare with ours.
    assert battles.style_a_NF[:3].tolist() == [counted_a, [100, 3, 5, 3], counted_a]
    assert battles.style_b_NF[:3].tolist() == [counted_b, [50, 0, 2, 1], counted_b]
    assert np.isnan(battles.style_b_NF[3]).all()
    assert len(STYLE_FEATURES) == battles.style_a_NF.shape[1]
    assert names(battles, "judge") == ["expert_1"] * 4


def test_parquet_of_other_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "model_a": pa.array(["x", "y"]).dictionary_encode(),
            "model_b": pa.array(["y", "x"], pa.large_string()),
            "winner": pa.array(["model_a", "tie"]).dictionary_encode(),
            "judge": pa.array([7, None], pa.int64()),
            "timestamp": pa.array([1_000_000, 2_500_000], pa.timestamp("us", "UTC")),
            "anony": pa.array([1, 0]),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    battles = read_votes([tmp_path / "a.parquet"]).battles
    assert verdicts(battles) == [("x", "y", 1), ("y", "x", 0.5)]
    assert names(battles, "judge") == ["7", ""]
    assert battles.time_N is not None
    assert battles.time_N.tolist() == [1, 2.5]
    texts = [
        LOG[0] | {"tstamp": "1970-01-01T00:00:10"},
        LOG[1] | {"tstamp": "1970-01-01T01:00:10+01:00"},
        LOG[2] | {"tstamp": "?"},
    ]
    for name in ("t.jsonl", "t.parquet"):
        times_N = read_votes([write(tmp_path / name, texts)]).battles.time_N
        assert times_N is not None
        assert times_N[:2].tolist() == [10, 10]
        assert np.isnan(times_N[2])


def test_names_beyond_number_are_told_apart_by_their_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [LOG[0] | {"question_id": f"q{i % 11}", "judge": "" if i % 4 else f"j{i}"} for i in range(60)]
    path = write(tmp_path / "log.parquet", rows)
    plain = read_votes([path]).battles
    monkeypatch.setattr(reading, "BATCH", 7)
    monkeypatch.setattr(reading, "MOST_NAMES", 15)
    hashed = read_votes([path]).battles
    for column in ("prompt", "judge"):
        whole, short = names(plain, column), names(hashed, column)
        assert len(set(zip(whole, short, strict=True))) == len(set(whole)) == len(set(short))
        assert [name == "" for name in whole] == [name == "" for name in short]
    assert hashed.prompt is not None
    assert len(hashed.prompt.names[1:3]) == 2
    assert len(hashed.prompt.names[0]) == 16


def test_what_cannot_be_read(tmp_path: Path) -> None:
    foreign = write(tmp_path / "f.jsonl", [{"prompt": "?", "answer": "!"}])
    with pytest.raises(InputError, match="no votes of a known kind: its fields are prompt, answer"):
        read_votes([foreign])
    with pytest.raises(InputError, match="no votes of a known kind"):
        read_votes([write(tmp_path / "f.parquet", [{"prompt": "?"}])])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot be opened"):
        read_votes([tmp_path / "broken.parquet"])
    with pytest.raises(InputError, match="does not exist"):
        read_votes([tmp_path / "none.jsonl"])
    log = write(tmp_path / "n.jsonl", [{"model_a": "x", "model_b": "y", "winner": "tie"}])
    with pytest.raises(InputError, match="do not say their prompt"):
        read_votes([log], categories={"8": "knowledge"})
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    empty = read_votes([tmp_path / "empty.jsonl"])
    assert (empty.rows, len(empty.battles)) == (0, 0)
