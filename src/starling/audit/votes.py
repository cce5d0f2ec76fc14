"""Pairwise votes of people and of judges about the same pairs: read from files, asked of a live judge, compared.

Forms read, by their columns: Chatbot Arena's (question_id, winner model_a | model_b | tie | tie (bothbad)), llmfao's crowd votes
(id, winner left | right | tie, worker) and any table with an id and a winner a | b | tie. Files: .csv, .json (a list), .jsonl,
each also .gz, and .parquet. Sources of the measures: Zheng et al. 2023 (arXiv 2306.05685, section 4.2) for the chance that a
judge and a person agree, with ties and among decided votes only, beside the chance that two people do; Cohen's kappa and
Krippendorff's alpha for agreement beyond chance.

Departures: every interval resamples prompts where the file names them (pairs otherwise), since votes about one prompt are not
independent; a judge's two orders that contradict each other are a tie; a vote that cannot be read has a named reason and a count.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import ValidationError

from starling.audit.consistency import as_json, as_json_row
from starling.audit.measure import RESAMPLES, clustered_share
from starling.chat import from_transcript, is_transcript
from starling.config import RankingSection
from starling.endpoint import Endpoint
from starling.errors import InputError
from starling.judge.given import Duel, compare_many
from starling.progress import SILENT, Progress
from starling.records import Comparison, Message, Messages, Prompt, content_hash
from starling.rows import Row, read_rows
from starling.stats import Interval
from starling.stats_agreement import alpha_interval, kappa_interval

Side = Literal["a", "b", "tie"]
LABELS: tuple[Side, ...] = ("a", "tie", "b")
"""In their order: a tie lies between the two."""

_WINNERS: dict[str, Side] = {
    "a": "a", "model_a": "a", "left": "a", "response_a": "a", "b": "b", "model_b": "b", "right": "b", "response_b": "b",
    "tie": "tie", "tie (bothbad)": "tie", "both_bad": "tie",
}  # fmt: skip
_IDS = ("id", "question_id", "pair_id")
_WORKERS = ("worker", "judge", "annotator", "by")
_SIDES = (("left", "right"), ("model_a", "model_b"), ("model_x", "model_y"))
_TEXTS = (("response_a", "response_b"), ("answer_a", "answer_b"), ("result_x", "result_y"))


@dataclass(frozen=True, slots=True)
class Vote:
    """One vote about one pair, e.g. Vote("17", "a", "prompt 8", ("Airoboros", "Weaver"), "worker 58")."""

    pair: str
    winner: Side
    prompt: str
    """What is resampled: the pair's prompt, or the pair itself when the file names none."""
    sides: tuple[str, str] = ("", "")
    """Names of side a and b; empty when unknown."""
    by: str = ""


@dataclass(frozen=True)
class Votes:
    """The votes of a file, and its rows that are none, by reason: those of `rows.Row`, id_missing, winner_unknown."""

    votes: tuple[Vote, ...]
    left_out: dict[str, int]


@dataclass(frozen=True)
class VotedPair:
    """A pair of answers that people voted on, with its texts."""

    pair: str
    prompt: Prompt
    a: str
    b: str


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_votes(path: Path) -> Votes:
    """The votes of a file.

    Raises:
        InputError: the file cannot be read, or holds no vote at all.
    """
    votes: list[Vote] = []
    left_out: Counter[str] = Counter()
    for row in _table(path):
        vote = _vote(row)
        if isinstance(vote, Vote):
            votes.append(vote)
        else:
            left_out[vote] += 1
    if not votes:
        reasons = ", ".join(f"{reason} {count}" for reason, count in left_out.items()) or "no rows"
        raise InputError(
            f"The file holds no vote ({reasons})",
            where=str(path),
            cure="give a table with a column `id` or `question_id` and a column `winner` of a, b or tie",
        )
    return Votes(tuple(votes), dict(sorted(left_out.items())))


def read_pairs(path: Path) -> dict[str, VotedPair]:
    """The texts of the pairs by id: a prompt (`messages`, `text` or `prompt`) and two answers. Rows without them are left out.

    Raises:
        InputError: the file cannot be read, or holds no pair at all.
    """
    found: dict[str, VotedPair] = {}
    for row in _table(path):
        pair = None if row.value is None else _pair(row.value)
        if pair is not None:
            found.setdefault(pair.pair, pair)
    if not found:
        raise InputError(
            "The file holds no pair of answers with their prompt",
            where=str(path),
            cure="give columns id, prompt, response_a and response_b; with --pairs when the votes stand in another file",
        )
    return found


