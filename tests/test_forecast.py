"""The plan: calls, tokens, dollars and hours worked by hand, with nothing, little and much in the journal."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from starling import forecast, pipeline, plan, prompts
from starling.artifacts import new_artifact, write_records
from starling.config import Config, Price, load_config
from starling.forecast import Amount
from starling.journal import Answer, Intent, Journal, StoredReply, Tokens
from starling.judge.rubric import STARLING, build_prompt
from starling.records import Message, Prompt

STAGES = ["prompts", "responses", "ranking", "dataset"]
MODEL = 'type = "openai"\nbase_url = "http://localhost:1/v1"\nsampling = {{ max_tokens = {longest} }}\n'


def settings(folder: Path, n: int = 4, *overrides: str) -> Config:
    """n prompts of 40 characters (11 tokens); `a` answers for a price, `b` without one; `a` judges."""
    lines = [json.dumps({"prompt": f"{i:04}" + "x" * 36}) + "\n" for i in range(n)]
    (folder / "prompts.jsonl").write_text("".join(lines), "utf-8")
    (folder / "plan.toml").write_text(
        f'[run]\ndir = "{folder}/run"\n'
        + "[models.a]\n" + MODEL.format(longest=1000) + 'name = "big"\nin_flight = 8\nprice = { prompt = 2, completion = 10 }\n'
        + "[models.b]\n" + MODEL.format(longest=100) + 'name = "small"\nin_flight = 2\n'
        + f'[prompts]\nsources = [{{ type = "file", path = "{folder}/prompts.jsonl", name = "mine" }}]\n'
        + 'test_fraction = 0.0\nvalidation_fraction = 0.0\n[responses]\nmodels = ["a", "b"]\nresample = 0\n'
        + '[ranking]\njudge = "a"\nmax_tokens = 500\nmax_prompt_chars = 100000\n',
        "utf-8",
    )  # fmt: skip
    return load_config(folder / "plan.toml", overrides)


def answer(config: Config, model: str, purpose: str, count: int, *, prompt: int, completion: int, seconds: float) -> None:
    """Put answered calls into the run's journal."""
    with Journal(config.run.dir / "journal.sqlite") as journal:
        for number in range(count):
            key = f"{model}-{purpose}-{number}"
            journal.write(
                [
                    Intent(key=key, attempt=1, request={"model": {"name": model}, "purpose": purpose}),
                    Answer(key=key, attempt=1, reply=StoredReply(status=200, body="{}", latency_s=seconds)),
                    Tokens(key=key, attempt=1, prompt=prompt, completion=completion),
                ]
            )


def lines(config: Config, todo: list[str] = STAGES) -> dict[tuple[str, str], forecast.Line]:
    return {(line.stage, line.model): line for line in forecast.forecast(config, todo).lines}


def judge_prompt_tokens(answer_tokens: int) -> int:
    """Rubric, conversation and two answers, as `_judge_calls` counts them."""
    frame = build_prompt(STARLING, (Message(role="user", content="-"),), [""] * 2, [(0, 1)], "0" * 16)
    return sum(len(m.content) for m in frame) // 4 + 1 + 11 + 2 * answer_tokens


# ── by hand ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_before_anything_is_asked(tmp_path: Path) -> None:
    """a: 4 answers of 300 tokens assumed at 0.5 + 300/40 = 8 s, 8 in flight; b may write 100 at most: 3 s, 2 in flight."""
    config = settings(tmp_path)
    found = lines(config)
    assert set(found) == {("responses", "a"), ("responses", "b"), ("ranking", "a")}
    a, b, judge = found["responses", "a"], found["responses", "b"], found["ranking", "a"]
    assert (a.calls, a.answered, a.basis) == (4, 0, "assumed")
    assert a.expected == Amount(4, 44, 1200, pytest.approx((44 * 2 + 1200 * 10) / 1e6), pytest.approx(4 * 8 / 8 / 3600))
    assert a.most == Amount(4, 44, 4000, pytest.approx((44 * 2 + 4000 * 10) / 1e6), pytest.approx(4 * 25.5 / 8 / 3600))
    assert b.expected == b.most == Amount(4, 44, 400, None, pytest.approx(4 * 3 / 2 / 3600))
    likely = judge_prompt_tokens(300)  # as long as the longest likely answer
    assert (judge.expected.prompt_tokens, judge.expected.completion_tokens) == (4 * likely, 4 * 250)
    assert (judge.most.calls, judge.most.completion_tokens) == (8, 8 * 500), "each may be asked once more"
    assert judge.most.prompt_tokens == 8 * judge_prompt_tokens(1000)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == [], "planning writes nothing"


