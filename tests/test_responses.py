"""Responses: who is asked, what counts as an answer, rounds, order, restarts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling.artifacts import RecordFile, new_artifact, read_records, write_records
from starling.config import Config, ResponsesSection, load_config
from starling.endpoint import BatchEndpoint, Endpoint, Reply, Request, ScriptedEndpoint
from starling.errors import ArtifactError, ConfigError
from starling.journal import Journal
from starling.plan import Calls, asked_prompts, count
from starling.records import Finish, FoundAnswer, Message, ModelRef, Prompt, Response, Sampling, content_hash
from starling.responses import Ask, Collected, Fate, Step, collect, most_asks, next_asks, slots_of

Answer = Callable[[str, int], str | Reply]
"""A scripted model: what it says to a prompt's text, at its n-th draw."""


def prompts_of(*texts: str) -> list[Prompt]:
    return [Prompt.make((Message(role="user", content=text),), ("test",)) for text in texts]


PROMPTS = prompts_of("one", "two")


def failed(why: str = "HTTP 500") -> Reply:
    return Reply("", Finish.error, "", why)


class Bench:
    """Scripted models on one journal; `asked` lists what reached them, as (model, text, sample)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = Journal(folder / "journal.sqlite")
        self.asked: list[tuple[str, str, int]] = []
        self.requests: list[Request] = []

    def endpoint(self, name: str, answer: Answer, temperature: float = 1.0) -> ScriptedEndpoint:
        def said(request: Request) -> str | Reply:
            self.asked.append((name, request.messages[-1].content, request.sample))
            self.requests.append(request)
            return answer(request.messages[-1].content, request.sample)

        model = ModelRef(provider="scripted", name=name, sampling=Sampling(temperature=temperature))
        return ScriptedEndpoint(model, said, self.journal)

    def run(
        self,
        models: Mapping[str, Answer],
        prompts: Collection[Prompt] = PROMPTS,
        *,
        greedy: str = "",
        more: Any = None,
        **settings: Any,
    ) -> tuple[list[Response], Collected]:
        """The responses of a pool of scripted models; without `pool` or `models` in the settings every model answers."""
        if "pool" not in settings:
            settings.setdefault("models", tuple(models))
        pool: dict[str, Endpoint] = {
            name: self.endpoint(name, answer, 0.0 if name in greedy else 1.0) for name, answer in models.items()
        }
        scratch = self.folder / "scratch"
        scratch.mkdir(exist_ok=True)
        file = self.folder / "responses.parquet"
        collected = collect(prompts, pool, ResponsesSection(**settings), out=file, scratch=scratch, **(more or {}))
        assert list(scratch.iterdir()) == []
        rows = read_records(file, Response)
        assert collected.rows == len(rows)
        return rows, collected


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    found = Bench(tmp_path)
    yield found
    found.journal.close()


def says(ending: str) -> Answer:
    """Another text at every draw."""
    return lambda text, sample: f"{text}{ending}{sample or ''}"


def usable(rows: Sequence[Response], prompt: Prompt) -> list[tuple[str, str]]:
    return [(r.model, r.text) for r in rows if r.prompt_id == prompt.id and r.usable]


# ── whom to ask next ─────────────────────────────────────────────────────────────────────────────────────────────────

KEPT, FAILED, USELESS = (bytes([fate]) for fate in Fate)
A, A2, B, C = Step("a"), Step("a", again=True), Step("b"), Step("c")


@pytest.mark.parametrize(
    ("slots", "need", "fates", "asks"),
    [
        ([(A,), (B,)], 2, b"", [Ask("a", 0), Ask("b", 0)]),
        ([(A,), (B,)], 2, KEPT + KEPT, []),
        ([(A,), (B,)], 2, KEPT + FAILED, []),
        ([(A,), (B,)], 0, b"", []),
        ([], 2, b"", []),
        ([(A,), (B,), (C,)], 2, b"", [Ask("a", 0), Ask("b", 0)]),
        ([(A,), (B,), (C,)], 2, FAILED + KEPT, [Ask("c", 0)]),
        # An answer of no use is drawn again, a failure goes to the next model at once.
        ([(A, A2, B), (C,)], 2, USELESS + KEPT, [Ask("a", 1)]),
        ([(A, A2, B), (C,)], 2, FAILED + KEPT, [Ask("b", 0)]),
        ([(A, A2, B), (C,)], 2, USELESS + KEPT + USELESS, [Ask("b", 0)]),
        ([(A, A2, A2, B), (C,)], 2, USELESS + KEPT + FAILED, [Ask("b", 0)]),
        ([(A, A2, B), (C,)], 2, USELESS + KEPT + USELESS + KEPT, []),
        # Draws of one model for one prompt are numbered through, whichever slot they come from.
        ([(A, A2), (A, A2), (B, A)], 3, b"", [Ask("a", 0), Ask("a", 1), Ask("b", 0)]),
        ([(A, A2), (A, A2), (B, A)], 3, KEPT + USELESS + FAILED, [Ask("a", 2), Ask("a", 3)]),
        # Slots at their end give way to the reserve in its order.
        ([(A,), (B,), (C,), (A,)], 2, FAILED + FAILED, [Ask("c", 0), Ask("a", 1)]),
    ],
)
def test_next_asks_by_hand(slots: list[tuple[Step, ...]], need: int, fates: bytes, asks: list[Ask]) -> None:
    assert next_asks(slots, need, fates) == asks


STEPS = st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=4)


@given(st.lists(STEPS, max_size=6), st.integers(0, 6), st.lists(st.sampled_from(list(Fate)), min_size=40, max_size=40))
def test_asking_ends_with_k_answers_or_with_nobody_left(
    chains: list[list[tuple[str, bool]]], need: int, fates: list[Fate]
) -> None:
    slots = [tuple(Step(model, again and at > 0) for at, (model, again) in enumerate(chain)) for chain in chains]
    told, asked, kept = b"", Counter[str](), 0
    rest = iter(fates)
    while asks := next_asks(slots, need, told):
        assert len(asks) <= need - kept, "never more than are missing"
        before = [asked[ask.model] + sum(other.model == ask.model for other in asks[:i]) for i, ask in enumerate(asks)]
        assert [ask.sample for ask in asks] == before
        now = [next(rest, Fate.failed) for _ in asks]
        asked.update(a.model for a in asks)
        kept += now.count(Fate.kept)
        told += bytes(now)
    assert kept <= need
    assert asked <= most_asks(slots, need)


@given(st.lists(STEPS, max_size=6), st.integers(0, 6))
def test_when_nothing_is_of_use_everybody_is_asked_as_often_as_possible(chains: list[list[tuple[str, bool]]], need: int) -> None:
    slots = [tuple(Step(model, again) for model, again in chain) for chain in chains]
    told, asked = b"", Counter[str]()
    while asks := next_asks(slots, need, told):
        asked.update(ask.model for ask in asks)
        told += USELESS * len(asks)
    assert asked == most_asks(slots, need)


# ── the slots of a prompt ────────────────────────────────────────────────────────────────────────────────────────────

IDS = [content_hash(i, 16) for i in range(2000)]


def slots(prompt_id: str, seed: int = 0, greedy: str = "", **settings: Any) -> tuple[tuple[Step, ...], ...]:
    return slots_of(prompt_id, ResponsesSection(**settings), greedy, seed)


def test_a_chain_is_the_model_its_further_draws_and_its_fallbacks() -> None:
    pool = [{"model": "a", "fallback": ["b", "c"]}, {"model": "d"}]
    found = slots(IDS[0], greedy="b", pool=pool, resample=1, fillers=["e", "e"])
    assert set(found[:2]) == {(A, A2, B, C, Step("c", again=True)), (Step("d"), Step("d", again=True))}
    assert found[2:] == ((Step("e"), Step("e", again=True)),) * 2


def test_where_only_some_are_needed_each_is_as_likely() -> None:
    """K = 2 of 5 draws: each model's share of the first two places is 2/5, within 4 standard errors of 2,000 prompts."""
    firsts = Counter(slot[0].model for i in IDS for slot in slots(i, models=tuple("abcde"), k=2)[:2])
    assert all(abs(firsts[name] / len(IDS) - 0.4) < 4 * (0.4 * 0.6 / len(IDS)) ** 0.5 for name in "abcde")
    assert slots(IDS[0], models=tuple("abcde")) == slots(IDS[0], models=tuple("edcba")), "the order of the settings is not asked"
    assert [slots(i, models=("a", "b")) for i in IDS[:50]] != [slots(i, seed=1, models=("a", "b")) for i in IDS[:50]]


