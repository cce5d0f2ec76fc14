"""How an SGLang server is spoken to.

Read in SGLang's source, releases 0.5.1, 0.5.3 and 0.5.23 (srt/entrypoints/http_server.py, srt/managers/io_struct.py,
tokenizer_manager.py, schedule_batch.py, srt/layers/sampler.py, srt/sampling/sampling_params.py):

- New weights: POST /update_weights_from_disk {"model_path", "weight_version", "abort_all_requests", "flush_cache"}; it waits for
  running requests unless they are aborted, flushes the radix cache by default, and on failure goes back to the weights before.
  `weight_version` is reported by /model_info (0.5.3: /get_model_info) and in the meta_info of every reply; 0.5.1 is the
  oldest release read that has it.
- /generate takes `input_ids`; with `return_logprob` meta_info has `output_token_logprobs`, a list of (log-prob, id, null), at
  the sampling temperature before top-p, unless SGLANG_RETURN_ORIGINAL_LOGPROB (0.5.3: RETURN_ORIGINAL_LOGPROB) is set, which
  no address shows. `input_token_logprobs` from `logprob_start_len` 0 on are at temperature 1, the first is null, and the id of
  the vocabulary's last token is shown as 0.
- `sampling_seed` is honoured with --enable-deterministic-inference only, and sent only then.
- `ignore_eos` switches `stop_token_ids` off too, so it stays off: end tokens of generation_config.json end replies as well.
- --preferred-sampling-params fill in what a request leaves open: all is sent.
- With --admin-api-key besides --api-key the addresses for weights want the admin's; policy.engine.api_key_env is sent everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starling.errors import EndpointError
from starling.models.sample import Sampled
from starling.policy.servers.facts import Facts
from starling.policy.servers.fleet import Connections, Refused, Server, Trouble
from starling.policy.servers.replies import malformed, scores, whole
from starling.records import Sampling

CURES = {
    "raw": "start SGLang without SGLANG_RETURN_ORIGINAL_LOGPROB (or RETURN_ORIGINAL_LOGPROB), or set temperature = 1",
    "tempered": "",
    "truncated": "set policy.sampling.top_p = 1",
    "logits": "",
}
"""What to do about log-probs of a kind that does not fit."""


class Sglang:
    """The dialect; without state."""

    name = "SGLang"
    cures = CURES

    async def look(self, connections: Connections, server: Server) -> tuple[Facts | None, list[str]]:
        """(what it is, what is wrong with it and how to cure that).

        Raises:
            Trouble: it cannot be reached, or is still starting.
        """
        await connections.ask(server, "GET", "/health")
        try:
            model = await self._info(connections, server, "model_info")
            info = await self._info(connections, server, "server_info")
        except Refused as refused:
            if refused.status in (401, 403):
                return None, [f"{refused.why}: name its key's environment variable in policy.engine.api_key_env"]
            return None, ["is no SGLang server (/model_info is missing): set policy.engine.type, or the address without a path"]
        if "weight_version" not in model:
            return None, ["runs an SGLang that reports no weight_version: install 0.5.1 or newer"]
        if model.get("is_generation") is False:
            return None, ["serves an embedding or reward model: start it on policy.base, without --is-embedding"]
        length = info.get("context_length") or info.get("max_req_input_len")
        return Facts(
            version=str(info.get("version", "unknown")),
            model=str(model.get("model_path")),
            logprobs=None,
            seeded=bool(info.get("enable_deterministic_inference")),
            max_length=length if isinstance(length, int) else None,
        ), []

    async def update(self, connections: Connections, server: Server, folder: Path, label: str) -> None:
        """Load the weights in `folder`, and forget what was cached with the old ones.

        Raises:
            Trouble: not reached.
            EndpointError: the server cannot load them.
        """
        body = {"model_path": str(folder), "weight_version": label, "abort_all_requests": True, "flush_cache": True}
        try:
            answer = await connections.ask(server, "POST", "/update_weights_from_disk", body)
            why = "" if isinstance(answer, dict) and answer.get("success") is True else f"it answered {str(answer)[:300]}"
        except Refused as refused:
            why = refused.why
        if why:
            raise EndpointError(
                f"SGLang did not load the new weights: {why}",
                where=f"{server.url}, {folder}",
                cure="see that it was started on policy.base, sees policy.engine.weights under this path and may read it",
            )

    async def reported(self, connections: Connections, server: Server, folder: Path, label: str) -> str:
        """What the server says about its weights that is not right; "" when it names those in `folder`."""
        model = await self._info(connections, server, "model_info")
        if model.get("weight_version") != label:
            return f"it names weight_version {model.get('weight_version')!r} instead of {label!r}"
        if model.get("model_path") != str(folder):
            return f"it names the folder {model.get('model_path')!r}"
        return ""

    async def draw(
        self, connections: Connections, server: Server, prompt: Sequence[int], sampling: Sampling, seed: int, label: str | None,
        end_ids: Sequence[int],
    ) -> Sampled:  # fmt: skip
        """One reply. `label` names the weights that it must come from; None before any were given.

        Raises:
            Trouble: try again.
            Refused: the server does not take the request.
            EndpointError: its answer is malformed, or made with other weights.
        """
        parameters = {
            "max_new_tokens": sampling.max_tokens,
            "min_new_tokens": 0,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": list(end_ids),
            "no_stop_trim": True,
            "skip_special_tokens": False,
        }
        if server.facts.seeded:
            parameters["sampling_seed"] = seed
        body = {"input_ids": list(prompt), "sampling_params": parameters, "return_logprob": True, "stream": False}
        answer = await connections.ask(server, "POST", "/generate", body)
        meta = _meta(server, answer, prompt)
        ended = meta.get("finish_reason")
        kind = ended.get("type") if isinstance(ended, dict) else None
        if kind not in ("stop", "length"):
            raise Trouble(f"the reply ended with finish_reason {ended!r}")
        if label is not None and meta.get("weight_version", label) != label:
            raise EndpointError(
                f"The server still answers with old weights: {meta['weight_version']!r} instead of {label!r}",
                where=server.url,
                cure="see that nobody else gives it weights, and start the run again",
            )
        pairs = _pairs(server, meta.get("output_token_logprobs"))
        ids, drawn = [token for _, token in pairs], answer.get("output_ids")
        if not isinstance(drawn, list) or drawn != ids[: len(drawn)] or len(ids) - len(drawn) > 1:
            raise malformed(server.url, "output_ids are missing, or others than those with log-probs")
        return whole(
            server.url,
            ids,
            [value for value, _ in pairs],
            stopped=kind == "stop",
            matched=ended.get("matched") if isinstance(ended, dict) else None,
            end_ids=end_ids,
            limit=sampling.max_tokens,
        )

    async def score(self, connections: Connections, server: Server, ids: Sequence[int], label: str | None) -> list[float]:
        """Log-probs, at temperature 1, of the tokens of a text after its first.

        Raises:
            Trouble, Refused, EndpointError: as `draw`.
        """
        parameters = {"max_new_tokens": 1, "temperature": 1.0, "top_p": 1.0, "top_k": -1}
        body = {"input_ids": list(ids), "sampling_params": parameters, "return_logprob": True, "logprob_start_len": 0}
        meta = _meta(server, await connections.ask(server, "POST", "/generate", body), ids)
        pairs = _pairs(server, meta.get("input_token_logprobs"))
        if len(pairs) != len(ids):
            raise malformed(server.url, "the log-probs of the prompt are missing")
        last = max(ids)  # may be the vocabulary's last token, shown as 0
        seen = [(want if token == 0 and want == last else token, value) for (value, token), want in zip(pairs, ids, strict=True)]
        return scores(server.url, seen, ids)

    async def _info(self, connections: Connections, server: Server, what: str) -> dict[str, Any]:
        """/model_info or /server_info, under its older name if that is the one there is."""
        try:
            answer = await connections.ask(server, "GET", f"/{what}")
        except Refused as refused:
            if refused.status != 404:
                raise
            answer = await connections.ask(server, "GET", f"/get_{what}")
        if not isinstance(answer, dict):
            raise Refused(200, f"/{what} is no JSON object")
        return answer


def _meta(server: Server, answer: Any, prompt: Sequence[int]) -> dict[str, Any]:
    meta = answer.get("meta_info") if isinstance(answer, dict) else None
    if not isinstance(meta, dict):
        raise malformed(server.url, "it holds no meta_info")
    if meta.get("prompt_tokens") != len(prompt):
        raise malformed(server.url, f"a prompt of {len(prompt)} tokens was read as {meta.get('prompt_tokens')!r}")
    return meta


def _pairs(server: Server, found: Any) -> list[tuple[Any, Any]]:
    """(log-prob, token id) of each entry (log-prob, id, text)."""
    if not isinstance(found, list) or any(not isinstance(entry, list) or len(entry) < 2 for entry in found):
        raise malformed(server.url, "log-probs are missing")
    return [(entry[0], entry[1]) for entry in found]
