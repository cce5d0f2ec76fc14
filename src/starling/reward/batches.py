"""Rankings as token ids: what goes through the reward model.

Source: Starling-RM trains on whole conversations, [prompt] [answer] [end of turn], left-truncated to 2,048 tokens.
Departure: what truncation did is counted, and a ranking keeps its ties, its weight and what is known of single pairs.

183,000 rankings of seven answers are half a billion tokens: as Python objects some 20 GB, and hours of a core to make. So they
are encoded once, a few hundred rankings at a time, into a folder that every process maps into memory:

    ids.bin           int32, the tokens of all conversations, one after the other
    answers.npy       one row per conversation: start in ids.bin, tokens, tokens before the reply, rank
    rankings.npy      one row per ranking: its first conversation, its first byte in about.bin, the tokens it has when those
                      that its conversations share count once; and one row for the end
    about.bin         JSON per ranking: {"id": …, "pairs": […]}
    meta.json         what it was made from, counts, SHA-256 of the tokens; written last

Shapes: none here; a ranking has K answers.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np

from starling.config import RewardSection
from starling.models.encode import Encoded, Encoder
from starling.models.tree import tree_tokens
from starling.progress import SILENT, Progress
from starling.records import RankedPair, RankedPrompt, content_hash

CHUNK = 256
"""Rankings that are tokenised together, and in memory as text."""

_ANSWER = np.dtype([("start", "<i8"), ("tokens", "<i4"), ("prompt", "<i4"), ("rank", "<i4")])
_RANKING = np.dtype([("answer", "<i8"), ("about", "<i8"), ("shared", "<i8")])


@dataclass(frozen=True)
class EncodedRanking:
    """The conversations of one ranked prompt, best answer first, cut to max_length; at least two.

    `ranks` are competition ranks (1, 2, 2, 4: equal ones are ties); `pairs` name answers by their places here.
    """

    prompt_id: str
    answers: tuple[Encoded, ...]
    ranks: tuple[int, ...]
    pairs: tuple[RankedPair, ...] = ()

    @property
    def longest(self) -> int:
        """Tokens of its longest conversation."""
        return max(len(a.ids) for a in self.answers)


def encode_rankings(
    rows: Iterable[RankedPrompt], encoder: Encoder, settings: RewardSection, counts: Counter[str]
) -> Iterator[EncodedRanking]:
    """Rankings as token ids, every answer with its whole conversation; holds a few hundred at a time.

    `counts` gains how many answers went in whole, prompt_cut, answer_cut or dropped (answers/…), how many rankings were read,
    say nothing of single pairs, lost an answer, or are left with fewer than two and not returned (rankings/read,
    without_confidence, shortened, dropped). A ranking that loses an answer keeps the order of the others.
    """
    source = iter(rows)
    while chunk := list(islice(source, CHUNK)):
        encoded = iter(encoder.conversations([(row.prompt.messages, a.answer, True) for row in chunk for a in row.answers]))
        for row in chunk:
            fitted = [encoder.fit(next(encoded), settings.over_long) for _ in row.answers]
            counts.update(f"answers/{how}" for _, how in fitted)
            kept = [place for place, (answer, _) in enumerate(fitted) if answer is not None]
            counts["rankings/read"] += 1
            counts["rankings/without_confidence"] += not row.pairs
            if len(kept) < 2:
                counts["rankings/dropped"] += 1
                continue
            counts["rankings/shortened"] += len(kept) < len(row.answers)
            yield _kept(row, [answer for answer, _ in fitted if answer is not None], kept)


def _kept(row: RankedPrompt, answers: Sequence[Encoded], kept: Sequence[int]) -> EncodedRanking:
    """The ranking of the places that are left, ranks and pairs renumbered."""
    old = [row.answers[place].rank for place in kept]
    ranks = tuple(1 + sum(other < rank for other in old) for rank in old)
    place_of = {place: i for i, place in enumerate(kept)}
    pairs = tuple(
        pair.model_copy(update={"better": place_of[pair.better], "worse": place_of[pair.worse]})
        for pair in row.pairs
        if pair.better in place_of and pair.worse in place_of
    )
    return EncodedRanking(row.prompt.id, tuple(answers), ranks, pairs)


# ── on disk ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class TokenStore(Sequence[EncodedRanking]):
    """Encoded rankings in a folder that `build_store` made; a ranking is read when it is asked for.

    `counts` says what encoding did, `digest` is a hash of all tokens, ranks and pairs.
    """

    def __init__(self, folder: Path) -> None:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        self.counts: dict[str, int] = meta["counts"]
        self.digest: str = meta["digest"]
        self._answers = np.load(folder / "answers.npy", mmap_mode="r")
        self._rankings = np.load(folder / "rankings.npy", mmap_mode="r")
        self._ids = _mapped(folder / "ids.bin", np.dtype("<i4"))
        self._about = _mapped(folder / "about.bin", np.dtype("u1"))

    def __len__(self) -> int:
        return len(self._rankings) - 1

    @overload
    def __getitem__(self, index: int) -> EncodedRanking: ...

    @overload
    def __getitem__(self, index: slice) -> list[EncodedRanking]: ...

    def __getitem__(self, index: int | slice) -> EncodedRanking | list[EncodedRanking]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._read(index, tokens=True)

    def order(self, index: int) -> EncodedRanking:
        """The ranking without the tokens of its answers: for what follows from ranks and pairs, at a fraction of the memory."""
        return self._read(index, tokens=False)

    def _read(self, index: int, *, tokens: bool) -> EncodedRanking:
        here, after = self._rankings[index % len(self)], self._rankings[index % len(self) + 1]
        rows = self._answers[here["answer"] : after["answer"]]
        about = json.loads(self._about[here["about"] : after["about"]].tobytes())
        spans = [(int(r["start"]), int(r["start"] + r["tokens"]) if tokens else int(r["start"])) for r in rows]
        return EncodedRanking(
            prompt_id=about["id"],
            answers=tuple(
                Encoded(tuple(self._ids[a:b].tolist()), int(prompt)) for (a, b), prompt in zip(spans, rows["prompt"], strict=True)
            ),
            ranks=tuple(int(r) for r in rows["rank"]),
            pairs=tuple(RankedPair.model_validate(pair) for pair in about["pairs"]),
        )

    @property
    def sizes(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Answers of every ranking."""
        return np.asarray(np.diff(self._rankings["answer"]), dtype=np.int64)

    @property
    def shared(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Tokens of every ranking when those that its conversations share count once (`models.tree`)."""
        return np.array(self._rankings["shared"][:-1], dtype=np.int64)

    @property
    def longest(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Tokens of the longest conversation of every ranking."""
        if not len(self):
            return np.zeros(0, dtype=np.int64)
        return np.maximum.reduceat(self._answers["tokens"], self._rankings["answer"][:-1]).astype(np.int64)


def build_store(
    folder: Path,
    rows: Iterable[RankedPrompt],
    encoder: Encoder,
    settings: RewardSection,
    progress: Progress = SILENT,
    teaches: Callable[[EncodedRanking], bool] | None = None,
) -> TokenStore:
    """The store of these rows; the one in `folder` if it was made from the same rows, tokenizer and lengths.

    Args:
        folder: appears when it is complete; a draft of a killed process is made anew.
        rows: read twice, so they must give the same rows each time; only a few hundred are in memory at once.
        encoder, settings: tokenizer, longest conversation, what to do with longer ones.
        progress: counts rankings.
        teaches: rankings of which it is false (it must follow from `settings.loss`) are left out, counted as
            rankings/uninformative.

    Raises:
        InputError: a conversation is too long and the settings say so.
    """
    key, total = _key(rows, encoder, settings, teaches is not None)
    if (folder / "meta.json").exists() and json.loads((folder / "meta.json").read_text(encoding="utf-8"))["key"] == key:
        return TokenStore(folder)
    draft = folder.with_name(f".{folder.name}.draft")
    for old in (draft, folder):
        shutil.rmtree(old, ignore_errors=True)
    draft.mkdir(parents=True)
    counts: Counter[str] = Counter()
    progress.start("reading rankings as tokens", total)
    rankings = _teaching(encode_rankings(rows, encoder, settings, counts), teaches, counts)
    digest = _write(draft, rankings, counts, progress)
    progress.finish()
    meta = {"key": key, "counts": dict(counts), "digest": digest}
    (draft / "meta.json").write_text(json.dumps(meta, sort_keys=True), encoding="utf-8")
    for path in draft.iterdir():  # a power failure must not leave the name without the content
        with path.open("rb") as file:
            os.fsync(file.fileno())
    draft.rename(folder)
    return TokenStore(folder)


def _teaching(
    rankings: Iterable[EncodedRanking], teaches: Callable[[EncodedRanking], bool] | None, counts: Counter[str]
) -> Iterator[EncodedRanking]:
    for ranking in rankings:
        if teaches is None or teaches(ranking):
            yield ranking
        else:
            counts["rankings/uninformative"] += 1


def _key(rows: Iterable[RankedPrompt], encoder: Encoder, settings: RewardSection, by_loss: bool) -> tuple[str, int]:
    """What a store is made from, and how many rankings that is."""
    digest, count = hashlib.sha256(), 0
    for row in rows:
        count += 1
        known = [row.prompt.id, [[a.answer, a.rank] for a in row.answers], [pair.model_dump() for pair in row.pairs]]
        digest.update(json.dumps(known).encode())
    backend = encoder.tokenizer.backend_tokenizer.to_str()
    made_by = [backend, encoder.tokenizer.chat_template, encoder.max_length, settings.over_long]
    if by_loss:
        made_by.append(settings.loss.model_dump(mode="json"))
    return content_hash([digest.hexdigest(), made_by]), count


def _write(folder: Path, rankings: Iterable[EncodedRanking], counts: Counter[str], progress: Progress) -> str:
    """The files but meta.json; returns the digest."""
    digest = hashlib.sha256()
    start = told = 0
    places = [(0, 0, 0)]
    with (
        _created(folder / "ids.bin") as ids_file,
        _created(folder / "about.bin") as about_file,
        _created(folder / "answers.raw") as answers_file,
    ):
        for ranking in rankings:
            table = np.zeros(len(ranking.answers), _ANSWER)
            for i, (answer, rank) in enumerate(zip(ranking.answers, ranking.ranks, strict=True)):
                table[i] = (start, len(answer.ids), answer.prompt_length, rank)
                ids = np.array(answer.ids, dtype="<i4").tobytes()
                ids_file.write(ids)
                digest.update(ids)
                start += len(answer.ids)
            about = json.dumps({"id": ranking.prompt_id, "pairs": [p.model_dump() for p in ranking.pairs]}).encode()
            about_file.write(about)
            answers_file.write(table.tobytes())
            digest.update(table.tobytes() + about)
            first, byte, _ = places.pop()
            shared = tree_tokens([answer.ids for answer in ranking.answers])
            places += [(first, byte, shared), (first + len(table), byte + len(about), 0)]
            if counts["rankings/read"] - told >= CHUNK:
                progress.advance(counts["rankings/read"] - told, f"{start:,} tokens")
                told = counts["rankings/read"]
    progress.advance(counts["rankings/read"] - told)
    np.save(folder / "rankings.npy", np.array(places, dtype=_RANKING))
    np.save(folder / "answers.npy", np.fromfile(folder / "answers.raw", dtype=_ANSWER))
    (folder / "answers.raw").unlink()
    return digest.hexdigest()


def _created(path: Path) -> BinaryIO:
    return path.open("wb")


def _mapped(path: Path, kind: np.dtype[Any]) -> np.ndarray[Any, np.dtype[Any]]:
    return np.memmap(path, dtype=kind, mode="r") if os.path.getsize(path) else np.zeros(0, dtype=kind)