def test_shares_are_kept_and_their_number_is_the_same_for_every_prompt() -> None:
    """1 + 4 · ¼ + ½ + ½ = 3 models for every prompt, each in its share of them."""
    shares = {"all": 1.0, "q1": 0.25, "q2": 0.25, "q3": 0.25, "q4": 0.25, "h1": 0.5, "h2": 0.5}
    pool = [{"model": name, "share": share} for name, share in shares.items()]
    chosen = [frozenset(slot[0].model for slot in slots(i, pool=pool, k=3)) for i in IDS]
    assert {len(c) for c in chosen} == {3}
    for name, share in shares.items():
        rate = sum(name in c for c in chosen) / len(IDS)
        assert abs(rate - share) <= 4 * (share * (1 - share) / len(IDS)) ** 0.5, name
    assert sum({"q1", "q2"} <= c for c in chosen) > 0, "no two models exclude each other"


def test_shares_that_do_not_add_up_to_a_whole_number_give_its_neighbours() -> None:
    pool = [{"model": "a"}, {"model": "b", "share": 0.9}, {"model": "c", "share": 0.4, "samples": 2}]
    chosen = [Counter(slot[0].model for slot in slots(i, pool=pool, k=2)) for i in IDS]
    assert {len(c) for c in chosen} == {2, 3}
    assert {c["c"] for c in chosen} == {0, 2}, "a model that is drawn gives all its samples"
    assert abs(sum(len(c) == 3 for c in chosen) / len(IDS) - 0.3) < 4 * (0.3 * 0.7 / len(IDS)) ** 0.5