def test_totals(tmp_path: Path) -> None:
    found = forecast.forecast(settings(tmp_path), STAGES)
    by = {(line.stage, line.model): line.expected for line in found.lines}
    a, b, judge = by["responses", "a"], by["responses", "b"], by["ranking", "a"]
    assert found.stages["responses"][0] == Amount(8, 88, 1600, a.dollars, b.hours), "the slower of two that answer together"
    assert a.hours is not None
    assert b.hours is not None
    assert judge.hours is not None
    assert b.hours > a.hours
    assert found.total[0].calls == 12
    assert found.total[0].dollars == pytest.approx((a.dollars or 0) + (judge.dollars or 0))
    assert found.total[0].hours == pytest.approx(b.hours + judge.hours), "one stage after the other"


def test_rate_limits_of_keys_make_hours_longer(tmp_path: Path) -> None:
    """100 calls of 8 s, 8 in flight per key: 100 s with one key, 50 s with two, whatever the faster limits say. At 6 requests a
    minute and key 100/6 min; at 1,311 tokens a minute 31,100 / 1,311 = 23.7 min; a key without a limit never waits."""
    two = ('models.a.api_key_env=["K", "L"]',)

    def hours(*overrides: str) -> float:
        found = lines(settings(tmp_path, 100, *overrides))["responses", "a"].expected.hours
        assert found is not None
        return found * 3600

    assert hours("models.a.api_key_env=K") == pytest.approx(100)
    assert hours(*two) == pytest.approx(50)
    assert hours(*two, "keys.K.requests_per_minute=6", "keys.L.requests_per_minute=6") == pytest.approx(100 / 12 * 60)
    assert hours(*two, "keys.K.requests_per_minute=6") == pytest.approx(50)
    assert hours("models.a.api_key_env=K", "keys.K.tokens_per_minute=1311") == pytest.approx(31_100 / 1311 * 60)
    assert hours("models.a.api_key_env=K", "keys.K.tokens_per_minute=1e9") == pytest.approx(100)


def test_a_batch_api_is_cheaper_and_promises_no_hours(tmp_path: Path) -> None:
    dear = lines(settings(tmp_path))["responses", "a"].expected
    cheap = lines(settings(tmp_path, 4, "models.a.batch={}"))["responses", "a"].expected
    assert dear.dollars is not None
    assert (cheap.dollars, cheap.hours) == (pytest.approx(dear.dollars / 2), None)


def test_the_discount_is_what_is_taken_off(tmp_path: Path) -> None:
    """A fifth off leaves four fifths to pay, as the journal charges it."""
    full = lines(settings(tmp_path))["responses", "a"].expected.dollars
    assert full is not None
    cheap = lines(settings(tmp_path, 4, "models.a.batch={discount=0.2}"))["responses", "a"].expected.dollars
    assert cheap == pytest.approx(full * 0.8)


def test_found_answers_do_not_keep_a_plan_from_a_fresh_run_directory(tmp_path: Path) -> None:
    found = lines(settings(tmp_path, 4, "responses.use_found=true"))
    assert found["responses", "a"].calls == 4, "none are known before the prompts stage is done"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("run.budget_tokens=10", "exceeds run.budget_tokens = 10: 0 tokens are paid for, "),
        ("run.budget_tokens=1000000", None),
        ("run.budget_dollars=0.001", "exceeds run.budget_dollars = 0.001: 0.00 dollars are paid for, "),
        ("run.budget_dollars=0.1", "may exceed run.budget_dollars = 0.1: "),
        ("run.budget_dollars=9", None),
    ],
)
def test_budgets_in_tokens_and_dollars_are_compared(tmp_path: Path, override: str, said: str | None) -> None:
    warnings = [w for w in forecast.forecast(settings(tmp_path, 4, override), STAGES).warnings if "budget" in w]
    assert len(warnings) == (said is not None)
    assert said is None or warnings[0].startswith(said)


