"""Stage 2: every model of the pool answers every prompt.

Source: Nectar gathered 7 answers per prompt from many models. Departure: here each pool member answers every prompt (the
original mixed fresh answers with those found in its source sets), and a failed call stays a `Response` with finish=error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starling.endpoint import Endpoint, Request
from starling.progress import SILENT, Progress
from starling.records import Finish, Prompt, Response, content_hash


def collect(prompts: Sequence[Prompt], pool: Mapping[str, Endpoint], progress: Progress = SILENT) -> list[Response]:
    """All responses in prompt order, then pool order: len(prompts) × len(pool) of them, failed calls included.

    Args:
        prompts: what to answer.
        pool: endpoint by the label that `Response.model` gets.
        progress: gets one unit per response.
    """
    by_model: list[list[Response]] = []
    for label, endpoint in pool.items():
        requests = [Request(model=endpoint.model, messages=p.messages, purpose="respond") for p in prompts]
        progress.start(f"respond {label}", len(requests))
        replies = endpoint.complete_all(requests, progress)
        progress.finish()
        by_model.append([_response(p, label, r.text, r.finish, r.call_id) for p, r in zip(prompts, replies, strict=True)])
    return [response for row in zip(*by_model, strict=True) for response in row]


def _response(prompt: Prompt, label: str, text: str, finish: Finish, call_id: str) -> Response:
    if finish is Finish.error:
        text = ""
    return Response(
        id=content_hash([prompt.id, label, text], 16), prompt_id=prompt.id, model=label, text=text, finish=finish, call_id=call_id
    )