# ── settings and plan ────────────────────────────────────────────────────────────────────────────────────────────────

TOML = """
[run]
dir = "runs/x"
[prompts]
sources = [{ type = "file", path = "p.jsonl", name = "mine" }]
validation_fraction = 0.0
test_fraction = 0.0
[models]
a = { type = "openai", base_url = "http://127.0.0.1:1/v1", name = "a", system = "Be brief, please." }
b = { type = "openai", base_url = "http://127.0.0.1:1/v1", name = "b", sampling = { temperature = 0.0, max_tokens = 10 } }
c = { type = "openai", base_url = "http://127.0.0.1:1/v1", name = "c", sampling = { max_tokens = 20 } }
[responses]
"""


def planned(config: Config, stages: list[str]) -> list[Calls]:
    return count(config, stages, asked_prompts(config, stages))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("", "at least two models: one answer cannot be ranked (K = 1)"),
        ('models = ["a"]', "(K = 1)"),
        ('models = ["a", "b"]\nk = 1', "greater than or equal to 2"),
        ('models = ["a", "b"]\npool = [{ model = "c" }]', "in two ways; keep one"),
        ('pool = [{ model = "a" }, { model = "a" }]', "named twice; `samples`"),
        ('pool = [{ model = "a", fallback = ["b", "a"] }, { model = "b" }]', "'a' is its own fallback"),
        ('pool = [{ model = "a" }, { model = "b", share = 0.5 }, { model = "c" }]', "`k` must say"),
        ('pool = [{ model = "a" }, { model = "b", share = 0.0 }]\nk = 2', "greater than 0"),
        ('pool = [{ model = "a" }, { model = "b", share = 0.5 }]\nk = 2', "give only 1.5 per prompt"),
        ('models = ["a", "b"]\nk = 5\nfillers = ["c", "c"]', "k = 5, but pool, fillers and found answers give only 4"),
        ('models = ["a", "b"]\nk = 5\nuse_found = true\nmax_found = 2', "give only 4 per prompt"),
        ('pool = [{ model = "a", samples = 7 }, { model = "c", samples = 6 }]', "13 answers per prompt are more than a judge"),
        ('models = ["a", "x"]', "responses names the model 'x', which is not under [models]"),
        ('pool = [{ model = "a", fallback = ["x"] }, { model = "b" }]', "the model 'x'"),
        ('models = ["a", "b"]\nfillers = ["x"]', "the model 'x'"),
        ('pool = [{ model = "b", samples = 2 }]', "'b' is to draw 2 answers, which are all the same at temperature 0"),
        ('pool = [{ model = "a", weight = 2 }, { model = "b" }]', "'responses.pool.0.weight'"),
    ],
)
def test_pools_that_cannot_work_are_refused(tmp_path: Path, settings: str, told: str) -> None:
    (tmp_path / "c.toml").write_text(TOML + settings)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.toml")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "answers", "names"),
    [
        ('models = ["b", "a"]', 2, ("b", "a")),
        ('models = ["a", "b"]\nfillers = ["c", "a"]\nk = 4', 4, ("a", "b", "c")),
        ('pool = [{ model = "a", samples = 3, fallback = ["c"] }, { model = "b" }]', 4, ("a", "b", "c")),
        ('models = ["a", "b"]\nk = 5\nuse_found = true\nmax_found = 3', 5, ("a", "b")),
        ('pool = [{ model = "a" }, { model = "b", share = 0.9 }, { model = "c", share = 0.1 }]\nk = 2', 2, ("a", "b", "c")),
    ],
)
def test_pools_that_work(tmp_path: Path, settings: str, answers: int, names: tuple[str, ...]) -> None:
    (tmp_path / "c.toml").write_text(TOML + settings)
    section = load_config(tmp_path / "c.toml").responses
    assert section is not None
    assert (section.answers, section.names) == (answers, names)


