"""Makes a believable finished run out of nothing, without torch: for the tests of report and cards, and to look at.

`python tests/fake_run.py FOLDER` writes one, so that the report can be opened while it is being designed. The replies come
from the microworld's own good and flawed drafts; rewards are gold plus noise; curves are invented.
"""

from __future__ import annotations

import json
import math
import random
import sys
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from starling import nectar, ranking, responses
from starling.artifacts import new_artifact, open_artifact, read_records, write_records
from starling.config import DatasetSection, GuardSection, MicroworldJudge, RankingSection, ResponsesSection, SelectionSection
from starling.endpoint import Reply, Request, ScriptedEndpoint
from starling.evaluate import gold, head_to_head, reward_accuracy
from starling.evaluate.rows import ANSWERS_FILE, COMPARISONS_FILE, REPLIES_FILE, EvaluatedPrompt, EvaluatedReply, ScoredAnswer
from starling.journal import Journal
from starling.microworld import judge, world
from starling.policy.best_of_n import write_reference
from starling.policy.guard import Guard
from starling.policy.selection import choose
from starling.records import Comparison, Finish, Judgment, MergedRanking, ModelRef, Outcome, PairSupport, Prompt, Response

FLAWED = {"early": 0.95, "middle": 0.8, "hot": 0.75, "base": 0.6, "cool": 0.5, "clean": 0.1, "flawed": 1.0}
SETTINGS: dict[str, Any] = {
    "run": {"dir": "runs/fake", "seed": 1, "threads": 0, "budget_calls": None},
    "microworld": {"hidden": 128, "layers": 4, "flawed_share": 0.6},
    "models": {
        "judge": {"type": "microworld-judge", "noise": 0.05, "position_bias": 0.04, "malformed": 0.01},
        "base": {"type": "microworld-speaker", "checkpoint": "base", "sampling": {"temperature": 1.0, "stop": []}},
    },
    "prompts": {"sources": [{"type": "microworld"}], "train": 700, "validation_fraction": 0.1},
    "responses": {"models": list(FLAWED)},
    "ranking": {"judge": "judge", "retries": 1},
    "reward": {
        "loss": {"type": "bradley_terry", "pairs": "all"},
        "epochs": 2,
        "optimizer": {"learning_rate": 0.001, "betas": [0.9, 0.999]},
    },
    "policy": {
        "algorithm": {"type": "apa", "lam": 1.0},
        "iterations": 24,
        "kl": 0.1,
        "selection": {"keep": "rule", "by": "eval/guard", "check": "eval/gold"},
    },
    "evaluate": {"split": "test", "samples": 3},
    "publish": {"license": "apache-2.0", "judge_terms": "None: the judge is a program."},
}


CHOSEN: dict[str, dict[str, Any]] = {
    "responses": {"responses": SETTINGS["responses"], "pool": dict.fromkeys(FLAWED, SETTINGS["models"]["base"])},
    "ranking": {"ranking": SETTINGS["ranking"], "judge": {"judge": SETTINGS["models"]["judge"]}},
    "reward": {"reward": SETTINGS["reward"]},
}
"""What the stages' manifests say about the settings they read."""


def stage(run: Path, name: str, fill: Any, *inputs: str) -> None:
    """One artifact whose folder `fill(draft)` fills."""
    lineage = {i: open_artifact(run, i).fingerprint for i in inputs}
    with new_artifact(run, name, key=f"key-{name}", inputs=lineage, config=CHOSEN.get(name, {})) as draft:
        fill(draft)