def _table(path: Path) -> Iterator[Row]:
    """Rows of any supported table; .csv and .json beside what `read_rows` knows."""
    name = path.name.lower().removesuffix(".gz")
    if not name.endswith((".csv", ".json")):
        yield from read_rows(path)
        return
    try:
        raw = gzip.decompress(path.read_bytes()) if path.name.lower().endswith(".gz") else path.read_bytes()
        text = raw.decode("utf-8-sig")
        values = json.loads(text) if name.endswith(".json") else list(csv.DictReader(io.StringIO(text, newline="")))
    except (OSError, EOFError, ValueError, csv.Error, RecursionError) as error:
        raise InputError(f"The votes cannot be read: {error}", where=str(path), cure="check the path and the file") from None
    if not isinstance(values, list):
        raise InputError("The JSON file is no list of rows", where=str(path), cure="give a list of objects, one per vote")
    for number, value in enumerate(values, start=1):
        yield Row(number, value) if isinstance(value, dict) else Row(number, None, "not_an_object")


def _first(value: Mapping[str, Any], names: Sequence[str]) -> str:
    """The first of these columns that has something in it, as text."""
    return next((str(value[n]) for n in names if isinstance(value.get(n), str | int) and str(value[n]) != ""), "")


def _vote(row: Row) -> Vote | str:
    if row.value is None:
        return row.problem
    value = row.value
    pair, winner = _first(value, _IDS), _WINNERS.get(str(value.get("winner", "")).strip().lower())
    if not pair:
        return "id_missing"
    if winner is None:
        return "winner_unknown"
    sides = next(((str(value[a]), str(value[b])) for a, b in _SIDES if value.get(a) and value.get(b)), ("", ""))
    prompt = _first(value, ("prompt_id", "prompt")) or pair
    return Vote(pair, winner, content_hash(prompt, 16) if len(prompt) > 64 else prompt, sides, _first(value, _WORKERS))


def _pair(value: Mapping[str, Any]) -> VotedPair | None:
    pair, messages = _first(value, _IDS), _messages(value)
    texts = next(
        ((value[a], value[b]) for a, b in _TEXTS if isinstance(value.get(a), str) and isinstance(value.get(b), str)), None
    )
    if not pair or messages is None or texts is None:
        return None
    try:
        return VotedPair(pair, Prompt.make(messages, ("votes",)), *texts)
    except ValidationError:
        return None


def _messages(value: Mapping[str, Any]) -> Messages | None:
    try:
        if isinstance(value.get("messages"), list):
            return tuple(Message.model_validate(m) for m in value["messages"])
        text = next((value[n] for n in ("text", "prompt") if isinstance(value.get(n), str)), None)
        if text is None:
            return None
        return from_transcript(text) if is_transcript(text) else (Message(role="user", content=text),)
    except (ValidationError, InputError):
        return None


# ── a live judge ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A judge's verdicts about pairs, each asked in both orders."""

    votes: tuple[Vote, ...]
    """One per pair with both verdicts; a tie where the orders disagree."""
    outcomes: dict[str, int]
    """Calls by outcome."""
    consistent: Interval | None
    """Share of pairs with the same verdict in both orders."""
    first_shown: Interval | None
    """Share of verdicts for the answer shown first; 0.5 is unbiased."""

    def as_json(self) -> dict[str, Any]:
        return {k: v for k, v in as_json(self).items() if k != "votes"}