def test_the_plan_counts_calls_by_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 prompts of 8 characters, K = 2: a answers all, b half; c stands in for b's failures and fills the other half.

    a may be drawn 1 + 2 times, c 1 + 2 times in b's place and 1 + 2 times as a filler, b (greedy) once.
    """
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text("".join(f'{{"prompt": "Hi {i:05}"}}\n' for i in range(1000)), "utf-8")
    pool = 'pool = [{ model = "a" }, { model = "b", share = 0.5, fallback = ["c"] }]\nfillers = ["c"]\nk = 2'
    Path("c.toml").write_text(TOML + pool)
    config = load_config(Path("c.toml"))
    a, b, c = planned(config, ["prompts", "responses"])
    assert [x.model for x in (a, b, c)] == ["a", "b", "c"]
    assert (a.calls, a.further_calls) == (1000, 2000)
    assert 440 < b.calls < 560
    assert (b.further_calls, c.calls) == (0, 1000 - b.calls)
    assert c.further_calls == 3 * b.calls + 3 * 1000 - c.calls
    assert (b.completion_tokens, c.completion_tokens) == (10 * b.calls, 20 * c.calls)
    assert b.prompt_tokens == b.calls * (8 // 4 + 1)
    assert a.prompt_tokens == 1000 * ((8 + len("Be brief, please.")) // 4 + 1)


def test_found_answers_save_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """K = 3 of three models; three prompts with 0, 1 and 3 found answers of which at most 2 are used: 3 + 2 + 1 calls."""
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text(TOML + 'models = ["a", "b", "c"]\nuse_found = true\nmax_found = 2\nresample = 0')
    config = load_config(Path("c.toml"))
    prompts = prompts_of("one", "two", "three")
    Path("p.jsonl").write_text("".join(f'{{"prompt": "{p.messages[-1].content}"}}\n' for p in prompts))
    with new_artifact(config.run.dir, "prompts", key="k", inputs={}, config={}) as draft:
        write_records(draft.path / "prompts.parquet", prompts, Prompt)
        write_records(draft.path / "answers.parquet", found(prompts[1], "x") + found(prompts[2], *"xyz"), FoundAnswer)
    assert sum(c.calls for c in planned(config, ["responses"])) == 6
    assert sum(c.calls + c.further_calls for c in planned(config, ["responses"])) == 9
    assert sum(c.calls for c in planned(config, ["prompts", "responses"])) == 9, "before the prompts stage none are known"


# ── what is collected ────────────────────────────────────────────────────────────────────────────────────────────────


def test_prompt_order_then_pool_order(bench: Bench) -> None:
    # The pool's own order counts, not the alphabet.
    rows, collected = bench.run({"zeta": says("?"), "alpha": says("!")})
    assert [(r.prompt_id, r.model, r.text) for r in rows] == [
        (PROMPTS[0].id, "zeta", "one?"),
        (PROMPTS[0].id, "alpha", "one!"),
        (PROMPTS[1].id, "zeta", "two?"),
        (PROMPTS[1].id, "alpha", "two!"),
    ]
    assert len({r.id for r in rows}) == 4
    assert all(r.finish is Finish.stop and r.call_id and r.usable and not r.source for r in rows)
    assert collected.outcomes == {"stop": 4}
    assert collected.metrics["rounds"] == [4]
    assert collected.metrics["prompts_by_answers"] == {"2": 2}


def test_equal_texts_of_two_models_are_two_responses_when_they_may_be(bench: Bench) -> None:
    rows, _ = bench.run({"a": says("!"), "b": says("!")}, PROMPTS[:1], distinct=False)
    assert usable(rows, PROMPTS[0]) == [("a", "one!"), ("b", "one!")]
    assert rows[0].id != rows[1].id


def test_equal_texts_count_once_and_are_drawn_again(bench: Bench) -> None:
    """Blanks around a text make it no other one. Whose text stays, the prompt decides: each in about half of them."""
    many = prompts_of(*(f"p{i}" for i in range(60)))
    rows, collected = bench.run({"a": says("!"), "b": lambda text, n: f" {text}!\n" if n == 0 else f"{text} again"}, many)
    kept = Counter()
    for prompt in many:
        mine = [r for r in rows if r.prompt_id == prompt.id]
        assert [r.set_aside for r in mine].count("duplicate") == 1
        kept.update([tuple(model for model, _ in usable(rows, prompt))])
        assert len({text.strip() for _, text in usable(rows, prompt)}) == 2
        assert [r.model for r in mine] == sorted(r.model for r in mine)
        (again,) = [r for r in mine if not r.text.strip().endswith("!")]
        assert again.model == next(r.model for r in mine if r.set_aside)
    assert kept == {("a", "b"): 60}
    counts = collected.metrics["models"]
    assert counts["a"]["duplicate"] + counts["b"]["duplicate"] == 60
    assert 15 <= counts["a"]["duplicate"] <= 45
    assert collected.metrics["rounds"] == [120, 60]
    assert collected.outcomes == {"stop": 120, "duplicate": 60}


def test_a_model_never_repeats_itself_even_where_others_may(bench: Bench) -> None:
    pool = [{"model": "a", "samples": 2}, {"model": "b"}]
    rows, _ = bench.run({"a": lambda text, n: f"same{n // 2}", "b": says("!")}, PROMPTS[:1], pool=pool, distinct=False)
    assert sorted(usable(rows, PROMPTS[0])) == [("a", "same0"), ("a", "same1"), ("b", "one!")]
    assert sorted(bench.asked) == [("a", "one", 0), ("a", "one", 1), ("a", "one", 2), ("b", "one", 0)]


def test_resampling_has_an_end_and_what_is_missing_is_counted(bench: Bench) -> None:
    rows, collected = bench.run({"a": lambda text, n: "x", "b": lambda text, n: "x"}, PROMPTS[:1], resample=3)
    assert [r.set_aside for r in rows].count("duplicate") == 4, "the first one and three more"
    assert collected.outcomes == {"stop": 1, "duplicate": 4, "fewer_than_k": 1}
    assert collected.metrics["prompts_by_answers"] == {"1": 1}
    assert collected.metrics["rounds"] == [2, 1, 1, 1]


def test_a_greedy_model_is_not_drawn_again(bench: Bench) -> None:
    _, collected = bench.run({"a": lambda text, n: "x", "b": lambda text, n: "x"}, PROMPTS[:1], greedy="ab")
    assert sorted(bench.asked) == [("a", "one", 0), ("b", "one", 0)]
    assert collected.outcomes == {"stop": 1, "duplicate": 1, "fewer_than_k": 1}


def test_a_failed_call_keeps_its_row_and_its_reason_and_is_not_repeated(bench: Bench) -> None:
    def answer(text: str, sample: int) -> str | Reply:
        return failed() if text == "one" else Reply("cut o", Finish.length, "")

    rows, collected = bench.run({"a": answer, "b": lambda text, n: Reply("I won't.", Finish.refusal, "")})
    one, _, cut, refused = rows
    assert (one.text, one.finish, one.reason, one.usable) == ("", Finish.error, "HTTP 500", False)
    assert (cut.text, cut.finish, cut.usable) == ("cut o", Finish.length, True)
    assert (refused.text, refused.finish, refused.usable) == ("I won't.", Finish.refusal, True)
    assert len(bench.asked) == 4
    assert collected.outcomes == {"error": 1, "length": 1, "refusal": 2, "fewer_than_k": 1}
    assert collected.metrics["models"]["a"] == {
        "calls": 2, "kept": 1, "failed": 1, "empty": 0, "duplicate": 0, "refused": 0, "truncated": 1
    }  # fmt: skip
    assert collected.metrics["models"]["b"]["refused"] == 2


def test_an_empty_answer_is_no_answer(bench: Bench) -> None:
    rows, collected = bench.run({"a": lambda text, n: " \n" if n < 2 else "at last", "b": says("!")}, PROMPTS[:1])
    assert [(r.model, r.set_aside, r.finish) for r in rows] == [
        ("a", "empty", Finish.stop), ("a", "empty", Finish.stop), ("a", "", Finish.stop), ("b", "", Finish.stop)
    ]  # fmt: skip
    assert collected.outcomes == {"empty": 2, "stop": 2}


def test_fallbacks_then_the_rest_of_the_pool_then_fillers(bench: Bench) -> None:
    models = {"a": says("a"), "b": says("b"), "down": lambda t, n: failed(), "also down": lambda t, n: failed(), "f": says("f")}
    pool = [{"model": "down", "fallback": ["also down"]}, {"model": "a"}, {"model": "b"}]
    prompts = prompts_of(*(f"p{i}" for i in range(20)))
    rows, collected = bench.run(models, prompts, pool=pool, k=3, fillers=["f"])
    for prompt in prompts:
        assert [m for m, _ in usable(rows, prompt)] == ["a", "b", "f"]
        assert [r.model for r in rows if r.prompt_id == prompt.id] == ["down", "a", "b", "also down", "f"]
    assert collected.outcomes == {"stop": 60, "error": 40}
    assert collected.metrics["rounds"] == [60, 20, 20]
    # With k = 2 a pool model that was not needed takes the place, and no filler is asked.
    bench.asked.clear()
    rows, _ = bench.run(models, prompts, pool=pool, k=2, fillers=["f"])
    assert {m for p in prompts for m, _ in usable(rows, p)} == {"a", "b"}
    assert all(len(usable(rows, p)) == 2 for p in prompts)


def test_exactly_k_from_more_than_k(bench: Bench) -> None:
    prompts = prompts_of(*(f"p{i}" for i in range(30)))
    rows, collected = bench.run({name: says(name) for name in "abcde"}, prompts, k=3)
    assert {len(usable(rows, p)) for p in prompts} == {3}
    assert len(bench.asked) == 90
    assert sum(counts["calls"] for counts in collected.metrics["models"].values()) == 90
    assert min(counts["calls"] for counts in collected.metrics["models"].values()) >= 8


def test_nothing_in_nothing_out(bench: Bench) -> None:
    rows, collected = bench.run({"a": says("!"), "b": says("?")}, [])
    assert rows == []
    assert (collected.outcomes, collected.metrics["prompts"], collected.metrics["rounds"]) == ({}, 0, [])


def test_a_system_message_goes_before_the_conversation_and_is_part_of_the_question(bench: Bench) -> None:
    talk = Prompt.make(tuple(Message(role=r, content=r) for r in ("user", "assistant", "user")), ("test",))
    more = {"systems": {"a": "Be brief."}}
    bench.run({"a": says("!"), "b": says("?")}, [talk], more=more)
    by_model = {r.model.name: [m.role for m in r.messages] for r in bench.requests}
    assert by_model == {"a": ["system", "user", "assistant", "user"], "b": ["user", "assistant", "user"]}
    assert bench.requests[0].messages[0].content == "Be brief."
    bench.run({"a": says("!"), "b": says("?")}, [talk])
    assert [name for name, _, _ in bench.asked] == ["a", "b", "a"], "without it a is asked another question, b is not"


# ── found answers ────────────────────────────────────────────────────────────────────────────────────────────────────


def found(prompt: Prompt, *texts: str, model: str = "human") -> list[FoundAnswer]:
    return [FoundAnswer(prompt_id=prompt.id, model=model, text=text, source="hh") for text in texts]


def test_found_answers_come_first_and_the_rest_is_asked_for(bench: Bench) -> None:
    more = {"found": found(PROMPTS[1], "yes", "no")}
    rows, collected = bench.run({name: says(name) for name in "abc"}, use_found=True, more=more)
    assert usable(rows, PROMPTS[0]) == [("a", "onea"), ("b", "oneb"), ("c", "onec")]
    first, second, third = [r for r in rows if r.prompt_id == PROMPTS[1].id]
    assert {first.text, second.text} == {"yes", "no"}
    assert (first.model, first.source, first.call_id, first.finish) == ("human", "hh", "", Finish.stop)
    assert third.model in "abc"
    assert len(bench.asked) == 4
    assert collected.metrics["found"] == {"human": 2}
    assert collected.metrics["found_unused"] == 0
    assert collected.outcomes == {"stop": 6}


def test_found_answers_are_limited_distinct_and_not_empty(bench: Bench) -> None:
    there = found(PROMPTS[0], "x", " x", "", "y", "z") + found(PROMPTS[1], *"abcdef")
    rows, collected = bench.run({"a": says("!"), "b": says("?")}, use_found=True, max_found=1, more={"found": there})
    assert [[bool(r.source) for r in rows if r.prompt_id == p.id] for p in PROMPTS] == [[True, False]] * 2
    assert collected.metrics["found_unused"] == 9
    # In another order the same ones are chosen, and more than K are never taken.
    backwards = [a for p in PROMPTS for a in reversed([f for f in there if f.prompt_id == p.id])]
    again, _ = bench.run({"a": says("!"), "b": says("?")}, use_found=True, max_found=1, more={"found": backwards})
    assert again == rows
    rows, collected = bench.run({"a": says("!"), "b": says("?")}, use_found=True, more={"found": there})
    assert [len(usable(rows, p)) for p in PROMPTS] == [2, 2]
    assert all(r.source for r in rows)
    assert collected.metrics["rounds"] == []


def test_a_reply_that_repeats_a_found_answer_is_drawn_again(bench: Bench) -> None:
    models = {"a": lambda text, n: "yes" if n == 0 else "maybe", "b": says("!")}
    rows, _ = bench.run(models, PROMPTS[:1], k=2, use_found=True, more={"found": found(PROMPTS[0], "yes")})
    assert usable(rows, PROMPTS[0])[0] == ("human", "yes")
    assert len(usable(rows, PROMPTS[0])) == 2
    assert {text for _, text in usable(rows, PROMPTS[0])} in ({"yes", "maybe"}, {"yes", "one!"})


def test_more_found_answers_than_k_and_blank_ones(bench: Bench) -> None:
    there = found(PROMPTS[0], "", *"abcde", " \n") + found(PROMPTS[1], "", " ")
    rows, collected = bench.run({"a": says("!"), "b": says("?")}, use_found=True, max_found=5, more={"found": there})
    assert [[bool(r.source) for r in rows if r.prompt_id == p.id] for p in PROMPTS] == [[True, True], [False, False]]
    assert collected.metrics["found_unused"] == 7


def test_prompts_that_nobody_answers_are_counted_too(bench: Bench) -> None:
    """a answers half of the prompts and K = 2 hopes for found answers, of which there are none."""
    many = prompts_of(*(f"p{i}" for i in range(40)))
    rows, collected = bench.run({"a": says("!")}, many, pool=[{"model": "a", "share": 0.5}], k=2, use_found=True)
    assert 10 < len(rows) < 30
    assert collected.metrics["prompts_by_answers"] == {"0": 40 - len(rows), "1": len(rows)}
    assert collected.outcomes == {"stop": len(rows), "fewer_than_k": 40}


@pytest.mark.parametrize("order", [[1, 0], [0, 1, 0]])
def test_found_answers_of_other_prompts_or_in_another_order_are_an_error(bench: Bench, order: list[int]) -> None:
    there = [a for i in order for a in found(PROMPTS[i], f"text {i}")]
    with pytest.raises(ArtifactError, match="belongs to none of the prompts, or is out of their order"):
        bench.run({"a": says("!"), "b": says("?")}, use_found=True, more={"found": there})


# ── laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def moody(name: str, words: int = 4) -> Answer:
    """Fails, says nothing, is cut, refuses or says one of few words: by its content alone."""

    def answer(text: str, sample: int) -> str | Reply:
        draw = int(content_hash([name, text, sample], 8), 16)
        if draw % 9 == 0:
            return failed(f"bad luck {draw % 7}")
        if draw % 9 == 1:
            return ""
        finish = {2: Finish.length, 3: Finish.refusal}.get(draw % 9, Finish.stop)
        return Reply(f"word {draw // 9 % words}", finish, "")

    return answer


MOODY = {name: moody(name) for name in ("a", "b", "c", "d", "e")}
WILD: dict[str, Any] = {
    "pool": [
        {"model": "a", "samples": 2, "fallback": ["b"]},
        {"model": "b", "share": 0.5},
        {"model": "c", "share": 0.75, "fallback": ["e", "a"]},
    ],
    "fillers": ["d", "d"],
    "k": 4,
    "use_found": True,
    "max_found": 1,
}
MANY = prompts_of(*(f"p{i}" for i in range(120)))
THERE = [a for i, p in enumerate(MANY) if i % 3 == 0 for a in found(p, "word 1", "quite another")]


def one_by_one(prompt: Prompt, settings: ResponsesSection, there: Sequence[FoundAnswer]) -> list[tuple[str, str, bool]]:
    """The same by hand, one prompt at a time: slots as lists that are emptied. (model, text, usable) in no certain order."""
    mine = [a for a in there if a.prompt_id == prompt.id]
    mine.sort(key=lambda a: content_hash(["found", 0, prompt.id, a.model, a.text]))
    rows = [(a.model, a.text, True) for a in mine[:1]]
    reserve = [list(slot) for slot in slots_of(prompt.id, settings, (), 0)]
    active = [reserve.pop(0) for _ in range(min(settings.answers - len(rows), len(reserve)))]
    drawn: Counter[str] = Counter()
    while active:
        asked = [slot.pop(0) for slot in active]
        replies = []
        for step in asked:
            replies.append(MOODY[step.model](prompt.messages[-1].content, drawn[step.model]))
            drawn[step.model] += 1
        still = []
        for slot, step, reply in zip(active, asked, replies, strict=True):
            text = reply if isinstance(reply, str) else reply.text
            fine = text != "" and text not in [t for _, t, ok in rows if ok]
            rows.append((step.model, text, fine))
            if not fine:
                while slot and slot[0].again and isinstance(reply, Reply) and reply.finish is Finish.error:
                    slot.pop(0)
                if slot or reserve:
                    still.append(slot or reserve.pop(0))
        active = still
    return rows


def test_rounds_over_all_prompts_give_what_each_prompt_gives_alone(bench: Bench) -> None:
    rows, collected = bench.run(MOODY, MANY, more={"found": THERE}, **WILD)
    for prompt in MANY:
        mine = [(r.model, r.text, r.usable) for r in rows if r.prompt_id == prompt.id]
        assert sorted(mine) == sorted(one_by_one(prompt, ResponsesSection(**WILD), THERE))
    assert list(dict.fromkeys(r.prompt_id for r in rows)) == [p.id for p in MANY]
    assert len(collected.metrics["rounds"]) > 4
    assert sum(collected.metrics["rounds"]) == sum(not r.source for r in rows) == len(bench.asked)
    usable_counts = Counter(str(sum(r.usable for r in rows if r.prompt_id == p.id)) for p in MANY)
    assert collected.metrics["prompts_by_answers"] == dict(sorted(usable_counts.items()))
    assert collected.outcomes["fewer_than_k"] == sum(n for k, n in usable_counts.items() if int(k) < 4) > 0
    assert sum(n for name, n in collected.outcomes.items() if name != "fewer_than_k") == len(rows)
    for name, counts in collected.metrics["models"].items():
        of_model = [r for r in rows if r.model == name]
        assert counts["calls"] == len(of_model) == counts["kept"] + counts["failed"] + counts["empty"] + counts["duplicate"]


def test_a_prompt_gets_the_same_whatever_else_is_asked_and_in_whatever_order(tmp_path: Path) -> None:
    def rows(folder: str, prompts: list[Prompt]) -> dict[str, list[Response]]:
        (tmp_path / folder).mkdir()
        bench = Bench(tmp_path / folder)
        there = [a for p in prompts for a in THERE if a.prompt_id == p.id]
        found, _ = bench.run(MOODY, prompts, more={"found": there}, **WILD)
        bench.journal.close()
        return {p.id: [r for r in found if r.prompt_id == p.id] for p in prompts}

    whole, part = rows("whole", MANY), rows("part", MANY[::-3])
    assert part == {id_: whole[id_] for id_ in part}


def test_prompts_may_be_read_from_their_file_each_time(bench: Bench) -> None:
    write_records(bench.folder / "prompts.parquet", MANY, Prompt)
    write_records(bench.folder / "answers.parquet", THERE, FoundAnswer)
    rows, _ = bench.run(MOODY, MANY, more={"found": THERE}, **WILD)
    before, calls = (bench.folder / "responses.parquet").read_bytes(), len(bench.asked)
    lazily = RecordFile(bench.folder / "prompts.parquet", Prompt)
    bench.run(MOODY, lazily, more={"found": RecordFile(bench.folder / "answers.parquet", FoundAnswer)}, **WILD)
    assert (bench.folder / "responses.parquet").read_bytes() == before
    assert len(bench.asked) - calls == sum(r.finish is Finish.error for r in rows), "only failed calls are made again"


class Killed(BaseException):
    """Stands for a kill signal."""


class Engine:
    """Local models whose answers depend on the batch: its size and the place in it."""

    def __init__(self, until: int) -> None:
        self.batches, self.until = 0, until

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        if self.batches == self.until:
            raise Killed
        self.batches += 1
        return [
            Reply(f"{len(requests)} {place} {int(content_hash(r.key, 4), 16) % 2}", Finish.stop, r.key)
            for place, r in enumerate(requests)
        ]


def test_local_models_stopped_anywhere_end_with_the_same_bytes(tmp_path: Path) -> None:
    """A batch of a later round is the same however often and wherever the run was stopped before."""
    prompts = prompts_of(*(f"p{i}" for i in range(7)))
    settings = ResponsesSection(models=("a", "b"), fillers=("b",), resample=1)

    def run(folder: Path, until: int = -1) -> tuple[bytes, int]:
        folder.mkdir(exist_ok=True)
        engine = Engine(until)
        with Journal(folder / "j.sqlite") as journal:
            pool: dict[str, Endpoint] = {
                name: BatchEndpoint(ModelRef(provider="local", name=name), engine, journal, batch=3) for name in "ab"
            }
            collect(prompts, pool, settings, out=folder / "r.parquet", scratch=folder)
        return (folder / "r.parquet").read_bytes(), engine.batches

    undisturbed, batches = run(tmp_path / "whole")
    assert batches > 6, "there are several rounds"
    for until in range(batches):
        with pytest.raises(Killed):
            run(tmp_path / f"{until}", until)
        assert run(tmp_path / f"{until}")[0] == undisturbed
    assert run(tmp_path / "whole")[1] == 0, "and nothing is computed twice"
