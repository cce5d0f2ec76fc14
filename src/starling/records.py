"""What travels between the stages: frozen records, unknown fields refused.

Producer → consumer of each record:

    Prompt        prompts → responses, ranking, policy, evaluate
    FoundAnswer   prompts → responses: what a source already had
    Response      responses → ranking
    Judgment      ranking → audit, report: one judge call
    MergedRanking ranking → nectar: what all calls about a prompt come to
    RankedPrompt  nectar → reward (and any reader of the public Nectar schema)
    Comparison    evaluate (head to head), arena → stats
    Score         evaluate, `starling score` → report

The Nectar schema is that of the dataset card berkeley-nest/Nectar: prompt, answers (best first), turns,
num_responses, source, good_natured. Departures: a `Judgment` keeps failed judge calls as named outcomes (the original
dropped them), and `RankedPrompt.lineage` says where a row came from; it is not written into the Nectar columns.
"""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator


class Record(BaseModel):
    """Frozen, strict about field names; two records are equal when their fields are."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and plain UTF-8: the one text that is hashed anywhere in Starling."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_hash(value: Any, length: int = 64) -> str:
    """Hex SHA-256 of the canonical JSON of `value`, cut to `length` characters."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()[:length]


class Message(Record):
    """One turn of a conversation, e.g. Message(role="user", content="What is 3 + 4?")."""

    role: Literal["system", "user", "assistant"] = Field(description="Who speaks.")
    content: str = Field(description="The text, without any template markers.")


Messages = tuple[Message, ...]


class Prompt(Record):
    """A conversation that waits for a reply: it ends with a user turn."""

    id: str = Field(description="Hash of the messages; the same conversation has the same id everywhere.")
    messages: Messages = Field(description="The conversation so far, oldest turn first.")
    sources: tuple[str, ...] = Field(description="Where the prompt was found; several when duplicates were merged.")
    split: Literal["train", "validation", "test"] = Field(
        default="train", description="Which split its conversation belongs to; decided by the first user turn."
    )

    @classmethod
    def make(cls, messages: Messages, sources: tuple[str, ...], split: str = "train") -> Prompt:
        """Build a prompt and compute its id."""
        return cls.model_validate({"id": prompt_id(messages), "messages": messages, "sources": sources, "split": split})

    @model_validator(mode="after")
    def _ends_with_user(self) -> Prompt:
        if not self.messages or self.messages[-1].role != "user":
            raise ValueError("a prompt must end with a user turn")
        if not self.messages[-1].content.strip():
            raise ValueError("the last user turn is empty")
        return self


def prompt_id(messages: Messages) -> str:
    """16 hex digits that depend on roles and contents only."""
    return content_hash([[m.role, m.content] for m in messages], 16)


class FoundAnswer(Record):
    """An answer that a source of prompts brought along (UltraFeedback, HH-RLHF …); no model was called for it."""

    prompt_id: str = Field(description="The prompt it answers.")
    model: str = Field(description="Label of the model as the source names it, or as the settings say.")
    text: str = Field(description="The answer; never blank, and never twice for one prompt.")
    source: str = Field(description="Label of the source that brought it.")


