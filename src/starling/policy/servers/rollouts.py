"""Rollouts from inference servers that get the policy's new weights before every round.

`load` writes the weights to a folder that trainer and servers see, tells every server to read them, and believes none of them:

1. what the server says about its weights (SGLang: weight_version and folder);
2. log-probs of a fixed text against those of the training model, within `policy.engine.tolerance`;
3. whether these log-probs moved since the last version: when the training model's did and the server's are the same to the last
   bit, it still has the old weights. Small steps hide inside the tolerance of (2); they do not hide here.

`generate` asks for one reply per request, so that each has its own seed; prompts travel and replies come back as token ids, text
is never tokenised again. Log-probs are those at the sampling temperature before top-p, or the settings are refused (`facts`).

What is left between the log-probs of server and trainer (other kernels, bf16) is measured in every iteration and corrected by
truncated importance weights (`losses.policy.importance_weights`; F. Yao and others, "Your efficient RL framework secretly brings
you off-policy RL training", 2025).

Several processes: all call `load`, because gathering spread weights takes them all; the first one writes them, speaks with the
servers and generates for all, because it alone knows which servers have the weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from starling.config import secret
from starling.config.policy import ServerEngine
from starling.endpoint.server import run_loop
from starling.errors import EndpointError
from starling.models.encode import Encoder
from starling.models.sample import Sampled
from starling.policy.servers.facts import Facts, LogprobKind, unfit
from starling.policy.servers.fleet import Connections, Fleet, Refused, Server, Trouble, together
from starling.policy.servers.sglang import Sglang
from starling.policy.servers.vllm import Vllm
from starling.policy.servers.weights import check_folder, folder_of, hand_over, remove_others, whole_weights
from starling.records import Message, Sampling, content_hash

log = logging.getLogger(__name__)

T = TypeVar("T")

PROBE = (
    (Message(role="user", content="Name three animals that live on a farm."),),
    "A cow, a pig and a hen. They eat 2 + 3 times a day!",
)
"""The fixed text whose log-probs say which weights a server has."""
MOVED = 1e-3
"""Nats: a change of the training model's log-probs that no server can have missed to the last bit."""
FLATTER = 2.0
"""Temperature at which it is measured what a server reports; there it cannot be mistaken for temperature 1."""
SEED_BITS = (1 << 63) - 1
"""Both engines take seeds as int64."""


@dataclass(frozen=True)
class _Probed:
    """Log-probs of the fixed text's tokens: the server's, and the training model's when the server's last changed."""

    server: tuple[float, ...]
    training: tuple[float, ...]


