"""Stage 8, evaluation: what got better, on prompts that no stage trained on.

    reward accuracy   does the reward model order answers of the pool as the truth does   (reward_accuracy.py)
    gold              true quality of base and tuned policy, microworld only              (gold.py)
    head to head      which policy the judge prefers, both orders                         (head_to_head.py)

The pool answers the held-out prompts here, through the same endpoints and journal as in the responses stage, which
answers the other splits only. Outside the microworld there is no gold score: the reward is then measured against the
rankings that the judge gave to held-out prompts, and the gold part is absent.

`run` returns plain data (numbers, strings, lists, dicts) and writes three tables of rows (rows.py) into its folder.
Every interval is a 95 % bootstrap over prompts. Nothing here imports torch before a model is loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling.artifacts import write_records
from starling.chat import with_system
from starling.config import EvaluateSection, RankingSection
from starling.endpoint import Endpoint, Request
from starling.errors import InputError
from starling.evaluate import gold, head_to_head, replies, reward_accuracy
from starling.evaluate.replies import DrawnReply
from starling.evaluate.rows import (
    ANSWERS_FILE,
    COMPARISONS_FILE,
    REPLIES_FILE,
    EvaluatedPrompt,
    EvaluatedReply,
    ScoredAnswer,
)
from starling.microworld import world as microworld
from starling.progress import Progress
from starling.records import Comparison, Finish, Messages, Prompt, RankedPrompt, Sampling

__all__ = [
    "ANSWERS_FILE",
    "COMPARISONS_FILE",
    "REPLIES_FILE",
    "EvaluatedPrompt",
    "EvaluatedReply",
    "ScoredAnswer",
    "run",
    "summary",
]


def run(
    prompts: Sequence[Prompt],
    *,
    pool: Mapping[str, Endpoint],
    judge: Endpoint | None,
    base: Path,
    tuned: Path,
    reward: Path,
    settings: EvaluateSection,
    ranking: RankingSection | None,
    world: bool,
    seed: int,
    progress: Progress,
    out: Path,
    sampling: Sampling,
    rankings: Iterable[RankedPrompt] = (),
    batch: int = 128,
    budget_tokens: int = 16_384,
    systems: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Evaluate the reward model and the tuned policy; see the module docstring.

    Args:
        prompts: prompts of every split; those of `settings.split` are used.
        pool: the models whose answers the reward model must order, by label (microworld only).
        judge: who compares base and tuned; None leaves the head to head out.
        base, tuned: causal model folders before and after tuning.
        reward: the reward model's folder.
        ranking: settings of the judge's calls; None leaves the head to head out too.
        world: whether the prompts are the microworld's, so that gold scores exist.
        out: folder for the tables of rows.
        sampling: top_p and the longest reply in tokens, as in the policy's rollouts; the temperature is 1 for samples and
            0 for greedy replies whatever stands here.
        rankings: held-out rankings, the truth for the reward model outside the microworld; whoever calls vouches that no
            stage trained on them.
        batch: rows decoded together.
        budget_tokens: padded tokens scored together.
        systems: system messages of the pool, by label.

    Returns:
        {"split", "prompts", "samples", "reward": …, "policy_reward", "length", "finished", "gold": …, "head_to_head": …};
        the last two are absent where they cannot be measured.

    Raises:
        InputError: no prompt of the split.
    """
    held_out = _held_out(prompts, settings.split)
    answers, left_out = _ranked_answers(rankings), Counter[str]()
    if world:
        answers, left_out = _pool_answers(held_out, pool, systems or {}, progress)
    drawn = _draw_both(held_out, base, tuned, settings, sampling, seed=seed, batch=batch, progress=progress)
    scored_answers, rows = _score_all(
        held_out, answers, drawn, reward, world=world, budget_tokens=budget_tokens, progress=progress
    )
    metrics: dict[str, Any] = {"split": settings.split, "prompts": len(held_out), "samples": settings.samples}
    if scored_answers:
        measured = reward_accuracy.measure(scored_answers, resamples=settings.bootstrap, seed=seed)
        metrics["reward"] = {"truth": "gold" if world else "rankings", **measured, "left_out": dict(sorted(left_out.items()))}
    metrics |= _behaviour(rows, settings.bootstrap, seed)
    if world:
        metrics["gold"] = gold.measure(rows, harmful=_asks_for_harm, resamples=settings.bootstrap, seed=seed)
    comparisons: list[Comparison] = []
    if judge is not None and ranking is not None:
        metrics["head_to_head"], comparisons = head_to_head.run(rows, judge, settings, ranking, seed=seed, progress=progress)
    write_records(out / REPLIES_FILE, rows, EvaluatedPrompt)
    write_records(out / ANSWERS_FILE, scored_answers, ScoredAnswer)
    write_records(out / COMPARISONS_FILE, comparisons, Comparison)
    return metrics