def make(run: Path, *, until: str = "evaluate", prompts: int = 160, held_out: int = 400, seed: int = 0) -> Path:
    """A run directory with every stage up to `until`, of about that many ranked and held-out prompts."""
    rng = random.Random(seed)
    run.mkdir(parents=True, exist_ok=True)
    every = world.all_prompts(validation=0.1, test=0.1)
    asked = [p for p in every if p.split != "test"]
    asked = asked[:: max(1, len(asked) // prompts)][:prompts]
    unseen = [p for p in every if p.split == "test"]
    unseen = unseen[:: max(1, len(unseen) // held_out)]
    (run / "config.json").write_text(json.dumps(SETTINGS))
    journal = Journal(run / "journal.sqlite")
    arbiter = ScriptedEndpoint(
        ModelRef(provider="microworld-judge", name="judge"),
        partial(judge.answer, settings=MicroworldJudge(type="microworld-judge", malformed=0.03), seed=seed),
        journal,
    )
    pool = {
        name: ScriptedEndpoint(ModelRef(provider="scripted", name=name), partial(_speak, flawed), journal)
        for name, flawed in FLAWED.items()
    }

    def fill_world(draft: Any) -> None:
        (draft.path / "base").mkdir()
        (draft.path / "base" / "config.json").write_text("{}")

    def fill_prompts(draft: Any) -> None:
        write_records(draft.path / "prompts.parquet", every, Prompt)
        draft.rows, draft.outcomes = len(every), {"duplicate": 3}

    answered: list[Response] = []
    judged: list[Judgment] = []

    def fill_responses(draft: Any) -> None:
        file = draft.path / "responses.parquet"
        settings = ResponsesSection(models=tuple(pool), distinct=False, resample=0)
        collected = responses.collect(asked, pool, settings, out=file, scratch=run)
        answered.extend(read_records(file, Response))
        draft.rows, draft.outcomes, draft.metrics = collected.rows, collected.outcomes, collected.metrics

    def fill_ranking(draft: Any) -> None:
        ranked = ranking.rank(asked, answered, arbiter, RankingSection(judge="judge", retries=0), seed)
        judged.extend(ranked.judgments)
        write_records(draft.path / "judgments.parquet", judged, Judgment)
        write_records(draft.path / "rankings.parquet", [merged(j) for j in judged], MergedRanking)
        draft.rows, draft.outcomes = len(judged), ranked.outcomes

    def fill_dataset(draft: Any) -> None:
        assembled = nectar.assemble(asked, answered, [merged(j) for j in judged], judged, DatasetSection())
        draft.rows = nectar.write_splits(draft.path, assembled)
        draft.outcomes = assembled.left_out

    steps = {
        "world": (fill_world,),
        "prompts": (fill_prompts,),
        "responses": (fill_responses, "world", "prompts"),
        "ranking": (fill_ranking, "prompts", "responses"),
        "dataset": (fill_dataset, "prompts", "responses", "ranking"),
        "reward": (partial(_fill_reward, rng), "world", "dataset"),
        "policy": (partial(_fill_policy, rng), "world", "prompts", "reward"),
        "evaluate": (partial(_fill_evaluate, rng, unseen), "world", "prompts", "reward", "policy"),
    }
    for name, (fill, *inputs) in steps.items():
        stage(run, name, fill, *inputs)
        if name == until:
            break
    journal.close()
    return run


def merged(judgment: Judgment) -> MergedRanking:
    """What one call about a prompt comes to, when it is the only one."""
    won = {frozenset((v.first, v.second)): v.winner for v in judgment.pair_verdicts}
    pairs = [
        PairSupport(better=a, worse=b, support=float(won[frozenset((a, b))] == a), weight=1)
        for a, b in combinations(judgment.ranking or (), 2)
        if frozenset((a, b)) in won
    ]
    return MergedRanking(
        prompt_id=judgment.prompt_id,
        outcome=judgment.outcome,
        tiers=tuple((i,) for i in judgment.ranking or ()),
        good_natured=judgment.good_natured,
        pairs=tuple(pairs),
        contested=any(p.support < p.weight for p in pairs),
        calls=(judgment.call_id,),
        reason=judgment.reason,
    )


def _speak(flawed: float, request: Request) -> str | Reply:
    rng = random.Random(request.key)
    if rng.random() < 0.004:
        return Reply(
            text="", finish=Finish.error, call_id=request.key, error="out of memory", prompt_tokens=None, completion_tokens=None
        )
    return world.draw_reply(world.task(request.messages), rng, flawed_share=flawed)


def _fill_reward(rng: random.Random, draft: Any) -> None:
    lines: list[dict[str, Any]] = []
    for step in range(1, 121):
        quality = 1 - math.exp(-step / 30)
        row = {
            "step": step,
            "loss": 1.4 - 0.9 * quality + rng.gauss(0, 0.06),
            "pair_accuracy": 0.5 + 0.4 * quality + rng.gauss(0, 0.03),
        }
        lines.append(
            row
            | {"top1": 0.2 + 0.6 * quality + rng.gauss(0, 0.06), "score_std": quality, "learning_rate": 1e-3, "grad_norm": 1.0}
        )
        if step % 30 == 0:
            held_out = {"loss": 1.45 - 0.85 * quality, "pair_accuracy": 0.5 + 0.38 * quality, "top1": 0.2 + 0.55 * quality}
            lines.append({"step": step, "validation": held_out})
    (draft.path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    draft.rows = 700
    draft.metrics = {
        "rankings/train": 700.0,
        "rankings/validation": 80.0,
        "answers/whole": 4900.0,
        "steps": 120.0,
        "validation/pair_accuracy": 0.874,
    }


def _fill_policy(rng: random.Random, draft: Any) -> None:
    fill_policy(rng, draft)


def fill_policy(rng: random.Random, draft: Any, exploited: float = 0.0) -> None:
    """A policy's log with guard, selection and best-of-n curve; `exploited`: how much the reward model is gamed in the end."""
    guard, se = Guard(GuardSection()), {"eval/score_se": 0.07, "eval/guard_se": 0.05}
    lines: list[dict[str, Any]] = []
    for step in range(25):
        gain = 1 - math.exp(-step / 8)
        gamed = exploited * step / 24
        length, kl, finished = 17 - 3 * gain + 25 * gamed, 4 * gain + 12 * gamed, 0.97 + 0.02 * gain
        row: dict[str, Any] = {"iteration": step}
        if step:
            row |= {"reward": gain + rng.gauss(0, 0.1), "score": 2 * gain - 0.5 + gamed + rng.gauss(0, 0.1), "kl_reply": kl}
            row |= {"value_loss": 0.6 - 0.4 * gain, "length": length + rng.gauss(0, 0.3), "finished": finished}
        if step % 3 == 0:
            row |= {"eval/score": 2 * gain - 0.55 + gamed, "eval/guard": 1.5 * gain - 0.4 - 1.6 * gamed, **se}
            row |= {"eval/gold": 0.52 + 0.32 * gain - 0.35 * gamed, "eval/greedy/gold": 0.6 + 0.27 * gain - 0.35 * gamed}
            row |= {"eval/length": length, "eval/finished": finished, "eval/kl": kl}
            row |= {"eval/repetition": 0.02 + 0.2 * gamed, "eval/refusals": 0.11 - 0.03 * gain}
            row |= guard.look([*lines, row]).row()
        lines.append(row)
    (draft.path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    selection = choose(lines, SelectionSection(keep="rule", check="eval/gold")).record()
    (draft.path / "selection.json").write_text(json.dumps(selection))
    scores = [[rng.gauss(-0.55, 0.8) for _ in range(16)] for _ in range(64)]
    others = {
        "guard": [[0.6 * s + rng.gauss(-0.07, 0.5) for s in row] for row in scores],
        "gold": [[0.62 + 0.18 * s + rng.gauss(0, 0.1) for s in row] for row in scores],
    }
    write_reference(draft.path, GuardSection(best_of=16), lambda n: (scores, others))
    draft.metrics = {"score": 1.4, "length": 14.1}


def _reply(rng: random.Random, prompt: Prompt, flawed: float) -> EvaluatedReply:
    text = world.draw_reply(world.task(prompt.messages), rng, flawed_share=flawed)
    finished = rng.random() > 0.02
    truth = world.gold(prompt.messages, text, finished)
    reward = 4 * truth.score - 2 + rng.gauss(0, 0.5)
    return EvaluatedReply(
        text=text, finished=finished, tokens=len(text) // 4 + 2, reward=reward, gold=truth.score, harmlessness=truth.harmlessness
    )


def _fill_evaluate(rng: random.Random, held_out: list[Prompt], draft: Any) -> None:
    rows = [
        EvaluatedPrompt(
            prompt_id=p.id,
            messages=p.messages,
            kind=world.kind(p.messages),
            base_greedy=_reply(rng, p, 0.7),
            tuned_greedy=_reply(rng, p, 0.12),
            base_sampled=tuple(_reply(rng, p, 0.6) for _ in range(3)),
            tuned_sampled=tuple(_reply(rng, p, 0.2) for _ in range(3)),
        )
        for p in held_out
    ]
    answers = [
        ScoredAnswer(prompt_id=p.id, model=m, text=r.text, finished=r.finished, reward=r.reward, truth=r.gold or 0.0)
        for p in held_out
        for m, flawed in FLAWED.items()
        for r in [_reply(rng, p, flawed)]
    ]
    verdicts = [(_verdict(rng, row), _verdict(rng, row)) for row in rows[:120]]
    options = {"resamples": 300, "seed": 0}
    write_records(draft.path / REPLIES_FILE, rows, EvaluatedPrompt)
    write_records(draft.path / ANSWERS_FILE, answers, ScoredAnswer)
    write_records(draft.path / COMPARISONS_FILE, [c for pair in verdicts for c in pair], Comparison)
    draft.rows = len(rows)
    draft.metrics = {
        "split": "test",
        "prompts": len(rows),
        "samples": 3,
        "reward": {"truth": "gold", **reward_accuracy.measure(answers, **options), "left_out": {"error": 4}},
        **{
            name: {
                side: {"mean": low if side == "base" else high, "ci": [low, high], "greedy": high} for side in ("base", "tuned")
            }
            for name, low, high in (("policy_reward", -0.2, 1.1), ("length", 15.2, 14.4), ("finished", 0.975, 0.985))
        },
        "gold": gold.measure(rows, harmful=lambda r: not world.good_natured(r.messages), **options),
        "head_to_head": head_to_head.measure(verdicts, identical=7, **options),
    }


def _verdict(rng: random.Random, row: EvaluatedPrompt) -> Comparison:
    better = "b" if (row.tuned_sampled[0].gold or 0) + rng.gauss(0, 0.2) > (row.base_sampled[0].gold or 0) else "a"
    failed = rng.random() < 0.01
    return Comparison.model_validate(
        {
            "prompt_id": row.prompt_id,
            "a": "base",
            "b": "tuned",
            "by": "judge",
            "winner": None if failed else better,
            "outcome": Outcome.unparsed if failed else Outcome.ranked,
        }
    )


if __name__ == "__main__":
    print(make(Path(sys.argv[1])))
