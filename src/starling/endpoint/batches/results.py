"""What came back from a batch, into the journal: every line as received before it is parsed, a few hundred to a transaction.

It may be done twice: a line whose attempt has ended already changes nothing. A process that died half-way goes on where it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from starling.call import Reply, parse_reply
from starling.endpoint.asking import NOT_A_REPLY
from starling.endpoint.batches.shards import CHUNK, chunks
from starling.endpoint.batches.wire import Complaint, View
from starling.journal import Answer, Batch, Entry, Journal, Rejection, Spend, StoredReply, Tokens
from starling.journal.batches import BYSTANDER

Read = Callable[[bytes], tuple[str, StoredReply] | None]


@dataclass
class Outcome:
    """What the lines of one batch came to."""

    answered: int = 0
    failed: int = 0
    missing: int = 0
    """Requests without a line."""
    unknown: int = 0
    """Lines that belong to no request of the batch, or to none at all."""
    repeated: list[str] = field(default_factory=list)
    """Keys that came a second time; the first line counts."""
    statuses: Counter[int] = field(default_factory=Counter)
    """Of the failed ones."""

    def __str__(self) -> str:
        parts = [f"{self.answered} answered"]
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"{self.missing} without a line"] if self.missing else []
        parts += [f"{self.unknown} unknown lines ignored"] if self.unknown else []
        if self.repeated:
            named = ", ".join(key[:16] for key in self.repeated[:3])
            parts.append(f"{len(self.repeated)} answered twice, the first counts ({named}{', …' if self.repeated[3:] else ''})")
        return ", ".join(parts)


class Results:
    """Writes the results of batches.

    Args:
        journal: the run's journal.
        read: reads a line of the provider's file.
        spent: what a reply costs at the price of the batch API; None when it does not tell.
    """

    def __init__(self, journal: Journal, read: Read, spent: Callable[[Reply], Spend | None]) -> None:
        self._journal = journal
        self._read = read
        self._spent = spent

    def is_of(self, batch: Batch, file: Path) -> bool:
        """Whether a file of results belongs to a batch: every key in its first lines is the batch's."""
        first = next(chunks(self._lines(file)), [])
        keys = {found[0] for found in first if found is not None}
        return bool(keys) and len(self._journal.batches.members(batch.id, keys)) == len(keys)

    def store(self, batch: Batch, view: View, file: Path | None) -> Outcome:
        """Every line of the file, then a named failure for every request that has none."""
        outcome, seen = Outcome(), set[str]()
        for lines in chunks(self._lines(file)) if file is not None else ():
            self._store_lines(batch, lines, seen, outcome)
        while keys := self._journal.batches.unanswered(batch.id, CHUNK):
            words = f"the batch {'ended as ' + view.status if view.cut_short else 'is complete'} and has no line for this request"
            gap = StoredReply(status=0, error=words, sent=not view.cut_short)
            self._journal.write([Answer(key=key, attempt=0, reply=gap, batch=batch.id) for key in keys])
            outcome.missing += len(keys)
        return outcome

    def refuse(self, batch: Batch, complaints: Sequence[Complaint]) -> int:
        """The provider refused the whole file because of some lines: those fail, the others are free to be asked again.

        Returns:
            How many lines it named.
        """
        named: dict[str, str] = {}
        for complaint in complaints:
            key = self._journal.batches.key_at(batch.id, complaint.line) if complaint.line is not None else None
            if key is not None:
                named.setdefault(key, f"HTTP 400: refused in a batch, {complaint.code}: {complaint.message}"[:300])
        if not named:
            return 0
        wrong = [
            Answer(key=key, attempt=0, reply=StoredReply(status=400, error=words), batch=batch.id) for key, words in named.items()
        ]
        self._journal.write([a for a in wrong if self._journal.batches.members(batch.id, [a.key]).get(a.key)])
        gap = StoredReply(status=0, error=BYSTANDER, sent=False)
        while keys := self._journal.batches.unanswered(batch.id, CHUNK):
            self._journal.write([Answer(key=key, attempt=0, reply=gap, batch=batch.id) for key in keys])
        return len(named)

    def give_up(self, batch: Batch) -> None:
        """Nobody will ever know what became of a batch: its requests may have been paid for."""
        gap = StoredReply(status=0, error="the batch was given up: the provider has it no more")
        while keys := self._journal.batches.unanswered(batch.id, CHUNK):
            self._journal.write([Answer(key=key, attempt=0, reply=gap, batch=batch.id) for key in keys])

    def _lines(self, file: Path) -> Iterator[tuple[str, StoredReply] | None]:
        with file.open("rb") as source:
            for line in source:
                if line.strip():
                    yield self._read(line)

    def _store_lines(
        self, batch: Batch, lines: Sequence[tuple[str, StoredReply] | None], seen: set[str], outcome: Outcome
    ) -> None:
        members = self._journal.batches.members(batch.id, [line[0] for line in lines if line is not None])
        fresh: list[Entry] = []
        whole: list[str] = []
        for line in lines:
            if line is None or line[0] not in members:
                outcome.unknown += 1
                continue
            key, reply = line
            if key in seen:
                outcome.repeated.append(key)
                continue
            seen.add(key)
            if members[key]:
                fresh.append(Answer(key=key, attempt=0, reply=reply, batch=batch.id))
            if reply.answered:
                whole.append(key)
            else:
                outcome.failed += 1
                outcome.statuses[reply.status] += 1
        self._journal.write(fresh)
        self._parse(batch, whole, outcome)

    def _parse(self, batch: Batch, keys: Sequence[str], outcome: Outcome) -> None:
        """Read the replies from the journal, as any later process will, and write what they cost."""
        stored = self._journal.get_many(keys)
        entries: list[Entry] = []
        for key in keys:
            reply = parse_reply(stored[key].body, key) if key in stored else None
            if reply is not None:
                spent = self._spent(reply)
                if spent is not None:  # else it goes on counting with the most that it can be
                    prompt, completion = reply.prompt_tokens, reply.completion_tokens
                    tokens = Tokens(key=key, attempt=0, prompt=prompt, completion=completion, spent=spent, batch=batch.id)
                    entries.append(tokens)
                outcome.answered += 1
            else:
                if key in stored:
                    entries.append(Rejection(key=key, reason=NOT_A_REPLY))
                outcome.failed += 1
                outcome.statuses[200] += 1
        self._journal.write(entries)
