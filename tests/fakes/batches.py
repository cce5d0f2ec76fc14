"""The batch APIs of the fake server: OpenAI's files and batches, Anthropic's message batches.

Formats: platform.openai.com/docs/api-reference/batch and /files; docs.anthropic.com/en/api/creating-message-batches.

How a batch goes follows from `settings`, which `/control` changes under "batch":

    seconds     from its creation to its end
    end         completed | expired | failed | cancelled. Expired: the first half of the lines is done and charged.
                failed: the file is refused as a whole (OpenAI only).
    all_failed  true: "completed", every line failed, no output file at all
    page        most batches a listing gives at once
    lose        so many creations (files, batches) in a row are carried out but their answer never arrives: the connection
                is reset after the work is done, which is the crash between upload and id seen from the other side
    limit       most batches under way at once; one more is refused (OpenAI: the token_limit_exceeded of a full queue)

A line that the plan of the server gives a fault to fails in the way of its kind: statuses become errors of that status,
faults of connection and body become status 500, unusual replies stay replies.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.fakes import replies
from tests.fakes.faults import BODY, STATUS, WIRE

if TYPE_CHECKING:
    from tests.fakes.server import Server

DEFAULTS = {"seconds": 0.0, "end": "completed", "all_failed": False, "page": 20, "lose": 0, "limit": 1000}
MOST_LINES, MOST_BYTES = 50_000, 200_000_000


class Batches:
    """Files and batches of one server, in memory."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.forget()

    def forget(self) -> None:
        self.settings: dict[str, Any] = dict(DEFAULTS)
        self.files: dict[str, tuple[dict[str, Any], bytes]] = {}
        self.openai: dict[str, dict[str, Any]] = {}
        self.anthropic: dict[str, dict[str, Any]] = {}
        self.lines = 0
        """Lines that were worked on: what has to be paid."""

    def stats(self) -> dict[str, Any]:
        return {"files": len(self.files), "openai": len(self.openai), "anthropic": len(self.anthropic), "lines": self.lines}

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Everything below /v1/files, /v1/batches and /v1/messages/batches."""
        parts = request.path.strip("/").split("/")[1:]
        if parts[:1] == ["files"]:
            return await self._files(request, parts[1:])
        if parts[:1] == ["batches"]:
            return await self._openai(request, parts[1:])
        if parts[:2] == ["messages", "batches"]:
            return await self._anthropic(request, parts[2:])
        return web.json_response({"error": {"message": f"no such address: {request.path}"}}, status=404)

    def _created(self, request: web.BaseRequest, value: dict[str, Any]) -> web.StreamResponse:
        """The answer to a creation, which gets lost when the settings say so."""
        if self.settings["lose"] > 0:
            self.settings["lose"] -= 1
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("on purpose")
        return web.json_response(value)

    # ── OpenAI ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _files(self, request: web.BaseRequest, parts: list[str]) -> web.StreamResponse:
        if not parts and request.method == "POST":
            fields = await request.post()
            upload = fields.get("file")
            if not isinstance(upload, web.FileField):
                return refused("'file' is a required property")
            return self._created(request, self._keep(upload.filename, upload.file.read(), str(fields.get("purpose", ""))))
        if not parts:
            return self._page(request, [meta for meta, _ in self.files.values()])
        if parts[0] not in self.files:
            return refused(f"No such File object: {parts[0]}", 404)
        meta, content = self.files[parts[0]]
        if request.method == "DELETE":
            del self.files[parts[0]]
            return web.json_response({"id": parts[0], "object": "file", "deleted": True})
        if parts[1:] == ["content"]:
            return web.Response(body=content, content_type="application/octet-stream")
        return web.json_response(meta)

    def _keep(self, name: str, content: bytes, purpose: str) -> dict[str, Any]:
        ident = f"file-{len(self.files) + 1:06d}"
        meta = {"id": ident, "object": "file", "bytes": len(content), "created_at": int(time.time()), "filename": name,
                "purpose": purpose, "status": "processed"}  # fmt: skip
        self.files[ident] = (meta, content)
        return meta

    async def _openai(self, request: web.BaseRequest, parts: list[str]) -> web.StreamResponse:
        for batch in self.openai.values():
            self._advance(batch)
        if not parts and request.method == "POST":
            return self._create(request, await request.json())
        if not parts:
            return self._page(request, list(self.openai.values()))
        if parts[0] not in self.openai:
            return refused(f"No batch found with id '{parts[0]}'.", 404)
        batch = self.openai[parts[0]]
        if parts[1:] == ["cancel"] and batch["status"] in ("validating", "in_progress"):
            batch["end"] = "cancelled"
            self._end(batch)
        return web.json_response(public(batch))

    def _create(self, request: web.BaseRequest, wanted: dict[str, Any]) -> web.StreamResponse:
        missing = [f for f in ("input_file_id", "endpoint", "completion_window") if f not in wanted]
        if missing:
            return refused(f"Missing required parameter: '{missing[0]}'.")
        if wanted["input_file_id"] not in self.files:
            return refused(f"No such File object: {wanted['input_file_id']}", 404)
        if wanted["endpoint"] not in ("/v1/chat/completions", "/v1/completions"):
            return refused(f"Invalid value: '{wanted['endpoint']}'.")
        under_way = sum(b["status"] in ("validating", "in_progress") for b in self.openai.values())
        ident = f"batch_{len(self.openai) + 1:06d}"
        batch = {
            "id": ident, "object": "batch", "endpoint": wanted["endpoint"], "errors": None,
            "input_file_id": wanted["input_file_id"], "completion_window": wanted["completion_window"], "status": "validating",
            "output_file_id": None, "error_file_id": None, "created_at": int(time.time()), "metadata": wanted.get("metadata"),
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "began": time.monotonic(), "end": self.settings["end"], "seconds": self.settings["seconds"],
        }  # fmt: skip
        self.openai[ident] = batch
        problem = self._problem(self.files[wanted["input_file_id"]][1], wanted["endpoint"])
        if under_way >= self.settings["limit"]:
            problem = ("token_limit_exceeded", "Enqueued token limit reached for this organization.")
        if problem is not None or batch["end"] == "failed":
            code, message = problem or ("invalid_request", "The batch failed.")
            batch["status"] = "failed"
            batch["errors"] = {"object": "list", "data": [{"code": code, "message": message, "param": None, "line": None}]}
        return self._created(request, public(batch))

    def _problem(self, content: bytes, path: str) -> tuple[str, str] | None:
        """Why a file is refused as a whole: OpenAI's own checks."""
        lines = content.splitlines()
        if not lines:
            return "empty_file", "The input file is empty."
        if len(lines) > MOST_LINES or len(content) > MOST_BYTES:
            return "too_many_tasks", f"At most {MOST_LINES} requests and {MOST_BYTES} bytes."
        seen, models = set(), set()
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                ident, url, model = row["custom_id"], row["url"], row["body"]["model"]
            except (ValueError, KeyError, TypeError):
                return "invalid_json_line", f"Line {number} is no request."
            if ident in seen:
                return "duplicate_custom_id", f"The custom_id '{ident}' is used twice."
            if url != path or row.get("method") != "POST":
                return "mismatched_url", f"Line {number} is for another address."
            seen.add(ident)
            models.add(model)
        return ("mismatched_model", "A batch is for one model only.") if len(models) > 1 else None

    def _advance(self, batch: dict[str, Any]) -> None:
        """Bring the state of a batch up to now."""
        if batch["status"] not in ("validating", "in_progress"):
            return
        lines = self.files[batch["input_file_id"]][1].count(b"\n") + 1 if batch["input_file_id"] in self.files else 0
        batch["status"] = "in_progress"
        batch["request_counts"]["total"] = batch["request_counts"]["total"] or lines
        if time.monotonic() - batch["began"] >= batch["seconds"]:
            self._end(batch)

    def _end(self, batch: dict[str, Any]) -> None:
        """Work through the lines and write the output and the error file."""
        rows = [json.loads(line) for line in self.files[batch["input_file_id"]][1].splitlines()]
        done = {"completed": len(rows), "expired": len(rows) // 2, "cancelled": 0}[batch["end"]]
        out, errors = [], []
        for index, row in enumerate(rows):
            line: dict[str, Any] = {"id": f"batch_req_{batch['id']}_{index}", "custom_id": row["custom_id"]}
            if index >= done:
                code, words = f"batch_{batch['end']}", "This request could not be executed before the batch ended."
                errors.append(line | {"response": None, "error": {"code": code, "message": words}})
                continue
            status, body = self._line(replies.CHAT if "chat" in row["url"] else replies.COMPLETION, row["body"])
            answer = {"status_code": status, "request_id": f"req_{index}", "body": json.loads(body)}
            (out if status == 200 else errors).append(line | {"response": answer, "error": None})
        out.reverse()  # a batch keeps no order
        batch["status"] = batch["end"]
        batch["request_counts"] = {"total": len(rows), "completed": len(out), "failed": len(errors)}
        for name, lines in (("output", out), ("error", errors)):
            if lines:
                content = "".join(json.dumps(x) + "\n" for x in lines).encode()
                batch[f"{name}_file_id"] = self._keep(f"{batch['id']}_{name}.jsonl", content, "batch_output")["id"]

    def _line(self, form: str, payload: dict[str, Any]) -> tuple[int, bytes]:
        """Status and body for one line; counted as a call of its content."""
        record = self._server.record
        try:
            asked = replies.read(form, payload)
        except (KeyError, TypeError, AttributeError, IndexError):
            return 400, replies.error_body(form, "bad_request", replies.ERROR_WORDS["bad_request"])
        self.lines += 1
        record.received += 1
        record.arrived[asked.key].append(time.monotonic())
        record.marks.setdefault(asked.key, asked.last[:100])
        fault = self._server.fault(asked, record.received, len(record.arrived[asked.key]))
        kind = fault.kind if fault else ""
        record.kinds[asked.key].append(kind)
        if self.settings["all_failed"] or kind in WIRE or kind in BODY:
            kind = "server_error"
        if kind in STATUS:
            return STATUS[kind], replies.error_body(form, kind, replies.ERROR_WORDS[kind])
        record.answered += 1
        record.finished[asked.key].append(time.monotonic())
        return 200, self._server.speaker.body(asked, kind)

    def _page(self, request: web.BaseRequest, rows: list[dict[str, Any]]) -> web.StreamResponse:
        """A listing of OpenAI's kind: newest first, `after` names the last one seen."""
        rows = rows[::-1]
        limit = min(int(request.query.get("limit", "20")), int(self.settings["page"]))
        after = request.query.get("after")
        start = 1 + next((i for i, r in enumerate(rows) if r["id"] == after), -1) if after else 0
        part = [public(r) for r in rows[start : start + limit]]
        ends = {"first_id": part[0]["id"], "last_id": part[-1]["id"]} if part else {"first_id": None, "last_id": None}
        return web.json_response({"object": "list", "data": part, **ends, "has_more": start + limit < len(rows)})

    # ── Anthropic ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _anthropic(self, request: web.BaseRequest, parts: list[str]) -> web.StreamResponse:
        for batch in self.anthropic.values():
            if batch["processing_status"] != "ended" and time.monotonic() - batch["began"] >= batch["seconds"]:
                self._end_anthropic(batch)
        if not parts and request.method == "POST":
            return self._create_anthropic(request, await request.json())
        if not parts:
            return self._page_anthropic(request)
        if parts[0] not in self.anthropic:
            return refused(f"Batch not found: {parts[0]}", 404, replies.MESSAGES)
        batch = self.anthropic[parts[0]]
        if parts[1:] == ["cancel"] and batch["processing_status"] != "ended":
            batch["end"] = "cancelled"
            self._end_anthropic(batch)
        if parts[1:] == ["results"]:
            if batch["processing_status"] != "ended":
                return refused("The batch has not ended", 404, replies.MESSAGES)
            return web.Response(body=b"".join(json.dumps(x).encode() + b"\n" for x in batch["results"]))
        return web.json_response(public(batch))

    def _create_anthropic(self, request: web.BaseRequest, wanted: dict[str, Any]) -> web.StreamResponse:
        rows = wanted.get("requests")
        if not isinstance(rows, list) or not rows:
            return refused("requests: List should have at least 1 item", form=replies.MESSAGES)
        idents = [row.get("custom_id", "") for row in rows]
        if len(set(idents)) < len(idents):
            return refused("requests: custom_id must be unique", form=replies.MESSAGES)
        if not all(0 < len(i) <= 64 and i.replace("-", "").replace("_", "").isalnum() for i in idents):
            return refused("custom_id: 1 to 64 of A-Z a-z 0-9 _ -", form=replies.MESSAGES)
        ident = f"msgbatch_{len(self.anthropic) + 1:06d}"
        counts = {"processing": len(rows), "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
        self.anthropic[ident] = {
            "id": ident, "type": "message_batch", "processing_status": "in_progress", "request_counts": counts,
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "ended_at": None, "results_url": None,
            "began": time.monotonic(), "end": self.settings["end"], "seconds": self.settings["seconds"], "rows": rows,
            "host": request.host,
        }  # fmt: skip
        return self._created(request, public(self.anthropic[ident]))

    def _end_anthropic(self, batch: dict[str, Any]) -> None:
        rows = batch["rows"]
        done = {"completed": len(rows), "expired": len(rows) // 2}.get(batch["end"], 0)
        kinds = {"expired": "expired", "cancelled": "canceled"}
        counts = dict.fromkeys(batch["request_counts"], 0)
        results = []
        for index, row in enumerate(rows):
            if index >= done:
                result: dict[str, Any] = {"type": kinds.get(batch["end"], "errored")}
            else:
                status, body = self._line(replies.MESSAGES, row["params"])
                answer = json.loads(body)
                result = {"type": "succeeded", "message": answer} if status == 200 else {"type": "errored", "error": answer}
            counts[result["type"]] += 1
            results.append({"custom_id": row["custom_id"], "result": result})
        batch |= {
            "processing_status": "ended", "request_counts": counts, "results": results[::-1],
            "ended_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "results_url": f"http://{batch['host']}/v1/messages/batches/{batch['id']}/results",
        }  # fmt: skip

    def _page_anthropic(self, request: web.BaseRequest) -> web.StreamResponse:
        rows = list(self.anthropic.values())[::-1]
        limit = min(int(request.query.get("limit", "20")), int(self.settings["page"]))
        after = request.query.get("after_id")
        start = 1 + next((i for i, r in enumerate(rows) if r["id"] == after), -1) if after else 0
        part = [public(r) for r in rows[start : start + limit]]
        ends = {"first_id": part[0]["id"], "last_id": part[-1]["id"]} if part else {"first_id": None, "last_id": None}
        return web.json_response({"data": part, **ends, "has_more": start + limit < len(rows)})


def public(row: dict[str, Any]) -> dict[str, Any]:
    """A file or batch without what only this module knows."""
    return {k: v for k, v in row.items() if k not in ("began", "end", "seconds", "rows", "results", "host")}


def refused(message: str, status: int = 400, form: str = replies.CHAT) -> web.Response:
    """A request that is wrong."""
    return web.Response(
        status=status, body=replies.error_body(form, "bad_request", message), headers={"Content-Type": "application/json"}
    )