class Sampling(Record):
    """How a reply is drawn; part of a call's identity."""

    temperature: float = Field(default=1.0, ge=0.0, description="0 means greedy decoding.")
    top_p: float = Field(default=1.0, gt=0.0, le=1.0, description="Nucleus mass; 1 switches it off.")
    max_tokens: int = Field(default=512, gt=0, description="Longest reply in tokens; a longer one is cut: finish=length.")
    stop: tuple[str, ...] = Field(default=(), description="Strings that end a reply; they are cut off.")
    top_logprobs: int = Field(
        default=0,
        ge=0,
        le=20,
        description="Likeliest first tokens whose log-probabilities come with a reply (OpenAI: 0 to 20); soft verdicts ask for "
        "theirs whatever stands here.",
    )

    @model_serializer(mode="wrap")
    def _as_before_without_logprobs(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Part of a call's identity only where log-probabilities are asked for: other calls keep the keys they always had."""
        data: dict[str, Any] = plain(self)
        if not data.get("top_logprobs"):
            data.pop("top_logprobs", None)
        return data


class ModelRef(Record):
    """Which model answered, precisely enough to ask it again."""

    provider: str = Field(description="Kind: openai, openai-completions, anthropic, local, microworld-judge, scripted.")
    name: str = Field(description="The model's name as its provider knows it, or a label for a local folder.")
    revision: str = Field(default="", description="Version, commit or artifact fingerprint, when known.")
    sampling: Sampling = Field(default=Sampling(), description="How replies are drawn.")


class Finish(StrEnum):
    """Why a reply ended. `error` replies have no text."""

    stop = "stop"
    length = "length"
    refusal = "refusal"
    error = "error"


class Response(Record):
    """One model's reply to one prompt."""

    id: str = Field(description="Hash of prompt id, model and text.")
    prompt_id: str = Field(description="The prompt it answers.")
    model: str = Field(description="Label of the model in the pool, or what a source calls the author of a found answer.")
    text: str = Field(description="The reply, without template markers; empty when finish is error.")
    finish: Finish = Field(description="Why it ended.")
    call_id: str = Field(description="Key of the call in the journal; empty for an answer that was found.")
    reason: str = Field(default="", description="Why there is no text, in words; empty unless finish is error.")
    set_aside: Literal["", "duplicate", "empty"] = Field(
        default="", description="Why it does not count although the call was answered; empty when it counts."
    )
    source: str = Field(default="", description="Where it was found with its prompt; empty when it was asked for.")

    @property
    def usable(self) -> bool:
        """Whether it is one of the prompt's K answers, to be ranked."""
        return self.finish is not Finish.error and not self.set_aside


class Outcome(StrEnum):
    """What became of a judge's call. Only `ranked` has a ranking."""

    ranked = "ranked"
    unparsed = "unparsed"
    refused = "refused"
    truncated = "truncated"
    too_long = "too_long"
    provider_error = "provider_error"


class PairVerdict(Record):
    """One decided pair of a judge's reply: first and second as written, winner one of the two (the judgment checks that, for all
    its pairs at once: 21 validators in every row would cost more than everything else about it)."""

    first: str
    second: str
    winner: str


class Judgment(Record):
    """One judge call about some or all responses to a prompt, whatever became of it; a reply that did not parse and was asked
    for again has its own. Laws: outcome is ranked ⇔ ranking is a permutation of shown; pairs are of different responses
    shown, each at most once, and have one of the two as winner; only a ranked call has verdicts, ties or a score.

    The calls about one prompt follow each other by order, then as the mode lists them; a second attempt follows its first.
    """

    prompt_id: str = Field(description="The prompt judged.")
    rubric: str = Field(description="Hash of the rubric, prompt template and grammar version used.")
    judge: str = Field(description="Label of the judge model.")
    shown: tuple[str, ...] = Field(description="Response ids in the order the judge saw them (A, B, C …).")
    pair_order: tuple[tuple[str, str], ...] = Field(description="Pairs of response ids in the order asked.")
    outcome: Outcome = Field(description="What became of the call.")
    ranking: tuple[str, ...] | None = Field(description="Response ids best first; None unless ranked.")
    good_natured: bool | None = Field(description="The judge's view of the request; None when it gave none.")
    pair_verdicts: tuple[PairVerdict, ...] = Field(description="Pair verdicts as response ids, in reply order.")
    call_id: str = Field(description="Key of the call in the journal; empty when none was made.")
    reason: str = Field(default="", description="Why it is not ranked, in words; empty when ranked.")
    mode: str = Field(default="internal_flipped", description="How the judge was asked: `ranking.mode`.")
    order: int = Field(default=0, ge=0, description="Which of the prompt's orders the call belongs to: 0, 1, …")
    attempt: int = Field(default=0, ge=0, description="0, or 1 when an earlier reply to the same question did not parse.")
    pair_ties: tuple[tuple[str, str], ...] = Field(default=(), description="Pairs that the judge called equal.")
    tied: tuple[int, ...] = Field(
        default=(), description="When the ranking has ties: sizes of its places, best first, e.g. (1, 2). Empty otherwise."
    )
    score: int | None = Field(default=None, ge=1, le=10, description="Of the one response shown, in the mode pointwise.")

    @model_validator(mode="after")
    def _ranked_iff_permutation(self) -> Judgment:
        if (self.ranking is not None) != (self.outcome is Outcome.ranked):
            raise ValueError("a judgment has a ranking exactly when its outcome is ranked")
        if self.ranking is None:
            if self.pair_verdicts or self.pair_ties or self.tied or self.score is not None:
                raise ValueError("a judgment without a ranking has no verdicts, ties or score")
            return self
        shown = set(self.shown)
        if sorted(self.ranking) != sorted(self.shown) or len(shown) != len(self.shown):
            raise ValueError("a ranking must be a permutation of the responses shown")
        if self.tied and (sum(self.tied) != len(shown) or min(self.tied) < 1):
            raise ValueError("the sizes of a ranking's places must add up to the responses shown")
        stated = set()
        for v in self.pair_verdicts:
            if v.first == v.second or (v.winner != v.first and v.winner != v.second) or not {v.first, v.second} <= shown:
                raise ValueError("the winner of a pair must be one of its two different members, both of them shown")
            stated.add((v.first, v.second) if v.first < v.second else (v.second, v.first))
        for first, second in self.pair_ties:
            if first == second or not {first, second} <= shown:
                raise ValueError("a tie must be between two different responses shown")
            stated.add((first, second) if first < second else (second, first))
        if len(stated) != len(self.pair_verdicts) + len(self.pair_ties):
            raise ValueError("a pair stands in a judgment twice")
        return self


class PairSupport(Record):
    """How much of what the judge said about two responses speaks for the one that was ranked above the other."""

    better: str = Field(description="Response id ranked above, or the first of two tied ones.")
    worse: str = Field(description="The other response id.")
    support: float = Field(ge=0, description="Weight of the verdicts for `better`; a verdict that they are equal counts half.")
    weight: float = Field(gt=0, description="Weight of all verdicts about the two; support / weight is the confidence.")


class MergedRanking(Record):
    """What all judge calls about one prompt come to. Law: outcome is ranked ⇔ there are tiers.

    How the calls are merged and what weighs how much: `starling.judge.merge`.
    """

    prompt_id: str = Field(description="The prompt judged.")
    outcome: Outcome = Field(description="ranked when every pair has a verdict; else what became of the last failed call.")
    tiers: tuple[tuple[str, ...], ...] = Field(
        description="Response ids best first; in one tier they are tied. Empty unless ranked."
    )
    good_natured: bool | None = Field(description="The view of most calls that gave one; None when none did or they balance.")
    pairs: tuple[PairSupport, ...] = Field(description="Every pair of the ranked responses, in the order of the tiers.")
    contested: bool = Field(description="The first orders left doubt: a pair is disputed or missing, or wins run in a circle.")
    calls: tuple[str, ...] = Field(description="Journal keys of the calls that were merged, in their order.")
    reason: str = Field(default="", description="Why it is not ranked, in words; empty when ranked.")

    @model_validator(mode="after")
    def _tiers_iff_ranked(self) -> MergedRanking:
        ids = [i for tier in self.tiers for i in tier]
        if bool(ids) != (self.outcome is Outcome.ranked) or not all(self.tiers):
            raise ValueError("a merged ranking has tiers, none of them empty, exactly when its outcome is ranked")
        if len(set(ids)) != len(ids):
            raise ValueError("a response stands in a merged ranking twice")
        return self


class RankedAnswer(Record):
    """One answer of a ranked prompt; rank 1.0 is best, tied answers share the rank of the first of them."""

    answer: str
    model: str
    rank: float


class RankedPair(Record):
    """Two answers of a ranked prompt, by their places (0 = best), and how surely the first is the better one."""

    better: int = Field(ge=0)
    worse: int = Field(ge=0)
    confidence: float = Field(ge=0, le=1, description="Share of the judge's verdicts about the two that agrees.")
    weight: float = Field(gt=0, description="How many verdicts that is a share of.")


class PlacedVerdict(Record):
    """One verdict of the judge on two answers of a ranked prompt, by their places (0 = best)."""

    first: int = Field(ge=0, description="The answer that the judge named first.")
    second: int = Field(ge=0)
    winner: int | None = Field(ge=0, description="One of the two; None when the judge called them equal.")

    @model_validator(mode="after")
    def _winner_is_one_of_them(self) -> PlacedVerdict:
        if self.first == self.second or self.winner not in (self.first, self.second, None):
            raise ValueError("the winner of a pair must be one of its two different members")
        return self


class RankedPrompt(Record):
    """A prompt with its K answers, best first: one row of a Nectar-style dataset."""

    prompt: Prompt = Field(description="The conversation answered.")
    answers: tuple[RankedAnswer, ...] = Field(description="Answers sorted by rank, best first; at least two.")
    good_natured: bool | None = Field(description="The judge's view of the request; None when unknown.")
    lineage: dict[str, str] = Field(default_factory=dict, description="Judge, rubric and call, or the imported file.")
    pairs: tuple[RankedPair, ...] = Field(default=(), description="What is known about single pairs; may be empty.")
    verdicts: tuple[PlacedVerdict, ...] = Field(default=(), description="The judge's own pair verdicts, call by call.")
    contested: bool | None = Field(default=None, description="The judge's first order left doubt; None when unknown.")
    judge_calls: int | None = Field(default=None, ge=1, description="Judge calls behind the ranking; None when unknown.")

    @model_validator(mode="after")
    def _best_first(self) -> RankedPrompt:
        ranks = [a.rank for a in self.answers]
        if len(ranks) < 2:
            raise ValueError(f"a ranking needs at least two answers, this one has {len(ranks)}")
        if ranks != [1.0 + sum(other < rank for other in ranks) for rank in ranks] or ranks != sorted(ranks):
            raise ValueError(f"ranks must be 1…{len(ranks)} best first, tied ones sharing the first's; found {ranks}")
        if any(max(p.better, p.worse) >= len(ranks) or p.better == p.worse for p in self.pairs):
            raise ValueError("a pair names an answer that is not there")
        if any(max(v.first, v.second) >= len(ranks) for v in self.verdicts):
            raise ValueError("a pair verdict names an answer that is not there")
        return self

    @property
    def tied(self) -> bool:
        """Whether two answers share a rank."""
        return len({a.rank for a in self.answers}) < len(self.answers)


class Comparison(Record):
    """One verdict between two sides a and b; `None` with an outcome other than ranked means there is no verdict."""

    prompt_id: str
    a: str = Field(description="Model label of side a.")
    b: str = Field(description="Model label of side b.")
    winner: Literal["a", "b", "tie"] | None
    by: Literal["judge", "human"]
    outcome: Outcome

    @model_validator(mode="after")
    def _winner_iff_ranked(self) -> Comparison:
        if (self.winner is not None) != (self.outcome is Outcome.ranked):
            raise ValueError("a comparison has a winner exactly when its outcome is ranked")
        return self

    @property
    def preference_b(self) -> float | None:
        """1 = b won, 0 = a did, 0.5 = a tie; None without a verdict."""
        return None if self.winner is None else {"a": 0.0, "b": 1.0, "tie": 0.5}[self.winner]

    def swap(self) -> Comparison:
        """The same verdict seen from the other side: the winner flips too."""
        flipped = {"a": "b", "b": "a"}.get(self.winner or "", self.winner)
        return self.model_copy(update={"a": self.b, "b": self.a, "winner": flipped})


class Score(Record):
    """A reward model's score of one conversation, or the named reason why there is none."""

    id: str = Field(description="The row's own id, else the hash of its conversation, of several replies of the prompt.")
    reward: float | None = Field(description="Higher is better; only differences between replies to one prompt mean something.")
    outcome: Literal["scored", "empty", "unreadable", "not_finite"] = Field(
        description="empty: the reply is blank. unreadable: the row is no conversation for this model. not_finite: NaN or ∞."
    )
    row: int = Field(default=1, ge=1, description="Number of the row in its file, from 1.")
    answer: int | None = Field(
        default=None, ge=0, description="Which of the row's replies, from 0 (chosen 0, rejected 1); null where it has only one."
    )
    file: str | None = Field(default=None, description="The file that the row is from; null for stdin.")
    problem: str | None = Field(default=None, description="What is wrong with an unreadable row.")

    @model_validator(mode="after")
    def _scored_iff_number(self) -> Score:
        if (self.reward is not None) != (self.outcome == "scored"):
            raise ValueError("a score has a reward exactly when its outcome is scored")
        if (self.problem is not None) != (self.outcome == "unreadable"):
            raise ValueError("a score names a problem exactly when its row is unreadable")
        return self


SCHEMA_VERSION = 1
"""Version of the records as written to disk; raised when a field changes meaning."""