class ServerRollouts:
    """The servers of `policy.engine` as the stage's sampler.

    Args:
        settings: addresses, folder and limits.
        encoder: of the policy; its end tokens finish a reply.
        first: whether this process is the one that writes weights and speaks with the servers.

    Raises:
        ConfigError: the key's environment variable is not set, or the folder for weights is a file.
    """

    everywhere = False

    def __init__(self, settings: ServerEngine, encoder: Encoder, *, first: bool = True) -> None:
        self._settings = settings
        self._end_ids = encoder.end_ids
        self._probe = encoder.completion(*PROBE).ids
        self._first = first
        self._dialect: Vllm | Sglang = Vllm() if settings.type == "vllm" else Sglang()
        self._key = secret(settings.api_key_env, "policy.engine.api_key_env")
        self._weights = Path(settings.weights).absolute()
        check_folder(self._weights)
        self._fleet = Fleet(settings.urls, settings.in_flight, settings.attempts)
        self._label = ""
        self._met = False
        self._seen: dict[str, _Probed] = {}

    # ── first contact ────────────────────────────────────────────────────────────────────────────────────────────────

    def check(self, sampling: Sampling | None = None) -> list[Facts]:
        """Ask every server what it is, and whether its log-probs will do for `sampling`; `load` does so by itself once.

        Raises:
            EndpointError: every server that cannot be used, why, and which flag cures it.
        """
        return run_loop(self._check(sampling))

    async def _check(self, sampling: Sampling | None) -> list[Facts]:
        async with self._connections() as connections:
            found = await together(self._look(connections, server, sampling) for server in self._fleet.servers)
        wrong = [f"{s.url} {problem}" for s, problems in zip(self._fleet.servers, found, strict=True) for problem in problems]
        if wrong:
            raise EndpointError(
                f"{len(wrong)} problem{'s' if len(wrong) > 1 else ''} with the inference servers",
                where="policy.engine.urls",
                cure="; ".join(wrong),
            )
        self._met = True
        return [server.facts for server in self._fleet.servers]

    async def _look(self, connections: Connections, server: Server, sampling: Sampling | None) -> list[str]:
        """What is wrong with a server, each with its cure; its facts are filled in."""
        try:
            facts, problems = await self._fleet.insist(server, lambda s: self._dialect.look(connections, s))
            if facts is None:
                return problems
            if facts.logprobs is None:
                server.facts = facts
                kind = await self._fleet.insist(server, lambda s: self._measured_kind(connections, s))
                facts = replace(facts, logprobs=kind)
        except Trouble as trouble:
            return [f"does not answer ({trouble.why}): start it, or correct its address in policy.engine.urls"]
        except Refused as refused:
            return [f"refuses a first request ({refused.why}): see its log, and policy.engine.type"]
        server.facts = facts
        server.take_in()
        log.info("%s %s at %s serves %s", self._dialect.name, facts.version, server.url, facts.model)
        if not facts.seeded:
            log.warning(
                "%s draws without regard to seeds: a run cannot be repeated; --enable-deterministic-inference cures that",
                server.url,
            )
        return problems + ([] if sampling is None else self._unfit(server, sampling))

    def _unfit(self, server: Server, sampling: Sampling) -> list[str]:
        kind = server.facts.logprobs
        assert kind is not None
        why = unfit(kind, sampling)
        return [f"{why}: {self._dialect.cures[kind]}"] if why else []

    async def _measured_kind(self, connections: Connections, server: Server) -> LogprobKind:
        """Compare the log-probs of a reply drawn at temperature 2 with those of the same tokens as a prompt, at temperature 1."""
        flat = Sampling(temperature=FLATTER, max_tokens=16)
        prompt = self._probe[:8]
        drawn = await self._dialect.draw(connections, server, prompt, flat, 1, None, self._end_ids)
        scored = await self._dialect.score(connections, server, [*prompt, *drawn.ids], None)
        return "raw" if _mean_gap(drawn.logprobs, scored[len(prompt) - 1 :]) < 0.1 else "tempered"

    # ── new weights ──────────────────────────────────────────────────────────────────────────────────────────────────

    def load(self, policy: Any, version: int) -> None:
        """Give the servers these weights, and see that they have them.

        Args:
            policy: a transformers causal language model; adapters in it are merged into what is written, not in it.
            version: of the weights, e.g. the iteration; names the folder.

        Raises:
            EndpointError: the folder cannot be written, no server can be reached, one cannot load the weights, or one goes on
                with others. A server that does not answer is left out until the next call; the others take its share.
        """
        if self._first and not self._met:
            run_loop(self._check(None))  # before gigabytes are written
        training = self._training_scores(policy)
        tensors = whole_weights(policy, self._settings.dtype, keep=self._first)
        identity = content_hash([version, training], 16)
        self._label = f"{version}-{identity}"
        if not self._first:
            return
        folder = folder_of(self._weights, version, identity)
        hand_over(folder, policy, tensors)
        del tensors
        run_loop(self._load(folder, training))
        remove_others(folder)

    async def _load(self, folder: Path, training: tuple[float, ...]) -> None:
        async with self._connections() as connections:
            await together(self._renew(connections, server, folder, training) for server in self._fleet.servers)
        if not self._fleet.alive:
            raise EndpointError(
                f"None of the {len(self._fleet.servers)} inference servers took the new weights",
                where="; ".join(f"{s.url}: {s.out}" for s in self._fleet.servers),
                cure="look at their logs, start them again, and start the run again: it goes on from its last checkpoint",
            )

    async def _renew(self, connections: Connections, server: Server, folder: Path, training: tuple[float, ...]) -> None:
        was_out = bool(server.out)
        try:
            if was_out and (problems := await self._look(connections, server, None)):  # started again, perhaps otherwise
                raise Trouble(problems[0])
            await self._fleet.insist(server, lambda s: self._dialect.update(connections, s, folder, self._label))
            problem = await self._fleet.insist(server, lambda s: self._dialect.reported(connections, s, folder, self._label))
            scores = await self._fleet.insist(server, lambda s: self._dialect.score(connections, s, self._probe, self._label))
        except Trouble as trouble:
            server.out = trouble.why
            self._fleet.counts["left_out"] += not was_out
            log.warning("the inference server %s did not take new weights and is left out: %s", server.url, trouble.why)
            return
        except Refused as refused:
            raise EndpointError(
                f"The inference server does not answer about its weights: {refused.why}",
                where=server.url,
                cure="see its log; docs/policy-servers.md has the command that starts it",
            ) from None
        now = _Probed(tuple(scores), training)
        problem = problem or _stale(now, self._seen.get(server.url), self._settings.tolerance)
        if problem:
            raise EndpointError(
                f"The server still answers with old weights, or with others than it was given: {problem}",
                where=f"{server.url}, {folder}",
                cure=f"see that it was started on policy.base and sees {self._weights} as this machine does, and start it again",
            )
        if server.url not in self._seen or self._seen[server.url].server != now.server:
            self._seen[server.url] = now

    @torch.no_grad()
    def _training_scores(self, policy: Any) -> tuple[float, ...]:
        """Log-probs of the fixed text's tokens after the first, as the training model computes them."""
        was_training = policy.training
        policy.eval()
        ids_1T = torch.tensor([self._probe], device=policy.device)
        logprobs_TV = torch.log_softmax(policy(input_ids=ids_1T, use_cache=False).logits[0, :-1].float(), -1)
        policy.train(was_training)
        return tuple(logprobs_TV.gather(1, ids_1T[0, 1:, None])[:, 0].tolist())

    # ── replies ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        samples: int = 1,
        *,
        done: Callable[[int], None] | None = None,
    ) -> list[Sampled]:
        """Replies by the weights of the last `load`: prompt 0 sample 0, prompt 0 sample 1, …

        Args:
            prompts: token ids of each prompt.
            sampling: temperature (0 = greedy), top_p, max_tokens; stop strings are the caller's business.
            seeds: one per reply.
            samples: replies per prompt.
            done: called with 1 after each reply.

        Raises:
            EndpointError: no server is left, one reply failed too often, an answer is malformed, or the servers' log-probs are
                not those that `sampling` needs.
            ValueError: not one seed per reply, `load` was never called, or this is not the first process.
        """
        if len(seeds) != len(prompts) * samples:
            raise ValueError(f"{len(prompts)} prompts with {samples} samples each want as many seeds, not {len(seeds)}")
        if not self._label or not self._first:
            raise ValueError("the first process samples, after it has loaded weights")
        return run_loop(self._generate(prompts, sampling, seeds, samples, done))

    async def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        samples: int,
        done: Callable[[int], None] | None,
    ) -> list[Sampled]:
        for server in self._fleet.alive:
            if problems := self._unfit(server, sampling):
                why, _, cure = problems[0].partition(": ")
                raise EndpointError(
                    f"The server's log-probs are not those that training needs: {why}",
                    where=f"{server.url} and policy.sampling",
                    cure=cure,
                )
        async with self._connections() as connections:

            def one(prompt: Sequence[int], seed: int) -> Callable[[Server], Coroutine[Any, Any, Sampled]]:
                async def draw(server: Server) -> Sampled:
                    try:
                        drawn = await self._dialect.draw(
                            connections, server, prompt, sampling, seed & SEED_BITS, self._label, self._end_ids
                        )
                    except Refused as refused:
                        raise EndpointError(
                            f"The inference server refuses a prompt of {len(prompt)} tokens: {refused.why}",
                            where=server.url,
                            cure="see its log; a context length below prompt and policy.sampling.max_tokens is the usual reason",
                        ) from None
                    if done is not None:
                        done(1)
                    return drawn

                return draw

            numbers = range(len(seeds))
            calls = [one(prompts[n // samples], seeds[n]) for n in numbers]
            return await self._fleet.share(calls, [n // samples for n in numbers])

    # ── for the log ──────────────────────────────────────────────────────────────────────────────────────────────────

    def metrics(self) -> dict[str, float]:
        """Servers that take part, and calls, retries and servers left out since the run began."""
        counts = self._fleet.counts
        return {"servers/alive": float(len(self._fleet.alive))} | {
            f"servers/{name}": float(counts[name]) for name in ("calls", "retries", "left_out")
        }

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _connections(self) -> Connections:
        return Connections(self._key, self._settings.timeout)


def _stale(now: _Probed, before: _Probed | None, tolerance: float) -> str:
    """Why the server's log-probs are not those of the new weights; "" when they are."""
    gap = _mean_gap(now.server, now.training)
    if before is not None and now.server == before.server:
        moved = max(abs(a - b) for a, b in zip(now.training, before.training, strict=True))
        if moved > MOVED:
            return f"its log-probs of a fixed text did not change, those of the training model did, by up to {moved:.2g}"
    if gap > tolerance:
        return (
            f"its log-probs of a fixed text differ from the training model's by {gap:.2g} on average, {tolerance:g} at most is"
            " policy.engine.tolerance"
        )
    return ""


def _mean_gap(first: Sequence[float], second: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(first, second, strict=True)) / max(1, len(first))
