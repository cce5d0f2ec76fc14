"""How a vLLM server is spoken to.

Read in vLLM's source, releases 0.10.2, 0.12.0, 0.14.1, 0.16.0 and 0.33.0 (entrypoints/openai/completion, entrypoints/serve/dev,
v1/sample/sampler.py, v1/core/sched/utils.py, v1/worker/gpu_model_runner.py, model_executor/model_loader/reload):

- New weights: POST /collective_rpc {"method": "reload_weights", "kwargs": {"weights_path": FOLDER}}, there with
  VLLM_SERVER_DEV_MODE=1. `weights_path` is in 0.16.0 and not in 0.14.1, which reads its first folder again: 0.16.0 is the oldest
  that will do. Reloading hybrid Mamba models spoils them (issue 48284). The transfer engines behind /init_weight_transfer_engine
  and /update_weights need NCCL or CUDA IPC between trainer and server; a folder works wherever both can see one.
- POST /reset_prefix_cache says 200 also when blocks are still held and nothing was reset; since 0.26 the body has `success`.
  `cache_salt` (0.9) parts the prefix cache by weights in any case, and is sent with every request.
- /v1/completions takes `prompt` as token ids; `return_token_ids` (0.10.2) gives `token_ids` and `prompt_token_ids` per choice,
  the end token included. `logprobs: 0` gives the drawn token's alone. `seed` is an int64 and honoured per request; with n > 1
  the further replies get seeds of their own, so each reply is a request here. Prompt log-probs are always at temperature 1.
- What a request leaves open is filled from the model's generation_config.json (top_k, repetition_penalty …): all is sent.
  `ignore_eos` stops nothing but leaves `stop_token_ids` in force, so that exactly the policy's end tokens end a reply.
- `logprobs_mode` (0.10) is in /server_info?config_format=json (0.12), a dev-mode address too.
- --api-key guards /v1 only: the dev-mode addresses are open to whoever reaches the port.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from starling.errors import EndpointError
from starling.models.sample import Sampled
from starling.policy.servers.facts import Facts, LogprobKind
from starling.policy.servers.fleet import Connections, Refused, Server, Trouble
from starling.policy.servers.replies import malformed, scores, whole
from starling.records import Sampling

OLDEST = (0, 16)
KINDS: dict[str, LogprobKind] = {
    "raw_logprobs": "raw",
    "processed_logprobs": "truncated",
    "raw_logits": "logits",
    "processed_logits": "logits",
}
CURES = {
    "raw": "start vLLM with --logprobs-mode processed_logprobs and set policy.sampling.top_p = 1, or set temperature = 1",
    "truncated": "set policy.sampling.top_p = 1; or set temperature = 1 and start vLLM with --logprobs-mode raw_logprobs",
    "logits": "start vLLM with --logprobs-mode processed_logprobs, or raw_logprobs for temperature 1",
    "tempered": "",
}
"""What to do about log-probs of a kind that does not fit."""


class Vllm:
    """The dialect; without state."""

    name = "vLLM"
    cures = CURES

    async def look(self, connections: Connections, server: Server) -> tuple[Facts | None, list[str]]:
        """(what it is, what is wrong with it and how to cure that).

        Raises:
            Trouble: it cannot be reached, or is still starting.
        """
        await connections.ask(server, "GET", "/health")
        try:
            version = str((await connections.ask(server, "GET", "/version"))["version"])
        except (Refused, KeyError, TypeError):
            return None, ["is no vLLM server (/version is missing): set policy.engine.type, or the address without a path"]
        if (found := release(version)) is not None and found < OLDEST:
            return None, [f"runs vLLM {version}, which cannot load weights from another folder: install 0.16 or newer"]
        try:
            models = (await connections.ask(server, "GET", "/v1/models"))["data"]
            model = next(m for m in models if not m.get("parent"))
        except Refused as refused:
            return None, [f"{refused.why}: name its key's environment variable in policy.engine.api_key_env"]
        except (KeyError, TypeError, AttributeError, StopIteration):
            return None, ["lists no model at /v1/models: see its log"]
        try:
            info = await connections.ask(server, "GET", "/server_info?config_format=json")
        except Refused as refused:
            return None, [f"has no address for new weights ({refused.why}): start it with VLLM_SERVER_DEV_MODE=1"]
        kind = KINDS.get(str(_dig(info, "vllm_config", "model_config", "logprobs_mode")))
        length = model.get("max_model_len")
        return Facts(version, str(model["id"]), kind, True, length if isinstance(length, int) else None), []

    async def update(self, connections: Connections, server: Server, folder: Path, label: str) -> None:
        """Load the weights in `folder`, and forget what was cached with the old ones.

        Raises:
            Trouble: not reached, or the cache is still in use.
            EndpointError: the server cannot load them.
        """
        call = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        try:
            await connections.ask(server, "POST", "/collective_rpc", call)
        except Refused as refused:
            raise EndpointError(
                f"vLLM did not load the new weights: {refused.why}",
                where=f"{server.url}, {folder}",
                cure="see that it was started on policy.base, sees policy.engine.weights under this path and may read it",
            ) from None
        answer = await connections.ask(server, "POST", "/reset_prefix_cache?reset_running_requests=true")
        if isinstance(answer, dict) and answer.get("success") is False:
            raise Trouble("its prefix cache is in use and was not reset")

    async def reported(self, connections: Connections, server: Server, folder: Path, label: str) -> str:
        """What the server says about its weights that is not right; nothing here: its log-probs have to tell."""
        return ""

    async def draw(
        self, connections: Connections, server: Server, prompt: Sequence[int], sampling: Sampling, seed: int, label: str | None,
        end_ids: Sequence[int],
    ) -> Sampled:  # fmt: skip
        """One reply. `label` names the weights that it must come from; None before any were given.

        Raises:
            Trouble: try again.
            Refused: the server does not take the request.
            EndpointError: its answer is malformed.
        """
        body = {
            "model": server.facts.model,
            "prompt": list(prompt),
            "max_tokens": sampling.max_tokens,
            "min_tokens": 0,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": seed,
            "stop_token_ids": list(end_ids),
            "ignore_eos": True,
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "add_special_tokens": False,
            "logprobs": 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        } | salt(label)
        choice = _choice(server, await connections.ask(server, "POST", "/v1/completions", body), prompt)
        ended = choice.get("finish_reason")
        if ended not in ("stop", "length"):
            raise Trouble(f"the reply ended with finish_reason {ended!r}")
        found = choice.get("logprobs")
        if not isinstance(found, dict):
            raise malformed(server.url, "log-probs are missing")
        ids = choice.get("token_ids")
        shown = found.get("tokens")
        if isinstance(ids, list) and isinstance(shown, list) and len(shown) == len(ids):
            named = [int(t.removeprefix("token_id:")) for t in shown if isinstance(t, str) and re.fullmatch(r"token_id:\d+", t)]
            if named and named != ids:
                raise malformed(server.url, "token ids and log-probs belong to different tokens")
        return whole(
            server.url,
            ids,
            found.get("token_logprobs"),
            stopped=ended == "stop",
            matched=choice.get("stop_reason"),
            end_ids=end_ids,
            limit=sampling.max_tokens,
        )

    async def score(self, connections: Connections, server: Server, ids: Sequence[int], label: str | None) -> list[float]:
        """Log-probs, at temperature 1, of the tokens of a text after its first.

        Raises:
            Trouble, Refused, EndpointError: as `draw`.
        """
        body = {
            "model": server.facts.model,
            "prompt": list(ids),
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": 1,
            "add_special_tokens": False,
            "return_token_ids": True,
        } | salt(label)
        choice = _choice(server, await connections.ask(server, "POST", "/v1/completions", body), ids)
        found = choice.get("prompt_logprobs")
        if not isinstance(found, list) or len(found) != len(ids):
            raise malformed(server.url, "the log-probs of the prompt are missing")
        pairs: list[tuple[Any, Any]] = [(ids[0], None)]
        for token, entry in zip(ids[1:], found[1:], strict=True):
            one = entry.get(str(token)) if isinstance(entry, dict) else None
            pairs.append((token if isinstance(one, dict) else None, one.get("logprob") if isinstance(one, dict) else None))
        return scores(server.url, pairs, ids)


def salt(label: str | None) -> dict[str, str]:
    """Keeps what is cached with one version's weights from the requests to another's."""
    return {} if label is None else {"cache_salt": label}


def release(version: str) -> tuple[int, int] | None:
    """(major, minor) of a release; None for what was built from a checkout ("0.1.dev…"), which does not say how old it is."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return None if found is None or ".dev" in version else (int(found[1]), int(found[2]))


def _choice(server: Server, answer: Any, prompt: Sequence[int]) -> dict[str, Any]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise malformed(server.url, "it does not hold exactly one choice")
    if choices[0].get("prompt_token_ids") != list(prompt):
        raise malformed(server.url, "the prompt's token ids do not come back as they were sent")
    return cast("dict[str, Any]", choices[0])


def _dig(tree: Any, *path: str) -> Any:
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree
