"""The microworld's rubric judge: a scripted model behind an endpoint that reads the real judge prompt and answers in its grammar.

It gets nothing but the text a real judge would get, parses conversation, answers and pairs back out of it, looks up how
good each answer truly is in the microworld, and then errs like a judge: Gaussian noise per answer, a bonus for early
positions, and now and then a reply that breaks the grammar. All of it depends on the seed and the prompt's text only.
The bias model (linear in position) is a simplification of the first-place tables in the public ablations of Nectar's judge.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from starling.config import MicroworldJudge
from starling.endpoint import Request
from starling.judge.rubric import Material, read_prompt
from starling.judge.verdict import Pair, Verdict, write_reply
from starling.microworld import world
from starling.records import content_hash

Uniform = Callable[[], float]


def answer(request: Request, settings: MicroworldJudge, seed: int) -> str:
    """The judge's reply to a K-wise or 2-way judge prompt.

    Raises:
        ValueError: the request is no judge prompt.
    """
    material = read_prompt(request.messages)
    uniform = random.Random(int(content_hash([seed, request.messages[-1].content, request.sample], 16), 16)).random
    quality = perceived(material, settings, uniform)
    order = sorted(range(len(quality)), key=lambda i: quality[i], reverse=True)
    place = {position: rank for rank, position in enumerate(order)}
    pairs: tuple[Pair, ...] = tuple((a, b, a if place[a] < place[b] else b) for a, b in material.pairs)
    reply = write_reply(Verdict(tuple(order), world.good_natured(material.messages), pairs))
    if uniform() < settings.malformed:
        return BREAKS[int(uniform() * len(BREAKS))](reply)
    return reply


def perceived(material: Material, settings: MicroworldJudge, uniform: Uniform) -> list[tuple[float, float]]:
    """For each answer as shown: (gold score + noise + position bonus, a coin that breaks ties)."""
    last = len(material.answers) - 1
    found: list[tuple[float, float]] = []
    for position, text in enumerate(material.answers):
        bonus = settings.position_bias * (last - position) / last
        score = world.gold(material.messages, text).score
        found.append((score + settings.noise * _normal(uniform) + bonus, uniform()))
    return found


def _normal(uniform: Uniform) -> float:
    """One standard normal draw (Box–Muller), from `random()` alone so that it is the same on every Python."""
    return math.sqrt(-2.0 * math.log(1.0 - uniform())) * math.cos(2.0 * math.pi * uniform())


# ── replies that break the grammar, as real judges break it ──────────────────────────────────────────────────────────


def _short_ranking(reply: str) -> str:
    return reply[: reply.rindex(", ")] + "]"


def _repeated_letter(reply: str) -> str:
    return reply[:-3] + reply[reply.rindex("[") + 2] + reply[-2:]


def _prose_first(reply: str) -> str:
    return "Here is my evaluation of the answers.\n\n" + reply


def _prose_last(reply: str) -> str:
    return reply + "\nThe first answer is the most complete one."


def _no_ranking(reply: str) -> str:
    return reply[: reply.rindex("\n")]


def _tie(reply: str) -> str:
    head, pair, rest = reply.split("\n", 2)
    return "\n".join([head, pair[:-1] + "tie", rest])


def _refusal(reply: str) -> str:
    return "I'm sorry, but I can't compare these answers."


def _empty(reply: str) -> str:
    return ""


BREAKS: tuple[Callable[[str], str], ...] = (
    _short_ranking,
    _repeated_letter,
    _prose_first,
    _prose_last,
    _no_ranking,
    _tie,
    _refusal,
    _empty,
)
"""The ways in which a malformed reply is made from a good one; none of them parses."""
