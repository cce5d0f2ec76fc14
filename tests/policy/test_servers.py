"""Rollouts from inference servers, against a fake one that holds a real model: the exchange, updates, faults, first contact."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from starling.config import LoRA, PolicySection
from starling.config.policy import ServerEngine
from starling.errors import ConfigError, EndpointError
from starling.models.actor import reply_logprobs
from starling.models.encode import Encoded, Encoder
from starling.models.load import load_causal, load_tokenizer, save_folder
from starling.models.replies import lay_out
from starling.models.sample import Sampled, Sampler
from starling.policy.servers import ServerRollouts, fleet, rollouts
from starling.policy.servers.facts import unfit
from starling.policy.servers.replies import whole
from starling.policy.servers.vllm import release
from starling.policy.servers.weights import whole_weights
from starling.records import Sampling
from starling.training.trained import TrainedPart
from tests.fakes.rollout_server import RolloutServer

ENGINES = ("vllm", "sglang")
PROMPTS = [[1, 4, 70, 71, 72], [1, 4, 90], [1, 4, 100, 101, 102, 103, 104]]
ONE = Sampling(temperature=1.0, max_tokens=6)
GREEDY = Sampling(temperature=0.0, max_tokens=6)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "PAUSE_S", 0.01)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models are tiny, and servers and client share the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(backbone: Callable[..., Path]) -> Path:
    return backbone("llama")


@pytest.fixture(scope="module")
def loaded(base: Path) -> tuple[Any, Any]:
    return load_causal(base), load_tokenizer(base)


@pytest.fixture
def policy(loaded: tuple[Any, Any]) -> Any:
    return copy.deepcopy(loaded[0])


@pytest.fixture
def encoder(loaded: tuple[Any, Any]) -> Encoder:
    return Encoder(loaded[1], max_length=128)


def settings(engine: str, weights: Path, *urls: str, **changes: Any) -> ServerEngine:
    plain = {"type": engine, "urls": urls, "weights": str(weights), "dtype": "fp32", "attempts": 3, "timeout": 20.0}
    return ServerEngine.model_validate(plain | changes)


@contextmanager
def serving(base: Path, engine: str, count: int = 1, **options: Any) -> Iterator[list[RolloutServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(RolloutServer(base, engine, **options)) for _ in range(count)]  # type: ignore[arg-type]


def client(servers: list[RolloutServer], encoder: Encoder, weights: Path, **changes: Any) -> ServerRollouts:
    return ServerRollouts(settings(servers[0].engine, weights, *(s.url for s in servers), **changes), encoder)


def forward(policy: Any, prompts: list[list[int]], drawn: list[Sampled], temperature: float = 1.0) -> torch.Tensor:
    """Log-probs of the replies as a training pass computes them."""
    rows = [Encoded((*p, *d.ids), len(p)) for p, d in zip(prompts, drawn, strict=True)]
    with torch.no_grad():
        return reply_logprobs(policy, lay_out(rows, 0), temperature=temperature)[0]


def reported(drawn: list[Sampled]) -> torch.Tensor:
    width = max(len(d.ids) for d in drawn)
    return torch.tensor([[*d.logprobs, *[0.0] * (width - len(d.ids))] for d in drawn])


def changed(policy: Any, by: float) -> Any:
    other = copy.deepcopy(policy)
    with torch.no_grad():
        for number, parameter in enumerate(other.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return other


# ── the exchange ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("engine", ENGINES)
def test_replies_and_log_probs_are_those_of_the_model_here(
    engine: str, base: Path, policy: Any, encoder: Encoder, tmp_path: Path
) -> None:
    plain = Sampler(policy, (), 8).generate(PROMPTS, GREEDY, [0, 0, 0])
    encoder.end_ids = (plain[0].ids[2], 2)  # so that one reply is finished early
    with serving(base, engine) as servers:
        servers[0].model = None  # what it was started on plays no part
        engine_here = client(servers, encoder, tmp_path)
        engine_here._met = True
        engine_here._fleet.servers[0].facts = rollouts.Facts("0.33.0", "base", "tempered", True, 128)
        engine_here.load(policy, 0)
        drawn = engine_here.generate(PROMPTS, GREEDY, [0, 0, 0])
    local = Sampler(policy, encoder.end_ids, 8).generate(PROMPTS, GREEDY, [0, 0, 0])
    assert [d.ids for d in drawn] == [d.ids for d in local]
    assert [d.finished for d in drawn] == [d.finished for d in local]
    assert [d.finished for d in drawn] == [True, False, False]
    assert len(drawn[0].ids) <= 3
    assert (reported(drawn) - forward(policy, PROMPTS, drawn)).abs().max() < 1e-5


@pytest.mark.parametrize("engine", ENGINES)
def test_samples_come_in_order_and_depend_on_their_seed_alone(
    engine: str, base: Path, policy: Any, encoder: Encoder, tmp_path: Path
) -> None:
    seeds = [2**64 - 1, 7, 8, 9, 10, 7]  # of 64 bits, as the stage's are
    with serving(base, engine, 3) as servers:
        alone, both = client(servers[:1], encoder, tmp_path), client(servers[1:], encoder, tmp_path)
        alone.load(policy, 0)
        both.load(policy, 0)
        drawn = alone.generate(PROMPTS, ONE, seeds, 2)
        ticks: list[int] = []
        assert both.generate(PROMPTS, ONE, seeds, samples=2, done=ticks.append) == drawn
        assert sum(ticks) == 6
        # the same seed for another prompt's place, and one at a time
        assert alone.generate([PROMPTS[0]], ONE, [7]) == [drawn[1]]
        assert alone.generate([PROMPTS[2]], ONE, [7]) == [drawn[5]]
    assert len({d.ids for d in drawn}) == 6
    expanded = [p for p in PROMPTS for _ in range(2)]
    assert (reported(drawn) - forward(policy, expanded, drawn)).abs().max() < 1e-5
    # replies to one prompt went to one server
    asked = [{tuple(b.get("prompt", b.get("input_ids"))) for b in s.bodies if _wants_reply(b)} for s in servers[1:]]
    assert asked[0] | asked[1] == {tuple(p) for p in PROMPTS}
    assert not asked[0] & asked[1]


def _wants_reply(body: dict[str, Any]) -> bool:
    limit = body.get("max_tokens") or body["sampling_params"]["max_new_tokens"]
    return bool(limit == ONE.max_tokens)


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_left_to_the_servers_defaults(engine: str, base: Path, policy: Any, encoder: Encoder, tmp_path: Path) -> None:
    with serving(base, engine) as servers:
        here = client(servers, encoder, tmp_path)
        here.load(policy, 3)
        here.generate([PROMPTS[0]], Sampling(temperature=1.0, top_p=0.9, max_tokens=4), [2**64 - 1])
        body = servers[0].bodies[-1]
    told = body if engine == "vllm" else body["sampling_params"]
    neutral = {"min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
    assert {name: told[name] for name in neutral} == neutral
    assert (told["top_p"], told["top_k"]) == (0.9, 0 if engine == "vllm" else -1)
    assert told["stop_token_ids"] == list(encoder.end_ids)
    assert told["seed" if engine == "vllm" else "sampling_seed"] == 2**63 - 1  # both engines want an int64
    if engine == "vllm":
        assert body["cache_salt"].startswith("3-")
        assert body["ignore_eos"] is True
    else:
        assert "ignore_eos" not in told  # it would switch stop_token_ids off


def test_no_more_than_in_flight_replies_are_asked_of_a_server_at_once(
    base: Path, policy: Any, encoder: Encoder, tmp_path: Path
) -> None:
    with serving(base, "vllm", 2) as servers:
        here = client(servers, encoder, tmp_path, in_flight=2)
        here.load(policy, 0)
        for server in servers:
            server.slow_s, server.most = 0.02, 0
        here.generate(PROMPTS[:1], Sampling(max_tokens=2), list(range(12)), 12)
        assert [s.most for s in servers] == [2, 2]  # the prompt's own server is full: the other helps


def test_one_seed_per_reply_and_weights_first(base: Path, policy: Any, encoder: Encoder, tmp_path: Path) -> None:
    with serving(base, "vllm") as servers:
        here = client(servers, encoder, tmp_path)
        with pytest.raises(ValueError, match="load"):
            here.generate(PROMPTS, ONE, [1, 2, 3])
        here.load(policy, 0)
        with pytest.raises(ValueError, match=r"6|seeds"):
            here.generate(PROMPTS, ONE, [1, 2, 3], 2)
        assert here.generate([], ONE, []) == []


# ── weights ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("engine", ENGINES)
def test_new_weights_are_handed_over_and_old_ones_removed(
    engine: str, base: Path, policy: Any, encoder: Encoder, tmp_path: Path
) -> None:
    weights = tmp_path / "deep" / "weights"
    other = changed(policy, 0.1)
    with serving(base, engine) as servers:
        here = client(servers, encoder, weights)
        here.load(policy, 1)
        (weights / "mine.txt").write_text("stays")
        (weights / ".version-00000009-0123456789abcdef").mkdir()  # left by a run that was killed while writing
        first = here.generate(PROMPTS, GREEDY, [0, 0, 0])
        here.load(other, 2)
        second = here.generate(PROMPTS, GREEDY, [0, 0, 0])
        here.load(policy, 1)  # a resumed run goes back
        assert here.generate(PROMPTS, GREEDY, [0, 0, 0]) == first
    assert [d.ids for d in second] == [d.ids for d in Sampler(other, encoder.end_ids, 8).generate(PROMPTS, GREEDY, [0, 0, 0])]
    assert [d.ids for d in second] != [d.ids for d in first]
    left = sorted(p.name for p in weights.iterdir())
    assert [name[:17] for name in left] == ["mine.txt", "version-00000001-"]
    assert servers[0].counts["/reset_prefix_cache"] == (3 if engine == "vllm" else 0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("by", [0.1, 0.001])
def test_a_server_that_keeps_its_old_weights_is_found_out(
    engine: str, by: float, base: Path, policy: Any, encoder: Encoder, tmp_path: Path
) -> None:
    with serving(base, engine) as servers:
        here = client(servers, encoder, tmp_path)
        here.load(policy, 1)
        servers[0].faults["stale"] = 1
        with pytest.raises(EndpointError, match="still answers with old weights"):
            here.load(changed(policy, by), 2)
        here.load(changed(policy, by), 2)
        here.load(changed(policy, by), 3)  # the same weights again: nothing moved, nothing to find


def test_a_small_step_is_inside_the_tolerance_and_found_out_all_the_same(
    base: Path, policy: Any, encoder: Encoder, tmp_path: Path
) -> None:
    """What the test before relies on, for its smaller change."""
    with serving(base, "vllm") as servers:
        here = client(servers, encoder, tmp_path)
        before, after = here._training_scores(policy), here._training_scores(changed(policy, 0.001))
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) > 1e-3
    assert rollouts._mean_gap(before, after) < 0.25
    same = rollouts._Probed(before, before)
    assert rollouts._stale(same, None, 0.25) == ""
    assert "did not change" in rollouts._stale(rollouts._Probed(before, after), same, 0.25)
    assert rollouts._stale(rollouts._Probed((*after[:-1], after[-1] + 0.01), after), same, 0.25) == ""
    assert "differ" in rollouts._stale(rollouts._Probed(tuple(b - 0.3 for b in before), before), None, 0.25)


def test_steps_too_small_to_see_add_up_until_they_are_seen(base: Path, policy: Any, encoder: Encoder, tmp_path: Path) -> None:
    with serving(base, "vllm") as servers:
        here = client(servers, encoder, tmp_path)
        start = here._training_scores(policy)
        moved = max(abs(a - b) for a, b in zip(start, here._training_scores(changed(policy, 1e-4)), strict=True))
        step = 1e-4 * 0.6e-3 / moved  # moves the training model's log-probs by 0.6e-3 nats at most
        here.load(policy, 0)
        servers[0].faults["stale"] = 99
        here.load(changed(policy, step), 1)
        with pytest.raises(EndpointError, match=r"did not change.*by up to 0\.0012"):
            here.load(changed(policy, 2 * step), 2)


def test_other_weights_than_those_given_are_found_out_at_the_first_load(
    base: Path, policy: Any, encoder: Encoder, tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger"
    save_folder(stranger, changed(policy, 0.3), load_tokenizer(base))
    with serving(stranger, "vllm") as servers:
        servers[0].faults["stale"] = 1
        with pytest.raises(EndpointError, match=r"differ from the training model's by [\d.]+ on average.*policy\.base"):
            client(servers, encoder, tmp_path / "w").load(policy, 0)


def test_what_sglang_says_about_its_weights_is_heard(base: Path, policy: Any, encoder: Encoder, tmp_path: Path) -> None:
    with serving(base, "sglang") as servers:
        here = client(servers, encoder, tmp_path)
        servers[0].faults["version_lost"] = 1
        with pytest.raises(EndpointError, match=r"old weights.*weight_version 'default'"):
            here.load(policy, 1)
        here.load(policy, 1)
        servers[0].faults["other_version"] = 1  # started again between two replies
        with pytest.raises(EndpointError, match="still answers with old weights: 'default'"):
            here.generate(PROMPTS, ONE, [1, 2, 3])


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_that_a_server_cannot_load_are_an_error_that_says_so(
    engine: str, base: Path, policy: Any, encoder: Encoder, tmp_path: Path
) -> None:
    with serving(base, engine) as servers:
        here = client(servers, encoder, tmp_path)
        servers[0].faults["load_fails"] = 1
        with pytest.raises(EndpointError, match=r"did not load the new weights: .*no such file.*policy.engine.weights"):
            here.load(policy, 1)


def test_a_prefix_cache_in_use_is_reset_at_the_next_try(base: Path, policy: Any, encoder: Encoder, tmp_path: Path) -> None:
    with serving(base, "vllm") as servers:
        servers[0].faults["cache_in_use"] = 2
        client(servers, encoder, tmp_path).load(policy, 1)
        assert servers[0].counts["/reset_prefix_cache"] == 3


def test_adapters_are_merged_into_what_is_written_and_stay_in_the_model(
    base: Path, policy: Any, encoder: Encoder, tmp_path: Path
) -> None:
    TrainedPart(policy, LoRA(type="lora", rank=4), seed=0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    before = {n: t.clone() for n, t in policy.state_dict().items()}
    with serving(base, "sglang") as servers:
        here = client(servers, encoder, tmp_path)
        here.load(policy, 0)
        drawn = here.generate(PROMPTS, GREEDY, [0, 0, 0])
    assert (reported(drawn) - forward(policy, PROMPTS, drawn)).abs().max() < 1e-5
    assert (reported(drawn) - forward(load_causal(base), PROMPTS, drawn)).abs().max() > 0.1
    after = policy.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(t, after[n]) for n, t in before.items())


def test_weights_are_written_in_the_servers_type(base: Path, policy: Any, encoder: Encoder, tmp_path: Path) -> None:
    with serving(base, "vllm") as servers:
        here = client(servers, encoder, tmp_path, dtype="bf16")
        here.load(policy, 0)
        drawn = here.generate(PROMPTS, ONE, [1, 2, 3])
    written = load_file(next(tmp_path.glob("version-*/model.safetensors")))
    assert {t.dtype for t in written.values()} == {torch.bfloat16}
    assert 1e-5 < (reported(drawn) - forward(policy, PROMPTS, drawn)).abs().max() < 0.25
    assert "lm_head.weight" not in written  # tied to the embedding, written once


def test_a_policy_in_training_is_compared_without_its_dropout(
    backbone: Callable[..., Path], encoder: Encoder, tmp_path: Path
) -> None:
    base = backbone("llama", 0.5)
    policy = load_causal(base).train()
    with serving(base, "vllm") as servers:
        client(servers, encoder, tmp_path, tolerance=1e-5).load(policy, 0)
    assert policy.training


def test_weights_that_zero_3_holds_are_refused(policy: Any) -> None:
    next(policy.parameters()).ds_id = 0  # what DeepSpeed marks them with
    with pytest.raises(ConfigError, match="ZeRO-3"):
        whole_weights(policy, "bf16", keep=True)


def test_only_the_first_process_writes(base: Path, policy: Any, encoder: Encoder, tmp_path: Path) -> None:
    helper = ServerRollouts(settings("vllm", tmp_path, "http://127.0.0.1:1"), encoder, first=False)
    helper.load(policy, 0)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="first process"):
        helper.generate(PROMPTS, ONE, [1, 2, 3])


def test_weights_spread_over_two_processes_are_gathered_whole(tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    command = [sys.executable, *torchrun, str(Path(__file__).with_name("spread_weights.py")), str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "found.json").read_text()) == [[0.0, 20], [0.0, 20]]


def test_a_place_for_weights_that_cannot_be_one(base: Path, policy: Any, encoder: Encoder, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match="no folder"):
        ServerRollouts(settings("vllm", file, "http://127.0.0.1:1"), encoder)
    with serving(base, "vllm") as servers, pytest.raises(EndpointError, match=r"cannot be written.*policy\.engine\.weights"):
        client(servers, encoder, file / "below").load(policy, 0)


# ── servers that fail ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("fault", ["busy", "cut", "aborted"])
def test_what_passes_is_tried_again(engine: str, fault: str, base: Path, policy: Any, encoder: Encoder, tmp_path: Path) -> None:
    with serving(base, engine) as servers:
        here = client(servers, encoder, tmp_path)
        here.load(policy, 0)
        undisturbed = here.generate(PROMPTS, ONE, [1, 2, 3])
        servers[0].faults[fault] = 2
        assert here.generate(PROMPTS, ONE, [1, 2, 3]) == undisturbed
        assert here.metrics()["servers/retries"] == 2
        assert here.metrics()["servers/alive"] == 1


def test_one_of_two_servers_dies_and_the_other_takes_its_share(base: Path, policy: Any, encoder: Encoder, tmp_path: Path) -> None:
    seeds = list(range(12))
    with serving(base, "vllm", 2) as servers:
        here = client(servers, encoder, tmp_path, in_flight=2)
        here.load(policy, 0)
        undisturbed = here.generate(PROMPTS, ONE, seeds, 4)
        servers[1].faults["die"] = 1
        assert here.generate(PROMPTS, ONE, seeds, 4) == undisturbed
        assert here.metrics()["servers/retries"] >= 1
        here.load(changed(policy, 0.1), 1)  # the next weights go to the one that is there
        assert here.metrics()["servers/alive"] == 1
        assert here.metrics()["servers/left_out"] == 1
        assert len(here.generate(PROMPTS, ONE, [1, 2, 3])) == 3
        servers[0].stop()
        with pytest.raises(EndpointError, match=r"None of the 2 inference servers is left.*Cannot connect.*checkpoint"):
            here.generate(PROMPTS, ONE, seeds, 4)
        with pytest.raises(EndpointError, match="None of the 2 inference servers took the new weights"):
            here.load(policy, 2)


def test_a_server_that_was_left_out_takes_part_again_with_new_weights(
    base: Path, policy: Any, encoder: Encoder, tmp_path: Path
) -> None:
    with serving(base, "sglang", 2) as servers:
        here = client(servers, encoder, tmp_path)
        here.load(policy, 0)
        servers[1].faults["busy"] = 10_000
        for _ in range(100):  # it is asked again after each pause, and fails
            if here.metrics()["servers/alive"] == 1:
                break
            here.generate(PROMPTS, ONE, [1, 2, 3])
        assert here.metrics()["servers/alive"] == 1
        assert here.metrics()["servers/left_out"] == 1
        servers[1].faults.clear()
        seen = servers[1].counts["/generate"]
        here.generate(PROMPTS, ONE, [1, 2, 3])
        assert servers[1].counts["/generate"] == seen  # what it has now, nobody knows
        here.load(policy, 1)
        assert here.metrics()["servers/alive"] == 2


def test_a_server_that_is_too_slow(base: Path, policy: Any, encoder: Encoder, tmp_path: Path) -> None:
    with serving(base, "vllm") as servers:
        here = client(servers, encoder, tmp_path, timeout=0.5, attempts=2)
        here.load(policy, 0)
        servers[0].slow_s = 1.0
        with pytest.raises(EndpointError, match=r"no answer within 0\.5 s"):
            here.generate(PROMPTS[:1], ONE, [1])


def test_one_reply_that_fails_for_ever_is_named(base: Path, policy: Any, encoder: Encoder, tmp_path: Path) -> None:
    with serving(base, "vllm", 2) as servers:
        here = client(servers, encoder, tmp_path)
        here.load(policy, 0)
        servers[0].faults["aborted"] = servers[1].faults["aborted"] = 99
        with pytest.raises(EndpointError, match=r"asked for 3 times in vain.*finish_reason 'abort'"):
            here.generate(PROMPTS[:1], ONE, [1])


def test_failures_of_calls_that_left_before_the_pause_count_once() -> None:
    server = fleet.Server("u")
    assert not server.rest("x", 1e12, 0, 2)
    assert not server.rest("x", server.paused_since - 1, 0, 2)  # the same news, from another call
    assert server.strikes == 1
    assert server.rest("x", 1e12, 0, 2)
    assert server.out == "x"
    server.take_in()
    assert (server.out, server.strikes) == ("", 0)
    server.rest("x", 1e12, 7.0, 9)
    assert server.paused_until - server.paused_since == pytest.approx(7.0)  # what the server asked for
    assert [fleet.pause_of(n, 0) for n in (1, 2, 3)] == [0.01, 0.02, 0.04]
    assert fleet.pause_of(1, 3600) == fleet.pause_of(99, 0) == 30


# ── answers that cannot be used ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("no_ids", "token ids|output_ids"),
        ("short_logprobs", "6 token ids and 5 log-probs|output_ids are missing, or others"),
        ("null_logprob", "log-probs are missing"),
        ("other_prompt", "prompt"),
        ("garbage", "no JSON"),
        ("refuse", "refuses a prompt of 5 tokens.*context of 8.*max_tokens"),
    ],
)
def test_a_malformed_answer_is_a_named_error(
    engine: str, fault: str, words: str, base: Path, policy: Any, encoder: Encoder, tmp_path: Path
) -> None:
    with serving(base, engine) as servers:
        here = client(servers, encoder, tmp_path)
        here.load(policy, 0)
        servers[0].faults[fault] = 1
        with pytest.raises(EndpointError, match=words) as error:
            here.generate(PROMPTS[:1], ONE, [1])
        assert servers[0].url in str(error.value)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_end_token_that_was_left_out_comes_back(
    engine: str, base: Path, policy: Any, encoder: Encoder, tmp_path: Path
) -> None:
    first = Sampler(policy, (), 8).generate(PROMPTS[:1], GREEDY, [0])[0].ids
    encoder.end_ids = (first[2], 2)
    with serving(base, engine) as servers:
        here = client(servers, encoder, tmp_path)
        here.load(policy, 0)
        undisturbed = here.generate(PROMPTS[:1], GREEDY, [0])
        assert undisturbed[0].finished
        assert undisturbed[0].ids[-1] == first[2]
        servers[0].faults["end_left_out"] = 1
        assert here.generate(PROMPTS[:1], GREEDY, [0]) == undisturbed
        servers[0].faults["end_lost"] = 1  # with its log-prob: nobody can know it
        with pytest.raises(EndpointError, match="log-prob is missing"):
            here.generate(PROMPTS[:1], GREEDY, [0])


def put(ids: Any, logprobs: Any, **changes: Any) -> Sampled:
    plain: dict[str, Any] = {"stopped": True, "matched": None, "end_ids": (2, 9), "limit": 4}
    return whole("http://u", ids, logprobs, **(plain | changes))


def test_a_reply_ends_with_an_end_token_exactly_when_it_is_finished() -> None:
    def parts(*args: Any, **changes: Any) -> tuple[Any, ...]:
        drawn = put(*args, **changes)
        return drawn.ids, drawn.logprobs, drawn.finished

    assert parts([5, 2], [-1.0, -0.5]) == ((5, 2), (-1.0, -0.5), True)
    assert parts([5], [-1.0, -0.5], matched=9) == ((5, 9), (-1.0, -0.5), True)
    assert parts([], [-0.5], matched=2) == ((2,), (-0.5,), True)
    assert parts([5], [-1.0, -0.5], end_ids=(2,)) == ((5, 2), (-1.0, -0.5), True)
    assert parts([5, 6, 7, 8], [-1.0] * 4, stopped=False) == ((5, 6, 7, 8), (-1.0,) * 4, False)
    assert put([5, 6, 7, 2], [-1.0] * 4, stopped=False).finished  # the last token allowed is an end token
    assert put([5, 2], [-1.0, 5e-4]).logprobs == (-1.0, 0.0)  # rounding


@pytest.mark.parametrize(
    ("ids", "logprobs", "changes", "words"),
    [
        (None, [-1.0], {}, "token ids of a reply are missing"),
        (["5"], [-1.0], {}, "token ids of a reply are missing"),
        ([True], [-1.0], {}, "token ids of a reply are missing"),
        ([5, 2], None, {}, "log-probs are missing"),
        ([5, 2], [-1.0, None], {}, "log-probs are missing"),
        ([5, 2], [-1.0, float("nan")], {}, "nan is no log-probability"),
        ([5, 2], [-1.0, 3.2], {}, "3.2 is no log-probability.*logits"),
        ([5, 2], [-1.0], {}, "2 token ids and 1 log-probs"),
        ([5, 6], [-1.0] * 3, {"stopped": False}, "2 token ids and 3 log-probs"),
        ([], [], {}, "without a token"),
        ([5] * 5, [-1.0] * 5, {"stopped": False}, "5 tokens, 4 at most"),
        ([5, 2, 6], [-1.0] * 3, {"stopped": False}, "goes on behind an end token"),
        ([5, 6], [-1.0] * 2, {"matched": 6}, "ended by the token 6.*generation-config"),
        ([5, 6], [-1.0] * 2, {"matched": 9}, "end token 9 ended the reply, and its log-prob is missing"),
        ([5], [-1.0] * 2, {}, "not said which"),
        ([5, 6], [-1.0] * 2, {"stopped": False}, "cut before the 4 asked for.*max-model-len"),
    ],
)
def test_a_reply_whose_parts_do_not_fit_is_refused(ids: Any, logprobs: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(EndpointError, match=words):
        put(ids, logprobs, **changes)


# ── which log-probs ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("engine", "mode", "temperature", "top_p"),
    [
        ("vllm", "raw", 1.0, 0.6),
        ("vllm", "truncated", 0.7, 1.0),
        ("sglang", "tempered", 0.7, 0.6),
        ("sglang", "raw", 1.0, 0.6),
    ],
)
def test_log_probs_are_those_at_the_temperature_before_top_p(
    engine: str, mode: str, temperature: float, top_p: float, base: Path, policy: Any, encoder: Encoder, tmp_path: Path
) -> None:
    with serving(base, engine, mode=mode) as servers:
        here = client(servers, encoder, tmp_path)
        here.load(policy, 0)
        drawn = here.generate(PROMPTS, Sampling(temperature=temperature, top_p=top_p, max_tokens=6), [1, 2, 3])
    assert (reported(drawn) - forward(policy, PROMPTS, drawn, temperature)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("engine", "mode", "temperature", "top_p", "words"),
    [
        ("vllm", "raw", 0.7, 1.0, "at temperature 1.*sampled at 0.7.*--logprobs-mode processed_logprobs"),
        ("vllm", "truncated", 1.0, 0.6, r"after top-p.*top_p = 0\.6.*policy\.sampling\.top_p = 1"),
        ("vllm", "logits", 1.0, 1.0, "logits instead of log-probs.*--logprobs-mode"),
        ("sglang", "raw", 0.7, 1.0, "at temperature 1.*SGLANG_RETURN_ORIGINAL_LOGPROB"),
    ],
)
def test_other_log_probs_are_refused_with_the_flag_that_cures_it(
    engine: str,
    mode: str,
    temperature: float,
    top_p: float,
    words: str,
    base: Path,
    policy: Any,
    encoder: Encoder,
    tmp_path: Path,
) -> None:
    sampling = Sampling(temperature=temperature, top_p=top_p, max_tokens=4)
    with serving(base, engine, mode=mode) as servers:
        here = client(servers, encoder, tmp_path)
        with pytest.raises(EndpointError, match=words):
            here.check(sampling)
        here.load(policy, 0)
        with pytest.raises(EndpointError, match=words):
            here.generate(PROMPTS, sampling, [1, 2, 3])
        if mode != "logits":
            assert len(here.generate(PROMPTS, GREEDY, [1, 2, 3])) == 3  # evaluation: no loss reads its log-probs


def test_which_log_probs_fit_which_sampling() -> None:
    table = {
        kind: [unfit(kind, Sampling(temperature=t, top_p=p)) == "" for t, p in ((0.0, 1.0), (1.0, 1.0), (1.0, 0.5), (0.5, 1.0))]
        for kind in ("raw", "tempered", "truncated", "logits")
    }  # type: ignore[misc]
    assert table == {
        "raw": [True, True, True, False],
        "tempered": [True, True, True, True],
        "truncated": [True, True, False, True],
        "logits": [False, False, False, False],
    }


def test_a_mode_that_is_not_told_is_measured(base: Path, policy: Any, encoder: Encoder, tmp_path: Path) -> None:
    with serving(base, "vllm", mode="raw", old_info=True) as servers:
        facts = client(servers, encoder, tmp_path).check(ONE)
        assert facts[0].logprobs == "raw"
    with serving(base, "sglang") as servers:
        assert client(servers, encoder, tmp_path).check(ONE)[0].logprobs == "tempered"


# ── first contact ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("engine", "asked_as", "options", "words"),
    [
        ("vllm", "vllm", {"dev_mode": False}, "VLLM_SERVER_DEV_MODE=1"),
        ("vllm", "vllm", {"version": "0.14.1"}, r"0\.14\.1.*install 0\.16"),
        ("vllm", "sglang", {}, r"no SGLang server.*policy\.engine\.type"),
        ("sglang", "vllm", {}, r"no vLLM server.*policy\.engine\.type"),
        ("sglang", "sglang", {"no_weight_version": True}, r"no weight_version.*0\.5\.1"),
        ("vllm", "vllm", {"key": "sk-of-the-server"}, r"refuses the key.*policy\.engine\.api_key_env"),
        ("sglang", "sglang", {"key": "sk-of-the-server"}, r"401"),
    ],
)
def test_first_contact_says_what_is_wrong_and_what_cures_it(
    engine: str, asked_as: str, options: dict[str, Any], words: str, base: Path, policy: Any, encoder: Encoder, tmp_path: Path
) -> None:
    with serving(base, engine, **options) as servers:
        here = ServerRollouts(settings(asked_as, tmp_path, servers[0].url), encoder)
        with pytest.raises(EndpointError, match=words) as error:
            here.check()
        assert servers[0].url in str(error.value)
        with pytest.raises(EndpointError, match=words):
            here.load(policy, 0)
        assert list(tmp_path.iterdir()) == []  # said before gigabytes are written


def test_first_contact_names_every_server_that_is_not_there(base: Path, encoder: Encoder, tmp_path: Path) -> None:
    with serving(base, "vllm") as servers:
        urls = (servers[0].url, "http://127.0.0.1:1", "http://127.0.0.1:2")
        here = ServerRollouts(settings("vllm", tmp_path, *urls, attempts=1), encoder)
        with pytest.raises(EndpointError, match=r"2 problems.*127.0.0.1:1 does not answer.*127.0.0.1:2 does not answer"):
            here.check()


def test_first_contact_tells_the_facts(base: Path, encoder: Encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(base, "vllm") as servers:
        facts = ServerRollouts(settings("vllm", tmp_path, servers[0].url + "/v1/"), encoder).check(ONE)
        assert facts == [rollouts.Facts(version="0.33.0", model="base", logprobs="raw", seeded=True, max_length=128)]
    assert "deterministic" not in caplog.text
    with serving(base, "sglang", seeded=False, old_names=True) as servers:
        here = client(servers, encoder, tmp_path)
        assert not here.check()[0].seeded
        assert "sampling_seed" not in servers[0].bodies[-1]["sampling_params"]
    assert "--enable-deterministic-inference" in caplog.text


def test_releases() -> None:
    assert release("0.16.0") == (0, 16) < release("0.33.0rc1+cu129")  # type: ignore[operator]
    assert release("0.1.dev9876+g0123456") is None
    assert release("unknown") is None


@pytest.mark.parametrize("engine", ENGINES)
def test_the_key_comes_from_the_environment_and_goes_nowhere_else(
    engine: str, base: Path, policy: Any, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with serving(base, engine, key="sk-0123456789") as servers:
        with pytest.raises(ConfigError, match=r"ROLLOUT_KEY is not set.*policy\.engine\.api_key_env"):
            client(servers, encoder, tmp_path, api_key_env="ROLLOUT_KEY")
        monkeypatch.setenv("ROLLOUT_KEY", "sk-wrong-wrong")
        with pytest.raises(EndpointError) as error:
            client(servers, encoder, tmp_path, api_key_env="ROLLOUT_KEY").check()
        assert "sk-wrong-wrong" not in str(error.value)
        assert "[key]" in str(error.value)  # this server echoes what it was sent
        monkeypatch.setenv("ROLLOUT_KEY", "sk-0123456789")
        here = client(servers, encoder, tmp_path, api_key_env="ROLLOUT_KEY")
        here.load(policy, 0)
        assert len(here.generate(PROMPTS, ONE, [1, 2, 3])) == 3
    assert not any(b"sk-0123456789" in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert "sk-0123456789" not in caplog.text


@pytest.mark.parametrize(
    "changes",
    [{"urls": ()}, {"urls": "ftp://a"}, {"urls": "http://user:secret@host:1"}, {"api_key_env": "sk-not a name"},
     {"ratio_cap": 0.5}, {"dtype": "int8"}, {"attempts": 0}],
)  # fmt: skip
def test_settings_that_cannot_be_meant(changes: dict[str, Any]) -> None:
    plain = {"type": "vllm", "urls": "http://127.0.0.1:8000", "weights": "w"}
    assert ServerEngine.model_validate(plain).urls == ("http://127.0.0.1:8000",)
    with pytest.raises(ValidationError):
        ServerEngine.model_validate(plain | changes)


def test_the_example_of_the_page_is_a_setting() -> None:
    page = (Path(__file__).parents[2] / "docs" / "policy-servers.md").read_text("utf-8")
    example = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    engine = PolicySection.model_validate(tomllib.loads(example[0])["policy"]).engine
    assert isinstance(engine, ServerEngine)
    assert len(engine.urls) == 2
