"""An inference server that is a small transformers model in this process, in vLLM's or SGLang's words, with faults to order.

It decodes one token at a time without a cache, so its replies and log-probs are an implementation of their own, and reads new
weights from the folder it is told. Requests and answers have the shapes of the sources that `starling.policy.servers.vllm` and
`.sglang` name.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from aiohttp import web
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

Engine = Literal["vllm", "sglang"]


class RolloutServer:
    """Use as a context manager; `url` is its address.

    Args:
        folder: what it is started on.
        engine: whose words it speaks.
        mode: which log-probs it reports of drawn tokens: "raw", "tempered" or "truncated".
        key: wanted as a bearer token where the engine wants it.
        options: facts to report otherwise, e.g. version, weight_version, dev_mode, seeded.
    """

    def __init__(self, folder: Path, engine: Engine, mode: str = "", key: str = "", **options: Any) -> None:
        self.engine, self.key, self.options = engine, key, options
        self.mode = mode or ("raw" if engine == "vllm" else "tempered")
        self.folder = folder
        self.model = read(folder)
        self.weight_version = "default"
        self.faults: Counter[str] = Counter()
        """How many times each fault still happens; see `_fault` and `_spoilt`."""
        self.slow_s = 0.0
        self.counts: Counter[str] = Counter()
        """Requests by path."""
        self.bodies: list[dict[str, Any]] = []
        """Of the requests for replies."""
        self.most = self._now = 0
        self._stopped = False

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self) -> RolloutServer:
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()

        def serve() -> None:
            asyncio.set_event_loop(self._loop)
            app = web.Application(client_max_size=1 << 26)
            app.router.add_route("*", "/{path:.*}", self._handle)
            self._runner = web.AppRunner(app, shutdown_timeout=0.1)
            self._loop.run_until_complete(self._runner.setup())
            self._loop.run_until_complete(web.TCPSite(self._runner, "127.0.0.1", 0).start())
            self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
            ready.set()
            self._loop.run_forever()

        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()
        assert ready.wait(30)
        return self

    def stop(self) -> None:
        """Go, as a process that is killed: connections break, later ones are refused."""
        if not self._stopped:
            self._stopped = True
            asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(30)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(30)
            self._loop.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    # ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        self.counts[path] += 1
        guarded = path.startswith("/v1") or self.engine == "sglang"
        if self.key and guarded and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": f"Unauthorized: {request.headers.get('Authorization')}"}, status=401)
        body = await request.json() if request.can_read_body else {}
        if path in ("/v1/completions", "/generate"):
            self.bodies.append(body)
            self._now += 1
            self.most = max(self.most, self._now)
            try:
                return await self._fault(request) or web.json_response(self._spoilt(self._reply(body)))
            finally:
                self._now -= 1
        known = self._vllm if self.engine == "vllm" else self._sglang
        return known(path, request, body)

    async def _fault(self, request: web.Request) -> web.StreamResponse | None:
        await asyncio.sleep(self.slow_s)
        if self._due("busy"):
            return web.json_response({"error": {"message": "the engine is busy"}}, status=503, headers={"Retry-After": "0"})
        dying = self._due("die")
        if dying:
            threading.Thread(target=self.stop).start()
        if dying or self._due("cut"):
            answer = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
            await answer.prepare(request)
            await answer.write(b'{"choices": [')
            assert request.transport is not None
            request.transport.close()
            return answer
        if self._due("refuse"):
            return web.json_response({"error": {"message": "prompt and max_tokens exceed the context of 8"}}, status=400)
        if self._due("garbage"):
            return web.Response(text='{"choices": [', content_type="application/json")
        return None

    def _due(self, fault: str) -> bool:
        if self.faults[fault] <= 0:
            return False
        self.faults[fault] -= 1
        return True

    def _vllm(self, path: str, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        dev = self.options.get("dev_mode", True)
        if path == "/health":
            return web.Response()
        if path == "/version":
            return web.json_response({"version": self.options.get("version", "0.33.0")})
        if path == "/v1/models":
            return web.json_response({"data": [{"id": "base", "max_model_len": 128, "parent": None}]})
        if path == "/server_info" and dev:
            names = {"raw": "raw_logprobs", "truncated": "processed_logprobs", "logits": "raw_logits"}
            model = {"logprobs_mode": names[self.mode]} if not self.options.get("old_info") else {}
            return web.json_response({"vllm_config": {"model_config": model if request.query["config_format"] == "json" else ""}})
        if path == "/collective_rpc" and dev:
            assert body["method"] == "reload_weights"
            return self._load(Path(body["kwargs"]["weights_path"])) or web.json_response({"results": [None]})
        if path == "/reset_prefix_cache" and dev:
            return web.json_response({"success": not self._due("cache_in_use")})
        return web.json_response({"detail": "Not Found"}, status=404)

    def _sglang(self, path: str, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        path = path.replace("/get_", "/") if self.options.get("old_names") else path
        if path == "/health":
            return web.Response()
        if path == "/model_info":
            info = {"model_path": str(self.folder), "weight_version": self.weight_version, "is_generation": True}
            if self.options.get("no_weight_version"):
                del info["weight_version"]
            return web.json_response(info)
        if path == "/server_info":
            seeded = self.options.get("seeded", True)
            return web.json_response({"version": "0.5.23", "enable_deterministic_inference": seeded, "context_length": None})
        if path == "/update_weights_from_disk":
            failed = self._load(Path(body["model_path"]))
            if failed is None and not self._due("version_lost"):
                self.weight_version = body["weight_version"]
            return failed or web.json_response({"success": True, "message": "Succeeded.", "num_paused_requests": 0})
        return web.json_response({"detail": "Not Found"}, status=404)

    def _load(self, folder: Path) -> web.StreamResponse | None:
        if self._due("load_fails"):
            return web.json_response({"success": False, "message": "no such file"}, status=400)
        if not self._due("stale"):
            self.model = read(folder)
        self.folder = folder
        return None

    # ── replies ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _reply(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.engine == "vllm":
            stop, top_p, seed = body.get("stop_token_ids", ()), body.get("top_p", 1.0), body.get("seed")
            ids, logprobs = self._draw(body["prompt"], body["max_tokens"], body["temperature"], top_p, seed, stop)
            stopped = ids[-1] in stop
            choice: dict[str, Any] = {
                "index": 0, "text": "…", "finish_reason": "stop" if stopped else "length",
                "stop_reason": ids[-1] if stopped else None, "token_ids": ids, "prompt_token_ids": body["prompt"],
                "logprobs": {"tokens": [f"token_id:{i}" for i in ids], "token_logprobs": logprobs},
            }  # fmt: skip
            if body.get("prompt_logprobs") is not None:
                entries = zip(body["prompt"][1:], self._score(body["prompt"]), strict=True)
                choice["prompt_logprobs"] = [None, *({str(i): {"logprob": v, "rank": 1}} for i, v in entries)]
            return {"object": "text_completion", "model": body["model"], "choices": [choice]}
        s = body["sampling_params"]
        stop = s.get("stop_token_ids", ())
        ids, logprobs = self._draw(
            body["input_ids"], s["max_new_tokens"], s["temperature"], s["top_p"], s.get("sampling_seed"), stop
        )
        stopped = ids[-1] in stop
        meta: dict[str, Any] = {
            "prompt_tokens": len(body["input_ids"]), "weight_version": self.weight_version,
            "finish_reason": {"type": "stop", "matched": ids[-1]} if stopped else {"type": "length", "length": len(ids)},
            "output_token_logprobs": [[v, i, None] for v, i in zip(logprobs, ids, strict=True)],
        }  # fmt: skip
        if body.get("logprob_start_len") == 0:
            scores = [None, *self._score(body["input_ids"])]
            meta["input_token_logprobs"] = [[v, i, None] for v, i in zip(scores, body["input_ids"], strict=True)]
        return {"text": "…", "output_ids": ids, "meta_info": meta}

    @torch.no_grad()
    def _draw(
        self, prompt: list[int], limit: int, temperature: float, top_p: float, seed: int | None, stop: Any
    ) -> tuple[list[int], list[float]]:
        uniforms = np.random.Generator(np.random.Philox(key=seed)).random(limit)
        ids: list[int] = []
        logprobs: list[float] = []
        for n in range(limit):
            logits_V = self.model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, -1].float()
            raw_V = logits_V.log_softmax(-1)
            tempered_V = (logits_V / (temperature or 1.0)).log_softmax(-1)
            order_V = tempered_V.argsort(descending=True)
            before_V = tempered_V.exp()[order_V].cumsum(0) - tempered_V.exp()[order_V]
            cut_V = tempered_V.clone()
            cut_V[order_V[before_V >= top_p]] = -torch.inf
            truncated_V = cut_V.log_softmax(-1)
            cdf_V = truncated_V.exp().double().cumsum(0)
            token = int(logits_V.argmax()) if temperature == 0 else int(torch.searchsorted(cdf_V, float(uniforms[n] * cdf_V[-1])))
            reported_V = {"raw": raw_V, "tempered": tempered_V, "truncated": truncated_V, "logits": logits_V}[self.mode]
            ids.append(token)
            logprobs.append(float(reported_V[token]))
            if token in stop:
                break
        return ids, logprobs

    @torch.no_grad()
    def _score(self, ids: list[int]) -> list[float]:
        logprobs_TV = self.model(input_ids=torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
        return [float(logprobs_TV[t, token]) for t, token in enumerate(ids[1:])]

    def _spoilt(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Faults in what an answer says; each hits replies, not scores of a prompt."""
        vllm = self.engine == "vllm"
        part = answer["choices"][0] if vllm else answer["meta_info"]
        if ("prompt_logprobs" in part) or ("input_token_logprobs" in part):
            return answer
        ended = part["finish_reason"] if vllm else part["finish_reason"]["type"]
        if self._due("no_ids"):
            del (part if vllm else answer)["token_ids" if vllm else "output_ids"]
        if self._due("short_logprobs"):
            del (part["logprobs"]["token_logprobs"] if vllm else part["output_token_logprobs"])[-1]
        if self._due("null_logprob"):
            if vllm:
                part["logprobs"]["token_logprobs"][0] = None
            else:
                part["output_token_logprobs"][0][0] = None
        if self._due("other_prompt"):
            part["prompt_token_ids" if vllm else "prompt_tokens"] = [1, 2] if vllm else 2
        if self._due("aborted"):
            part["finish_reason"] = "abort" if vllm else {"type": "abort", "message": "Aborted"}
        if self._due("other_version"):
            part["weight_version"] = "default"
        if ended == "stop" and self._due("end_left_out"):  # from the ids alone, or from the log-probs too
            (part if vllm else answer)["token_ids" if vllm else "output_ids"].pop()
        if ended == "stop" and self._due("end_lost"):
            (part if vllm else answer)["token_ids" if vllm else "output_ids"].pop()
            (part["logprobs"]["token_logprobs"] if vllm else part["output_token_logprobs"]).pop()
        return answer


def read(folder: Path) -> Any:
    """The model of a folder, as a server would load it: all weights must be there, and no others."""
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config)
    names = {id(p): n for n, p in model.named_parameters()}  # what is tied counts once
    tensors: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    assert set(names.values()) == set(tensors)
    model.load_state_dict(tensors, strict=False)
    return model.float().eval()