def test_what_the_journal_answers_is_taken_off_and_gives_the_lengths(tmp_path: Path) -> None:
    config = settings(tmp_path, 100)
    answer(config, "big", "respond", 40, prompt=15, completion=120, seconds=2.0)
    found = lines(config)
    a = found["responses", "a"]
    assert (a.calls, a.answered, a.basis) == (100, 40, "journal")
    assert a.expected == Amount(60, 900, 7200, pytest.approx((900 * 2 + 7200 * 10) / 1e6), pytest.approx(60 * 2 / 8 / 3600))
    assert a.most.completion_tokens == 60 * 1000
    judge = found["ranking", "a"]
    assert (judge.answered, judge.basis) == (0, "assumed"), "what it answered as a member of the pool is no verdict"
    assert judge.expected.prompt_tokens == 100 * judge_prompt_tokens(120), "its prompts hold the shorter answers"
    answer(config, "big", "judge", 30, prompt=900, completion=90, seconds=1.0)
    judge = lines(config)["ranking", "a"]
    assert (judge.answered, judge.expected.prompt_tokens, judge.expected.completion_tokens) == (30, 70 * 900, 70 * 90)


def test_a_few_answers_are_taken_off_but_not_believed(tmp_path: Path) -> None:
    config = settings(tmp_path, 100)
    answer(config, "big", "respond", forecast.ENOUGH_ANSWERS - 1, prompt=15, completion=1, seconds=9.0)
    a = lines(config)["responses", "a"]
    assert (a.answered, a.basis, a.expected.completion_tokens) == (19, "assumed", 81 * 300)


def test_more_answers_than_calls_leave_nothing(tmp_path: Path) -> None:
    config = settings(tmp_path, 30)
    answer(config, "big", "respond", 50, prompt=15, completion=10, seconds=1.0)
    a = lines(config)["responses", "a"]
    assert (a.answered, a.expected) == (30, Amount(0, 0, 0, 0.0, 0.0))


def test_two_labels_of_one_model_share_what_it_answered(tmp_path: Path) -> None:
    """Told by name only: the first of the pool takes what is there, the second the rest."""
    config = settings(tmp_path, 30, 'models.b.name="big"')
    answer(config, "big", "respond", 50, prompt=15, completion=10, seconds=1.0)
    found = lines(config)
    assert (found["responses", "a"].answered, found["responses", "b"].answered) == (30, 20)


def test_answers_of_a_stage_that_is_done_are_not_taken_off_a_later_one(tmp_path: Path) -> None:
    """The judge's 30 answers belong to the finished ranking, not to the head to head of the evaluation."""
    config = settings(tmp_path, 30, "prompts.test_fraction=0.5")
    answer(config, "big", "judge", 30, prompt=900, completion=90, seconds=1.0)
    everything = prompts.gather(config.prompts, []).prompts if config.prompts else ()
    judged = 2 * sum(p.split == "test" for p in everything)
    assert judged > 10
    line = lines(config, ["prompts", "evaluate"])["evaluate", "a"]
    assert (line.calls, line.answered) == (judged, 0)


def test_prompts_are_gathered_once_or_read_from_the_finished_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(tmp_path)
    gathered: list[Any] = []
    real = prompts.gather
    monkeypatch.setattr(prompts, "gather", lambda *a, **k: gathered.append(1) or real(*a, **k))
    assert lines(config)["responses", "a"].calls == 4
    assert gathered == [1]
    with new_artifact(config.run.dir, "prompts", key="k", inputs={}, config={}) as draft:
        asked = [Prompt.make((Message(role="user", content=str(i)),), ("s",)) for i in range(7)]
        write_records(draft.path / "prompts.parquet", asked, Prompt)
    assert lines(config, ["responses", "ranking"])["responses", "a"].calls == 7
    assert gathered == [1], "a finished stage is not done again to plan the next one"