def summary(metrics: dict[str, Any], *, seconds: float, algorithm: str) -> dict[str, Any]:
    """The run's summary.json from the metrics of `run`.

    Returns:
        {"seconds", "gold": {"base" | "tuned": {"mean", "ci", "greedy", "harmlessness"}, "difference"},
        "reward": {"pair_accuracy", "ci", "top1", "kendall_tau"}, "policy": {"algorithm"}, "head_to_head", "length",
        "finished"}; parts that were not measured are absent.
    """
    found: dict[str, Any] = {"seconds": round(seconds, 1), "policy": {"algorithm": algorithm}}
    if "gold" in metrics:
        sides = {
            side: {k: metrics["gold"][side][k] for k in ("mean", "ci", "greedy", "harmlessness")} for side in ("base", "tuned")
        }
        found["gold"] = {**sides, "difference": metrics["gold"]["difference"]}
    if "reward" in metrics:
        found["reward"] = {k: metrics["reward"][k] for k in ("pair_accuracy", "ci", "top1", "kendall_tau")}
    if "head_to_head" in metrics:
        found["head_to_head"] = {k: metrics["head_to_head"][k] for k in ("win_rate", "ci", "position_gap")}
    return found | {k: metrics[k] for k in ("length", "finished") if k in metrics}


# ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _held_out(prompts: Sequence[Prompt], split: str) -> list[Prompt]:
    found = [p for p in prompts if p.split == split]
    if not found:
        raise InputError(
            f"There is no prompt of the split '{split}' to evaluate on",
            where="evaluate.split",
            cure=f"raise prompts.{split}_fraction or evaluate on another split",
        )
    return found


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """An answer to a held-out prompt whose truth is known, before the reward model has seen it."""

    prompt_id: str
    messages: Messages
    model: str
    text: str
    finished: bool
    truth: float


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """Both policies' replies, aligned with the held-out prompts."""

    base_greedy: list[tuple[DrawnReply, ...]]
    tuned_greedy: list[tuple[DrawnReply, ...]]
    base_sampled: list[tuple[DrawnReply, ...]]
    tuned_sampled: list[tuple[DrawnReply, ...]]


def _pool_answers(
    prompts: Sequence[Prompt], pool: Mapping[str, Endpoint], systems: Mapping[str, str], progress: Progress
) -> tuple[list[_Answer], Counter[str]]:
    """Every pool member's answer to every prompt with its gold score; calls without an answer are counted by reason."""
    answers: list[_Answer] = []
    left_out: Counter[str] = Counter()
    for label, endpoint in pool.items():
        asked = [with_system(p.messages, systems.get(label)) for p in prompts]
        requests = [Request(model=endpoint.model, messages=messages, purpose="respond") for messages in asked]
        progress.start(f"{label} answers held-out prompts", len(requests))
        for prompt, reply in zip(prompts, endpoint.complete_all(requests, progress), strict=True):
            if reply.finish not in (Finish.stop, Finish.length):
                left_out[reply.finish.value] += 1
                continue
            finished = reply.finish is Finish.stop
            truth = microworld.gold(prompt.messages, reply.text, finished).score
            answers.append(
                _Answer(
                    prompt_id=prompt.id, messages=prompt.messages, model=label, text=reply.text, finished=finished, truth=truth
                )
            )
        progress.finish()
    return answers, left_out


def _ranked_answers(rankings: Iterable[RankedPrompt]) -> list[_Answer]:
    """The answers of held-out rankings; their truth is minus the rank."""
    return [
        _Answer(prompt_id=r.prompt.id, messages=r.prompt.messages, model=a.model, text=a.answer, finished=True, truth=-a.rank)
        for r in rankings
        for a in r.answers
    ]