def ask(
    pairs: Sequence[VotedPair],
    judge: Endpoint,
    settings: RankingSection,
    seed: int,
    progress: Progress = SILENT,
    *,
    resamples: int = RESAMPLES,
) -> Asked:
    """The judge compares each pair in both orders."""
    duels = [Duel(p.prompt, "a", "b", p.a, p.b) for p in pairs]
    once = settings.model_copy(update={"retries": 0})
    said = compare_many([duel for one in duels for duel in (one, one.swapped())], judge, once, seed, progress)
    both = list(zip(pairs, said[::2], [c.swap() for c in said[1::2]], strict=True))
    decided = [(p, one, two) for p, one, two in both if one.winner is not None and two.winner is not None]
    prompts = [p.prompt.id for p, _, _ in decided]
    same = [int(one.winner == two.winner) for _, one, two in decided]
    first = [(one.winner == "a") + (two.winner == "b") for _, one, two in decided]
    return Asked(
        votes=tuple(Vote(p.pair, _merged(one, two), p.prompt.id, by="judge") for p, one, two in decided),
        outcomes=dict(sorted(Counter(c.outcome.value for c in said).items())),
        consistent=clustered_share(same, [1] * len(same), prompts, resamples, seed),
        first_shown=clustered_share(first, [2] * len(first), prompts, resamples, seed),
    )


def _merged(one: Comparison, two: Comparison) -> Side:
    return cast(Side, one.winner) if one.winner == two.winner else "tie"


# ── agreement ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class VoteAgreement:
    """How far a judge agrees with people about the same pairs. Shares are None where there was nothing to count."""

    pairs: int
    """Pairs with a verdict of the judge and at least one vote of a person."""
    votes: int
    """Votes of people about them."""
    left_out: dict[str, int]
    """Unreadable rows by reason; pairs_without_judge, pairs_without_votes, sides_differ."""
    agreement: Interval | None
    """Chance that the judge and a person who voted on the same pair say the same, ties counting as what they are."""
    agreement_decided: Interval | None
    """The same among votes and verdicts that are no ties; chance is one half."""
    kappa: Interval | None
    """Cohen's kappa of the judge and a person, three labels."""
    kappa_decided: Interval | None
    majority: Interval | None
    """Share of pairs on which the judge says what most people say, where most people say one thing."""
    majority_kappa: Interval | None
    people: Interval | None
    """Chance that two people who voted on the same pair say the same: what a judge can hope for."""
    people_decided: Interval | None
    alpha_people: Interval | None
    """Krippendorff's alpha among people, labels without order."""
    alpha_people_ordinal: Interval | None
    """Likewise with the tie between the two sides."""
    alpha_with_judge: Interval | None
    """With the judge as one more voter, labels without order: below `alpha_people` it agrees less with them than they do."""
    judge_ties: Interval | None
    """Share of the judge's verdicts that are ties."""
    people_ties: Interval | None
    judge_a: Interval | None
    """Share of the judge's decided verdicts for side a; beside `people_a` it shows a taste for the side shown first."""
    people_a: Interval | None
    by_raters: tuple[dict[str, Any], ...]
    """Per number of people who voted on a pair: pairs, and the share on which the judge says what most of them say."""

    def as_json(self) -> dict[str, Any]:
        found = as_json(self)
        found["by_raters"] = [as_json_row(row) for row in self.by_raters]
        return found


@dataclass(frozen=True)
class _Item:
    """One pair: the judge's verdict and people's votes on it, sides as people saw them."""

    prompt: str
    judge: Side
    people: tuple[Side, ...]

    @property
    def most(self) -> Side | None:
        """What most people say; None when two labels share the lead."""
        (top, n), *rest = Counter(self.people).most_common()
        return None if rest and rest[0][1] == n else top