def test_without_anything_to_ask_nothing_is_read(tmp_path: Path) -> None:
    config = settings(tmp_path)
    (tmp_path / "prompts.jsonl").unlink()
    found = forecast.forecast(config, ["prompts", "dataset", "reward"])
    assert (found.lines, found.stages, found.total[0]) == ((), {}, Amount(0, 0, 0, None, None))


def test_prompts_that_are_judged_again_are_a_share_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage may count calls that it makes about contested prompts only; all of them is the upper bound."""
    real = plan.count

    def with_contested(*given: Any) -> list[plan.Calls]:
        found = real(*given)
        return [*found, dataclasses.replace(found[2], stage="ranking contested")]

    monkeypatch.setattr(plan, "count", with_contested)
    found = forecast.forecast(settings(tmp_path, 50), STAGES)
    contested = found.lines[-1]
    assert (contested.stage, contested.calls) == ("ranking contested", 50)
    assert contested.expected.calls == round(50 * forecast.ASSUMED_CONTESTED)
    assert contested.most.calls == 100
    assert found.stages["ranking"][0].calls == 60


# ── warnings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("budget", "answered", "said"),
    [
        (11, 0, "exceeds run.budget_calls = 11: 0 calls are paid for, 12 calls are to come"),
        (12, 0, "may exceed run.budget_calls = 12: 0 calls are paid for, 12 calls are to come, and at most 16 calls"),
        (12, 1, "may exceed run.budget_calls = 12: 1 calls are paid for, 11 calls are to come, and at most 15 calls"),
        (15, 0, "may exceed"),
        (16, 0, None),
    ],
)
def test_the_budget_is_compared_with_what_is_paid_and_to_come(
    tmp_path: Path, budget: int, answered: int, said: str | None
) -> None:
    config = settings(tmp_path, 4, f"run.budget_calls={budget}")
    if answered:
        answer(config, "big", "respond", answered, prompt=15, completion=10, seconds=1.0)
    warnings = [w for w in forecast.forecast(config, STAGES).warnings if "budget" in w]
    assert [w.startswith(said or "?") for w in warnings] == ([True] if said else [])


def test_a_model_without_a_price_is_named_and_one_that_is_free_is_not(tmp_path: Path) -> None:
    [warning] = forecast.forecast(settings(tmp_path), STAGES).warnings
    assert warning.startswith("no price is set for b:")
    free = settings(tmp_path, 4, "models.b.price={}")
    assert forecast.forecast(free, STAGES).warnings == ()
    assert lines(free)["responses", "b"].expected.dollars == 0.0


def test_dollars() -> None:
    assert Price(prompt=2.5, completion=10).dollars(1_000_000, 100_000) == 3.5


# ── showing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_end_with_sums_and_leave_out_what_nobody_knows(tmp_path: Path) -> None:
    rows = forecast.rows(forecast.forecast(settings(tmp_path), STAGES))
    assert [(r["stage"], r["model"], r["calls"]) for r in rows] == [
        ("responses", "a", 4), ("responses", "b", 4), ("ranking", "a", 4), ("responses", "all", 8), ("all", "all", 12),
    ]  # fmt: skip
    assert rows[-1]["dollars"] == round(sum(r["dollars"] or 0 for r in rows[:3]), 2)
    micro = load_config(Path(__file__).parent / "e2e" / "micro.toml", (f"run.dir={tmp_path / 'm'}",))
    local = forecast.rows(forecast.forecast(micro, [s.name for s in pipeline.needed(micro)]))
    assert {"dollars", "hours", "most dollars", "most hours"}.isdisjoint(local[0])


def test_counts_are_those_of_the_settings(tmp_path: Path) -> None:
    """`plan.count` is the upper bound that the forecast starts from."""
    config = settings(tmp_path)
    asked = plan.asked_prompts(config, STAGES)
    assert [(c.calls, c.completion_tokens, c.further_calls) for c in plan.count(config, STAGES, asked)] == [
        (4, 4000, 0),
        (4, 400, 0),
        (4, 2000, 0),
    ]