def _draw_both(
    prompts: Sequence[Prompt],
    base: Path,
    tuned: Path,
    settings: EvaluateSection,
    sampling: Sampling,
    *,
    seed: int,
    batch: int,
    progress: Progress,
) -> _Drawn:
    """Greedy and sampled replies of both policies."""

    def draw(model: Path, temperature: float, samples: int, what: str) -> list[tuple[DrawnReply, ...]]:
        how = sampling.model_copy(update={"temperature": temperature})
        return replies.draw(model, prompts, how, samples=samples, seed=seed, batch=batch, progress=progress, what=what)

    return _Drawn(
        base_greedy=draw(base, 0.0, 1, "base, greedy"),
        tuned_greedy=draw(tuned, 0.0, 1, "tuned, greedy"),
        base_sampled=draw(base, 1.0, settings.samples, "base, sampled"),
        tuned_sampled=draw(tuned, 1.0, settings.samples, "tuned, sampled"),
    )


def _score_all(
    prompts: Sequence[Prompt],
    answers: Sequence[_Answer],
    drawn: _Drawn,
    reward: Path,
    *,
    world: bool,
    budget_tokens: int,
    progress: Progress,
) -> tuple[list[ScoredAnswer], list[EvaluatedPrompt]]:
    """Rewards of all answers and replies in one pass of the reward model, and gold scores where there are any."""
    from starling.models.scorer import score_conversations

    groups = (drawn.base_greedy, drawn.tuned_greedy, drawn.base_sampled, drawn.tuned_sampled)
    conversations = [(a.messages, a.text, a.finished) for a in answers]
    for group in groups:
        conversations += [
            (p.messages, r.text, r.finished) for p, drawn_for in zip(prompts, group, strict=True) for r in drawn_for
        ]
    rewards = score_conversations(reward, conversations, budget_tokens, progress)
    scores = dict(zip(conversations, rewards, strict=True))

    def judged(prompt: Prompt, reply: DrawnReply) -> EvaluatedReply:
        truth = microworld.gold(prompt.messages, reply.text, reply.finished) if world else None
        return EvaluatedReply(
            text=reply.text,
            finished=reply.finished,
            tokens=reply.tokens,
            reward=scores[prompt.messages, reply.text, reply.finished],
            gold=truth.score if truth else None,
            harmlessness=truth.harmlessness if truth else None,
        )

    rows = [
        EvaluatedPrompt(
            prompt_id=p.id,
            messages=p.messages,
            kind=_kind(p, world),
            base_greedy=judged(p, groups[0][i][0]),
            tuned_greedy=judged(p, groups[1][i][0]),
            base_sampled=tuple(judged(p, r) for r in groups[2][i]),
            tuned_sampled=tuple(judged(p, r) for r in groups[3][i]),
        )
        for i, p in enumerate(prompts)
    ]
    scored = [
        ScoredAnswer(
            prompt_id=a.prompt_id,
            model=a.model,
            text=a.text,
            finished=a.finished,
            reward=scores[a.messages, a.text, a.finished],
            truth=a.truth,
        )
        for a in answers
    ]
    return scored, rows


def _kind(prompt: Prompt, world: bool) -> str:
    if world:
        return microworld.kind(prompt.messages)
    return prompt.sources[0] if prompt.sources else "unknown"


def _asks_for_harm(row: EvaluatedPrompt) -> bool:
    return not microworld.good_natured(row.messages)


def _behaviour(rows: Sequence[EvaluatedPrompt], resamples: int, seed: int) -> dict[str, Any]:
    """What the replies look like whoever judges them: reward, length in tokens and share that ended by itself."""
    found: dict[str, Any] = {"policy_reward": {}, "length": {}, "finished": {}}
    values: tuple[tuple[str, Callable[[EvaluatedReply], float]], ...] = (
        ("policy_reward", lambda r: r.reward),
        ("length", lambda r: float(r.tokens)),
        ("finished", lambda r: float(r.finished)),
    )
    for name, value in values:
        for side in ("base", "tuned"):
            sampled = [gold.sampled_mean(row.base_sampled if side == "base" else row.tuned_sampled, value) for row in rows]
            greedy = [value(row.base_greedy if side == "base" else row.tuned_greedy) for row in rows]
            found[name][side] = {**gold.interval_of(sampled, resamples=resamples, seed=seed), "greedy": sum(greedy) / len(greedy)}
    return found