def compare(judge: Votes, people: Votes, *, resamples: int = RESAMPLES, seed: int = 0) -> VoteAgreement:
    """Agreement of a judge's votes with people's; see `VoteAgreement`. Several verdicts on a pair that differ are a tie."""
    items, left_out = _items(judge, people)
    prompts = [i.prompt for i in items]

    def share(of: Callable[[_Item], tuple[float, float]]) -> Interval | None:
        pairs = [of(i) for i in items]
        return clustered_share([h for h, _ in pairs], [n for _, n in pairs], prompts, resamples, seed)

    def kappa(rows: Sequence[tuple[Side, Side, str]]) -> Interval | None:
        first, second, clusters = zip(*rows, strict=True) if rows else ((), (), ())
        return kappa_interval(first, second, clusters, resamples=resamples, seed=seed) if rows else None

    def alpha(units: Sequence[Sequence[Side]], ordinal: bool) -> Interval | None:
        return alpha_interval(units, LABELS, prompts, ordinal=ordinal, resamples=resamples, seed=seed)

    votes = [(i.judge, vote, i.prompt) for i in items for vote in i.people]
    people_only = [i.people for i in items]
    return VoteAgreement(
        pairs=len(items),
        votes=len(votes),
        left_out=left_out,
        agreement=share(lambda i: (i.people.count(i.judge), len(i.people))),
        agreement_decided=share(_decided),
        kappa=kappa(votes),
        kappa_decided=kappa([row for row in votes if "tie" not in row[:2]]),
        majority=share(lambda i: (i.judge == i.most, i.most is not None)),
        majority_kappa=kappa([(i.judge, i.most, i.prompt) for i in items if i.most is not None]),
        people=share(lambda i: _together(i.people)),
        people_decided=share(lambda i: _together(tuple(v for v in i.people if v != "tie"))),
        alpha_people=alpha(people_only, False),
        alpha_people_ordinal=alpha(people_only, True),
        alpha_with_judge=alpha([(*i.people, i.judge) for i in items], False),
        judge_ties=share(lambda i: (i.judge == "tie", 1)),
        people_ties=share(lambda i: (i.people.count("tie"), len(i.people))),
        judge_a=share(lambda i: (i.judge == "a", i.judge != "tie")),
        people_a=share(lambda i: (i.people.count("a"), len(i.people) - i.people.count("tie"))),
        by_raters=tuple(_by_raters(items, resamples, seed)),
    )


def _items(judge: Votes, people: Votes) -> tuple[list[_Item], dict[str, int]]:
    """Pairs that both sides voted on, in the order of people's votes."""
    left_out = Counter({f"people: {reason}": n for reason, n in people.left_out.items()})
    left_out.update({f"judge: {reason}": n for reason, n in judge.left_out.items()})
    verdicts: dict[str, list[Vote]] = {}
    for vote in judge.votes:
        verdicts.setdefault(vote.pair, []).append(vote)
    given: dict[str, list[Vote]] = {}
    for vote in people.votes:
        given.setdefault(vote.pair, []).append(vote)
    items = []
    for pair, votes in given.items():
        if pair not in verdicts:
            left_out["pairs_without_judge"] += 1
            continue
        # Everybody's sides are read as the first person saw them; a judge may have had them the other way round.
        sides = votes[0].sides
        seen = [_facing(v, sides) for v in votes]
        said = {_facing(v, sides) for v in verdicts[pair]}
        if None in seen or None in said:
            left_out["sides_differ"] += 1
            continue
        verdict: Side = cast(Side, next(iter(said))) if len(said) == 1 else "tie"
        items.append(_Item(votes[0].prompt, verdict, tuple(cast(Side, s) for s in seen)))
    left_out["pairs_without_votes"] = len(verdicts.keys() - given.keys())
    return items, {reason: n for reason, n in sorted(left_out.items()) if n}


def _facing(vote: Vote, sides: tuple[str, str]) -> Side | None:
    """The vote with its sides as named; None when it is about others."""
    if vote.sides == sides or "" in (*vote.sides, *sides):
        return vote.winner
    if vote.sides == sides[::-1]:
        return cast(Side, {"a": "b", "b": "a"}.get(vote.winner, "tie"))
    return None


def _decided(item: _Item) -> tuple[int, int]:
    if item.judge == "tie":
        return 0, 0
    return item.people.count(item.judge), len(item.people) - item.people.count("tie")


def _together(votes: Sequence[Side]) -> tuple[float, float]:
    """(agreeing pairs of votes, all pairs), scaled so that a pair of answers weighs as many as people voted on it."""
    n = len(votes)
    if n < 2:
        return 0.0, 0.0
    return sum(c * (c - 1) for c in Counter(votes).values()) / (n - 1), float(n)


def _by_raters(items: Sequence[_Item], resamples: int, seed: int) -> Iterator[dict[str, Any]]:
    for raters in sorted({len(i.people) for i in items}):
        chosen = [i for i in items if len(i.people) == raters]
        clear = [i for i in chosen if i.most is not None]
        hits = [int(i.judge == i.most) for i in clear]
        share = clustered_share(hits, [1] * len(hits), [i.prompt for i in clear], resamples, seed)
        yield {"raters": raters, "pairs": len(chosen), "with_majority": len(clear), "agreement": share}
