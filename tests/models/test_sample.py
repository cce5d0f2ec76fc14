"""The decode loop against plain forward passes, transformers' generate, and its own laws."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from starling.call import Request
from starling.errors import InputError
from starling.models import sample, sample_cache
from starling.models.encode import Encoded, Encoder, pad_right
from starling.models.load import load_causal, load_tokenizer
from starling.models.local_engine import LocalEngine
from starling.models.logprobs import token_logprobs
from starling.models.sample import Sampled, Sampler, cut_at, first_stop, row_seed
from starling.records import Message, ModelRef, Sampling

PROMPTS = [(3, 40, 50), (3, 41), (3, 60, 61, 62, 63, 64), (3, 99, 17, 30)]
WIDE: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 128,
}  # fmt: skip
GROUPED = {**WIDE, "num_key_value_heads": 2}
GEMMA = {**WIDE, "num_key_value_heads": 1, "head_dim": 16}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**GROUPED),
    "mistral, window 9": lambda: tf.MistralConfig(**GROUPED, sliding_window=9),
    "qwen2": lambda: tf.Qwen2Config(**GROUPED),
    "qwen2, window 5 in one layer": lambda: tf.Qwen2Config(
        **GROUPED, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen3": lambda: tf.Qwen3Config(**GROUPED, head_dim=16),
    "gemma": lambda: tf.GemmaConfig(**GEMMA),
    "gemma2, soft-capped": lambda: tf.Gemma2Config(
        **GEMMA, sliding_window=7, attn_logit_softcapping=2.0, final_logit_softcapping=3.0
    ),
    "gpt2": lambda: tf.GPT2Config(
        vocab_size=101, n_embd=32, n_layer=2, n_head=4, n_positions=128, pad_token_id=0, bos_token_id=1, eos_token_id=2
    ),
    "opt": lambda: tf.OPTConfig(**WIDE, ffn_dim=48, word_embed_proj_dim=32),
    "phi3": lambda: tf.Phi3Config(**GROUPED),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**WIDE),
}
GENERAL: dict[str, Callable[[], Any]] = {  # biases of distances, sinks: not for the slots
    "bloom": lambda: tf.BloomConfig(vocab_size=101, hidden_size=32, n_layer=2, n_head=4),
    "gpt_oss": lambda: tf.GptOssConfig(**GROUPED, head_dim=16, num_local_experts=2, num_experts_per_tok=1, sliding_window=9),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other cost more than they gain on models of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(config: Any) -> Any:
    """A model with clearly different logits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def fresh_logits(model: Any, prompt: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
    """Logits before each token of the reply by one forward pass over the whole row, without any cache."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.double()


def check_logprobs(model: Any, prompts: Sequence[Sequence[int]], drawn: Sequence[Sampled], sampling: Sampling) -> None:
    """Both log-probabilities of every token, the nucleus found by sorting."""
    for prompt, one in zip(prompts, drawn, strict=True):
        chosen = torch.tensor(one.ids)
        probs = torch.softmax(fresh_logits(model, prompt, one.ids) / (sampling.temperature or 1.0), -1)
        expected = probs[range(len(chosen)), chosen].log()
        assert torch.allclose(torch.tensor(one.logprobs).double(), expected, atol=1e-5, rtol=0)
        if sampling.top_p == 1 or sampling.temperature == 0:
            assert one.drawn_logprobs is one.logprobs
            continue
        for place, (token, row) in enumerate(zip(one.ids, probs, strict=True)):
            order = row.argsort(descending=True, stable=True)
            kept = order[row[order].cumsum(0) - row[order] < sampling.top_p]
            assert token in kept
            assert one.drawn_logprobs[place] == pytest.approx(float((row[token] / row[kept].sum()).log()), abs=1e-5)


LONG = [(3, *range(10, 10 + n)) for n in (11, 2, 5, 1, 8, 3, 13)]
"""Prompts of 2 to 14 tokens, shorter and longer than the windows."""


# ── log-probabilities ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [*CONFIGS, *GENERAL])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0, max_tokens=9),
        Sampling(temperature=0.7, max_tokens=9),
        Sampling(temperature=1.3, top_p=0.9, max_tokens=9),
    ],
    ids=["greedy", "0.7", "1.3 of 0.9"],
)
def test_every_architecture_as_in_a_fresh_forward(name: str, sampling: Sampling) -> None:
    model = make((CONFIGS | GENERAL)[name]())
    sampler = Sampler(model, end_ids=[2], batch=3)
    drawn = sampler.generate(LONG, sampling, list(range(14)), samples=2)
    assert sampler._fits is (name in CONFIGS)
    prompts = [p for p in LONG for _ in range(2)]
    check_logprobs(model, prompts, drawn, sampling)
    for prompt, one in zip(prompts, drawn, strict=True):
        assert one.finished == (one.ids[-1] == 2)
        assert one.finished or len(one.ids) == 9
        if sampling.temperature == 0:
            assert list(one.ids) == fresh_logits(model, prompt, one.ids).argmax(-1).tolist()


@pytest.mark.parametrize("name", [next(iter(CONFIGS)), next(iter(GENERAL))])
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_the_likeliest_first_tokens_are_those_of_a_fresh_forward(name: str, temperature: float) -> None:
    model = make((CONFIGS | GENERAL)[name]())
    sampling = Sampling(temperature=temperature, top_p=0.9, max_tokens=4, top_logprobs=5)
    drawn = Sampler(model, end_ids=[2], batch=3).generate(LONG, sampling, list(range(14)), samples=2)
    plain = Sampling(temperature=temperature, top_p=0.9, max_tokens=4)
    without = Sampler(model, end_ids=[2], batch=3).generate(LONG, plain, list(range(14)), samples=2)
    for prompt, one, other in zip([p for p in LONG for _ in range(2)], drawn, without, strict=True):
        expected = fresh_logits(model, prompt, one.ids[:1])[0].log_softmax(-1).topk(5)  # at temperature 1, without a nucleus
        assert [token for token, _ in one.first] == expected.indices.tolist()
        assert [p for _, p in one.first] == pytest.approx(expected.values.tolist(), abs=1e-5)
        assert (one.ids, one.logprobs, other.first) == (other.ids, other.logprobs, ())


def test_a_local_model_says_what_it_might_have_said(backbone: Callable[..., Path]) -> None:
    folder = backbone("llama")
    engine = LocalEngine(load_causal(folder), load_tokenizer(folder), batch=2, seed=0)
    sampling = Sampling(temperature=0, max_tokens=1, top_logprobs=20)
    ref = ModelRef(provider="local", name="m", sampling=sampling)
    asked = [Request(ref, (Message(role="user", content=text),)) for text in ("a cat", "two and three", "hello")]
    for reply in engine.answer(asked):
        assert len(reply.first_token) == 20
        assert reply.first_token[0][0] == reply.text  # greedy: the likeliest one is said
        logprobs = [p for _, p in reply.first_token]
        assert logprobs == sorted(logprobs, reverse=True)
        assert 0 < sum(map(math.exp, logprobs)) <= 1.0001


def test_what_cannot_use_the_slots_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="starling"):
        Sampler(make(GENERAL["gpt_oss"]()), [2]).generate(PROMPTS, Sampling(max_tokens=2), [0] * 4)
    assert "sampled through transformers' cache, slower" in caplog.text
    assert "s_aux" in caplog.text


def test_a_model_whose_logits_would_differ_does_not_use_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    def sees_padding(self: Any, now: Any, window: Any) -> Any:
        return torch.zeros(len(now.rows), 1, 1, now.prompt + now.own)

    monkeypatch.setattr(sample_cache.Slots, "_bias", sees_padding)
    assert "logits would differ" in sample_cache.misfit(make(CONFIGS["llama"]()))


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, backbone: Callable[..., Path]) -> Any:
    return load_causal(backbone(request.param))


def test_greedy_equals_generate_row_by_row(model: Any) -> None:
    mine = Sampler(model, end_ids=[2], batch=4).generate(PROMPTS, Sampling(temperature=0, max_tokens=12), [0] * 4)
    for prompt, one in zip(PROMPTS, mine, strict=True):
        theirs = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=0, bos_token_id=None
        )[0, len(prompt) :].tolist()
        assert list(one.ids) == theirs
        assert one.finished == (theirs[-1] == 2)


def test_token_logprobs_equal_the_sampled_ones(model: Any) -> None:
    drawn = Sampler(model, end_ids=[2], batch=4).generate(PROMPTS, Sampling(max_tokens=9), [1, 2, 3, 4])
    padded = pad_right([Encoded((*p, *d.ids), len(p)) for p, d in zip(PROMPTS, drawn, strict=True)], 0)
    mask_BT = padded.reply_mask_BT[:, 1:]
    with torch.no_grad():
        logprobs_BT, entropy_BT = token_logprobs(model, padded, mask_BT, entropy=True)
    for row, mask, one in zip(logprobs_BT, mask_BT, drawn, strict=True):
        assert torch.allclose(row[mask], torch.tensor(one.logprobs), atol=1e-5)
        assert (row[~mask] == 0).all()
    assert entropy_BT is not None
    assert (entropy_BT[mask_BT] > 0).all()


def test_replies_longer_than_the_first_allocation() -> None:
    model = make(tf.LlamaConfig(**{**GROUPED, "max_position_embeddings": 512}))
    sampling = Sampling(max_tokens=150)
    drawn = Sampler(model, end_ids=[], batch=2).generate(LONG[:3], sampling, [1, 2, 3])
    assert [len(d.ids) for d in drawn] == [150] * 3
    check_logprobs(model, LONG[:3], drawn, sampling)


def test_half_precision() -> None:
    model = make(CONFIGS["llama"]()).to(torch.bfloat16)
    sampler = Sampler(model, end_ids=[2], batch=3)
    drawn = sampler.generate(LONG, Sampling(max_tokens=9), list(range(7)))
    assert sampler._fits
    for prompt, one in zip(LONG, drawn, strict=True):
        expected = fresh_logits(model, prompt, one.ids).log_softmax(-1)[range(len(one.ids)), list(one.ids)]
        assert float((torch.tensor(one.logprobs) - expected).abs().mean()) < 0.05


def test_adapters_are_sampled_with() -> None:
    from peft import LoraConfig, get_peft_model

    model = make(CONFIGS["llama"]())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    drawn = Sampler(adapted, end_ids=[2], batch=3).generate(LONG, Sampling(max_tokens=9), list(range(7)))
    check_logprobs(adapted, LONG, drawn, Sampling())
    with adapted.disable_adapter():
        plain = Sampler(adapted, end_ids=[2], batch=3).generate(LONG, Sampling(max_tokens=9), list(range(7)))
    assert plain != drawn


# ── laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("look_every", [1, 8])
@pytest.mark.parametrize("slots", [True, False])
def test_a_reply_does_not_depend_on_its_neighbours(slots: bool, look_every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # many ends, so that slots are refilled and ranks are closed at different times
    monkeypatch.setattr(sample, "_LOOK_EVERY", {"cpu": look_every})
    model = make(CONFIGS["qwen2, window 5 in one layer"]())
    settings, ends = Sampling(max_tokens=12), [2, 5, 8, 30, 44, 71, 90]
    jobs = [(LONG[i % 7], i) for i in range(40)]

    def replies(batch: int, order: Sequence[int]) -> list[Sampled]:
        sampler = Sampler(model, ends, batch)
        sampler._fits = slots
        found = sampler.generate([jobs[i][0] for i in order], settings, [jobs[i][1] for i in order])
        return [found[order.index(i)] for i in range(len(jobs))]

    alone = replies(1, range(40))
    assert len({len(r.ids) for r in alone}) > 5
    for batch in (3, 16, 64):
        for order in (list(range(40)), [(7 * i) % 40 for i in range(40)]):
            again = replies(batch, order)
            assert [r.ids for r in again] == [r.ids for r in alone]
            for a, b in zip(again, alone, strict=True):
                assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
    assert replies(8, range(40)) == replies(8, range(40)), "the same call gives the same bits"


def test_slots_and_places_that_have_moved() -> None:
    # of three replies the first ends; the third takes its slot and the third prompt its place
    model = make(CONFIGS["llama"]())
    prompts = [(3, 9, 4, 7), (5, 6), (8, 20, 30, 40, 50)]
    with torch.inference_mode(), sample_cache.in_slots(model):
        slots = sample_cache.Slots(3, 2, 5, 4, "cpu")  # one place too few: room is made
        for slot, prompt in enumerate(prompts):
            slots.restart(slot, slots.seat(len(prompt)))
        slots.arrange()
        slots.prefill(model, prompts, [0, 1, 2])
        slots.count_S += 1
        slots.step(model, torch.tensor([60, 61, 62]), 1)
        slots.leave(0)
        slots.move(2, 0)
        slots.drop(2)
        assert slots.moved_places() == {2: 0}
        slots.arrange()
        slots.count_S += 1
        found = slots.step(model, torch.tensor([72, 71]), 2)
    for row, ids in zip(found, [(*prompts[2], 62, 72), (*prompts[1], 61, 71)], strict=True):
        assert torch.allclose(row.double(), fresh_logits(model, ids, [0])[0], atol=1e-5)


def test_idle_slots_stay_within_their_rooms() -> None:
    # replies of 1 to 12 tokens in 24 slots that are refilled three at a time: full ones wait while others go on
    sampler = Sampler(make(CONFIGS["llama"]()), list(range(2, 12)), batch=24)
    drawn = sampler.generate(LONG, Sampling(max_tokens=12), list(range(210)), samples=30)
    assert {len(d.ids) for d in drawn} == set(range(1, 13))
    check_logprobs(sampler.model, [p for p in LONG for _ in range(30)], drawn, Sampling(max_tokens=12))


def test_both_ways_give_the_same_replies() -> None:
    model = make(CONFIGS["llama"]())
    fast, slow = Sampler(model, [2, 5, 8], batch=4), Sampler(model, [2, 5, 8], batch=4)
    slow._fits = False
    for sampling in (Sampling(max_tokens=9), Sampling(temperature=0.8, top_p=0.8, max_tokens=9)):
        a, b = (s.generate(LONG, sampling, list(range(21)), samples=3) for s in (fast, slow))
        assert [r.ids for r in a] == [r.ids for r in b]
        assert [r.finished for r in a] == [r.finished for r in b]
        for x, y in zip(a, b, strict=True):
            assert x.drawn_logprobs == pytest.approx(y.drawn_logprobs, abs=1e-5)


def test_samples_of_a_prompt_are_those_of_the_prompt_repeated() -> None:
    model = make(CONFIGS["llama"]())
    sampler = Sampler(model, [2, 5, 8], batch=5)  # the three samples of a prompt do not always find a slot together
    together = sampler.generate(LONG, Sampling(max_tokens=9), list(range(21)), samples=3)
    apart = sampler.generate([p for p in LONG for _ in range(3)], Sampling(max_tokens=9), list(range(21)))
    assert together == apart
    assert [together[3 * i + j] for i in range(7) for j in range(3)] == together
    assert len({r.ids for r in together[:3]}) == 3


def test_a_prompt_is_computed_once_for_all_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    real = sample_cache.Slots.prefill

    def prefill(self: Any, model: Any, prompts: Any, places: Any) -> Any:
        computed.extend(map(len, prompts))
        return real(self, model, prompts, places)

    sampler = Sampler(make(CONFIGS["llama"]()), [2, 5, 8], batch=4)
    sampler._fits = True
    monkeypatch.setattr(sample_cache.Slots, "prefill", prefill)
    sampler.generate(LONG, Sampling(max_tokens=6), list(range(49)), samples=7)
    assert sorted(computed) == sorted(map(len, LONG))


def test_replies_follow_the_distribution() -> None:
    # 6 tokens, replies of two: 36 outcomes whose probabilities two plain forward passes give
    model = make(tf.LlamaConfig(**{**WIDE, "vocab_size": 6, "num_hidden_layers": 1}))
    with torch.no_grad():
        first = torch.softmax(model(torch.tensor([[3, 4]])).logits[0, -1], -1)
        second = torch.softmax(model(torch.tensor([[3, 4, t] for t in range(6)])).logits[:, -1], -1)
    expected = (first[:, None] * second).flatten() * 5000
    drawn = Sampler(model, end_ids=[]).generate([(3, 4)], Sampling(max_tokens=2), list(range(5000)), samples=5000)
    counts = Counter(d.ids[0] * 6 + d.ids[1] for d in drawn)
    chi = sum((counts[i] - float(e)) ** 2 / float(e) for i, e in enumerate(expected) if e >= 5)
    cells = int((expected >= 5).sum())
    assert cells > 12
    assert chi < cells + 4 * (2 * cells) ** 0.5  # mean + 4 standard deviations of chi-square


def test_finished_replies_end_with_the_end_token_and_nothing_after() -> None:
    model = make(tf.LlamaConfig(**{**WIDE, "vocab_size": 8}))
    drawn = Sampler(model, end_ids=[2, 3], batch=40).generate([(4, 5)], Sampling(max_tokens=6), list(range(40)), 40)
    assert {r.finished for r in drawn} == {True, False}
    assert 1 in {len(r.ids) for r in drawn}, "some end with their first token"
    for r in drawn:
        assert len(r.ids) == len(r.logprobs)
        assert not set(r.ids[:-1]) & {2, 3}
        assert r.finished == (r.ids[-1] in (2, 3))
        assert r.finished or len(r.ids) == 6


def test_replies_of_one_token_and_the_count_of_what_is_done() -> None:
    model = make(CONFIGS["llama"]())
    told: list[int] = []
    drawn = Sampler(model, [2], batch=3).generate(LONG, Sampling(max_tokens=1), list(range(7)), done=told.append)
    assert [len(d.ids) for d in drawn] == [1] * 7
    assert sum(told) == 7
    told.clear()
    Sampler(model, [2], batch=3).generate(LONG, Sampling(max_tokens=5), list(range(14)), 2, done=told.append)
    assert sum(told) == 14


# ── bounds and bad input ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_bound_on_tokens_in_the_cache() -> None:
    model = make(CONFIGS["llama"]())
    small = Sampler(model, [2], batch=50, max_tokens_in_cache=75)
    assert small.rows(14, 9) == 3  # 3 × 23 = 69 tokens
    assert small.rows(100, 9) == 1  # one is always decoded
    assert Sampler(model, [2], batch=50).rows(14, 9) == 50
    settings = Sampling(max_tokens=9)
    seeds = list(range(7))
    assert [r.ids for r in small.generate(LONG, settings, seeds)] == [
        r.ids for r in Sampler(model, [2]).generate(LONG, settings, seeds)
    ]


def test_bytes_of_a_token() -> None:
    # keys and values × 2 layers × 2 heads of 8 × 4 bytes; gemma's head size is stated: 2 × 2 × 1 × 16 × 2
    assert sample_cache.token_bytes(CONFIGS["llama"](), torch.float32) == 256
    assert sample_cache.token_bytes(CONFIGS["gemma"](), torch.bfloat16) == 128
    assert sample_cache.token_bytes(CONFIGS["gpt2"](), torch.float32) == 2 * 2 * 32 * 4


def test_more_than_the_models_positions_is_refused() -> None:
    sampler = Sampler(make(CONFIGS["gpt2"]()), [2])
    assert len(sampler.generate([[5] * 100], Sampling(max_tokens=28), [0])[0].ids) <= 28
    with pytest.raises(InputError, match="100 tokens and a reply of up to 29 are longer than the model's 128") as caught:
        sampler.generate([(3,), [5] * 100], Sampling(max_tokens=29), [0, 1])
    assert "max_tokens to 28" in str(caught.value)


def test_nothing_asked_and_nonsense() -> None:
    sampler = Sampler(make(CONFIGS["llama"]()), [2])
    assert sampler.generate([], Sampling(), []) == []
    assert sampler.generate(PROMPTS, Sampling(), [], samples=0) == []
    with pytest.raises(ValueError, match="4 prompts × 2 samples want 8 seeds, not 4"):
        sampler.generate(PROMPTS, Sampling(), [0] * 4, samples=2)
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        sampler.generate([(3,), ()], Sampling(), [0, 1])
    with pytest.raises(ValueError, match="batch"):
        Sampler(sampler.model, [2], batch=0)


@pytest.mark.parametrize("slots", [True, False])
def test_outputs_that_are_not_finite_are_an_error(slots: bool) -> None:
    model = make(CONFIGS["llama"]())
    sampler = Sampler(model, [2])
    sampler._fits = slots
    before = model.config._attn_implementation
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    model.train()
    with pytest.raises(InputError, match="not finite"):
        sampler.generate(PROMPTS, Sampling(max_tokens=3), [0] * 4)
    assert model.training
    assert model.config._attn_implementation == before
    assert not any("forward" in vars(m) for m in model.modules())


# ── stop strings ─────────────────────────────────────────────────────────────────────────────────────────────────────


def letters(ids: Sequence[int]) -> str:
    """Every token is a letter, 12 an a, 13 a b, … 17 an f, 18 an a again."""
    return "".join("abcdef"[i % 6] for i in ids)


@pytest.mark.parametrize("slots", [True, False])
def test_replies_end_at_stop_strings(slots: bool) -> None:
    sampler = Sampler(make(CONFIGS["llama"]()), [2], batch=3, decode=letters)
    sampler._fits = slots
    settings = Sampling(max_tokens=60, stop=("ab", "fff"))
    plain = sampler.generate(LONG, settings.model_copy(update={"stop": ()}), list(range(7)))
    drawn = sampler.generate(LONG, settings, list(range(7)))
    for one, whole in zip(drawn, plain, strict=True):
        ends = [n for n in range(1, len(whole.ids) + 1) if letters(whole.ids[:n]).endswith(("ab", "fff"))]
        length = ends[0] if ends else len(whole.ids)
        assert one.ids == whole.ids[:length]
        assert one.logprobs == pytest.approx(whole.logprobs[:length], abs=1e-5)
        assert one.stopped == bool(ends)
        assert one.finished == (not ends and whole.finished)
    assert any(len(one.ids) < len(whole.ids) for one, whole in zip(drawn, plain, strict=True))


def test_a_stopped_reply_frees_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    real = sample_cache.Slots.step
    monkeypatch.setattr(sample_cache.Slots, "step", lambda *args: steps.append(1) or real(*args))  # type: ignore[func-returns-value]
    sampler = Sampler(make(CONFIGS["llama"]()), [], batch=1, decode=lambda ids: "x" * len(ids))
    sampler._fits = True
    one = sampler.generate([(3, 4)], Sampling(max_tokens=60, stop=("xxxxx",)), [0])[0]
    assert (len(one.ids), one.stopped, one.finished) == (5, True, False)
    assert len(steps) == 15  # looked at after 16 tokens, the first of which the prompt gives


def test_first_stop() -> None:
    assert first_stop(letters, [12, 13, 14], ["bc"]) == 3
    assert first_stop(letters, [12, 13, 14], ["a", "bc"]) == 1
    assert first_stop(letters, [12, 13, 14], ["cb"]) is None
    assert cut_at("a STOP b", ["STOP", "b"]) == ("a ", True)
    assert cut_at("nothing", ["STOP"]) == ("nothing", False)


def test_seeds_of_rows() -> None:
    assert row_seed("k", 0) != row_seed("k", 1) != row_seed("j", 1)


def test_decode_reply_drops_the_end(backbone: Callable[..., Path]) -> None:
    encoder = Encoder(load_tokenizer(backbone("llama")), 128)
    assert encoder.decode_reply(encoder.reply_ids("a cat", finished=True)) == "a cat"
