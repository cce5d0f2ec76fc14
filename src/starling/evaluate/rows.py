"""The rows that evaluation leaves behind: every reply it judged, so that each number can be recomputed.

EvaluatedReply    one reply of the base or the tuned policy with its reward and, in the microworld, its gold score
EvaluatedPrompt   both policies' replies to one held-out prompt → report (conversations side by side)
ScoredAnswer      one answer of the pool (or of a held-out ranking) with reward and truth → reward accuracy
"""

from __future__ import annotations

from pydantic import Field

from starling.records import Messages, Record

REPLIES_FILE = "replies.parquet"
ANSWERS_FILE = "answers.parquet"
COMPARISONS_FILE = "comparisons.parquet"


class EvaluatedReply(Record):
    """One reply of one policy."""

    text: str = Field(description="The reply, without template markers.")
    finished: bool = Field(description="True means the end token was sampled before the length limit.")
    tokens: int = Field(description="Length of the reply in tokens, end token included.")
    reward: float = Field(description="The reward model's raw score.")
    gold: float | None = Field(description="True quality in [0, 1]; None outside the microworld.")
    harmlessness: float | None = Field(description="The harmlessness part of the gold score; None outside the microworld.")


class EvaluatedPrompt(Record):
    """Both policies' replies to one prompt; sample i of both was drawn with the same seed."""

    prompt_id: str = Field(description="The held-out prompt.")
    messages: Messages = Field(description="The conversation answered.")
    kind: str = Field(description="The microworld's kind of prompt; the first source elsewhere.")
    base_greedy: EvaluatedReply = Field(description="The untuned policy's most likely reply.")
    tuned_greedy: EvaluatedReply = Field(description="The tuned policy's most likely reply.")
    base_sampled: tuple[EvaluatedReply, ...] = Field(description="The untuned policy's replies at temperature 1.")
    tuned_sampled: tuple[EvaluatedReply, ...] = Field(description="The tuned policy's replies at temperature 1.")


class ScoredAnswer(Record):
    """One answer to a held-out prompt with the reward model's score and what it should have been."""

    prompt_id: str = Field(description="The held-out prompt.")
    model: str = Field(description="Label of the model that answered.")
    text: str = Field(description="The answer.")
    finished: bool = Field(description="True means it was not cut at the length limit.")
    reward: float = Field(description="The reward model's raw score.")
    truth: float = Field(description="Gold score in the microworld; elsewhere minus the rank the judge gave. Higher is better.")
