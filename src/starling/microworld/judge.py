"""The microworld's rubric judge: a scripted model behind an endpoint that reads the real judge prompt and answers in its grammar.

It gets nothing but the text a real judge would get, parses rubric, conversation, answers and pairs back out of it, looks up
how good each answer truly is in the microworld, and then errs like a judge: Gaussian noise per answer and call, a bonus for early
positions, and now and then a reply that breaks the grammar. All of it depends on the seed and the prompt's text only.
The bias model (linear in position) is a simplification of the first-place tables in the public ablations of Nectar's judge.

What that means for the modes: shown two answers, the whole bonus goes to the first of them; shown one, there is no position
and no bonus, only noise. Scores and ties see quality in ten equal steps from 0 to 1, so two answers in one step are equal to it.
Within one reply its pair verdicts always follow its ranking; contradictions and circles come from noise between calls.
A reference answer changes nothing: this judge knows the truth. Asked for log-probabilities, it gives those of its own noise: how
often it would write B among all the noise it might have had, which is what an ideal sampler of its replies would say.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import combinations, groupby

from starling.config import MicroworldJudge
from starling.endpoint import Reply, Request
from starling.judge.rubric import Material, Rubric, read_prompt, read_rubric
from starling.judge.verdict import BEST_SCORE, FORMS, Form, Grammar, Pair, Verdict, write_reply
from starling.microworld import world
from starling.records import Finish, content_hash

Uniform = Callable[[], float]


def answer(request: Request, settings: MicroworldJudge, seed: int) -> str:
    """The judge's reply to the judge prompt of any mode.

    Raises:
        ValueError: the request is no judge prompt, or made with another rubric than Starling's.
    """
    return reply(request, settings, seed).text


def reply(request: Request, settings: MicroworldJudge, seed: int) -> Reply:
    """The same with the likeliest first tokens, where the request asks for them.

    Raises:
        ValueError: as `answer`.
    """
    text, rubric, material = _said(request, settings, seed)
    likely: list[tuple[str, float]] = []
    if request.model.sampling.top_logprobs:
        chances = {text[:4]: 1 - _OTHER_TOKENS}
        if FORMS[rubric.grammar].letter and text in ("A", "B"):
            second = chance_of_second(material, settings)
            chances = {"A": (1 - _OTHER_TOKENS) * (1 - second), "B": (1 - _OTHER_TOKENS) * second}
        chances["The"] = _OTHER_TOKENS
        likely = sorted(((token, math.log(p)) for token, p in chances.items() if p > 0), key=lambda one: -one[1])
    return Reply(text, Finish.stop, request.key, first_token=tuple(likely[: request.model.sampling.top_logprobs]))


_OTHER_TOKENS = 0.02
"""What the first token's distribution leaves to everything that is not said."""


def _said(request: Request, settings: MicroworldJudge, seed: int) -> tuple[str, Rubric, Material]:
    material, rubric = read_prompt(request.messages), read_rubric(request.messages)
    uniform = random.Random(int(content_hash([seed, request.messages[-1].content, request.sample], 16), 16)).random
    quality = perceived(material, settings, uniform)
    text = write_reply(_verdict(material, quality, FORMS[rubric.grammar]), rubric.grammar)
    if uniform() < settings.malformed:
        breaks = BREAKS[rubric.grammar]
        text = breaks[int(uniform() * len(breaks))](text)
    return text, rubric, material


def _verdict(material: Material, quality: list[tuple[float, float]], form: Form) -> Verdict:
    """What a judge that sees this quality says in a reply of this form."""
    order = sorted(range(len(quality)), key=lambda i: quality[i], reverse=True)
    scores = [score_of(seen) for seen, _ in quality]
    place = {position: rank for rank, position in enumerate(order)}
    asked = material.pairs or (tuple(combinations(range(len(order)), 2)) if form.pairs else ())
    equal = [(a, b) for a, b in asked if form.ties and scores[a] == scores[b]]
    pairs: tuple[Pair, ...] = tuple((a, b, a if place[a] < place[b] else b) for a, b in asked if (a, b) not in equal)
    sizes = tuple(len(list(group)) for _, group in groupby(order, key=scores.__getitem__))
    tied = sizes if form.ties and len(sizes) < len(order) else ()
    score = scores[0] if form.score else None
    return Verdict(tuple(order), world.good_natured(material.messages), pairs, tuple(equal), tied, score)


def perceived(material: Material, settings: MicroworldJudge, uniform: Uniform) -> list[tuple[float, float]]:
    """For each answer as shown: (gold score + noise + position bonus, a coin that breaks ties)."""
    return [(mean + settings.noise * _normal(uniform), uniform()) for mean in _without_noise(material, settings)]


def chance_of_second(material: Material, settings: MicroworldJudge) -> float:
    """How often it prefers the second of two answers: Φ(difference / (noise · √2)), for the noise on both."""
    first, second = _without_noise(material, settings)
    if not settings.noise:
        return 0.5 if first == second else float(second > first)
    return 0.5 * math.erfc((first - second) / (2 * settings.noise))


def _without_noise(material: Material, settings: MicroworldJudge) -> list[float]:
    """Gold score and position bonus of each answer as shown."""
    last = len(material.answers) - 1
    return [
        world.gold(material.messages, text).score + (settings.position_bias * (last - position) / last if last else 0.0)
        for position, text in enumerate(material.answers)
    ]


def score_of(seen: float) -> int:
    """A perceived quality on the scale of scores: 1 below 0.1, 2 below 0.2, … 10 from 0.9 on."""
    return min(max(math.floor(seen * BEST_SCORE) + 1, 1), BEST_SCORE)


def _normal(uniform: Uniform) -> float:
    """One standard normal draw (Box–Muller), from `random()` alone so that it is the same on every Python."""
    return math.sqrt(-2.0 * math.log(1.0 - uniform())) * math.cos(2.0 * math.pi * uniform())


# ── replies that break the grammar, as real judges break it ──────────────────────────────────────────────────────────


def _short_ranking(reply: str) -> str:
    return reply[: reply.rindex(", ")] + "]"


def _repeated_letter(reply: str) -> str:
    return reply[:-3] + reply[reply.rindex("[") + 2] + reply[-2:]


def _short_tied_ranking(reply: str) -> str:
    return reply[: reply.rindex(" ") - 2]


def _plain_list(reply: str) -> str:
    """A judge that forgets how ties are written."""
    head, _, ranking = reply.rpartition("Ranking: ")
    return f"{head}Ranking: [{ranking.replace(' > ', ', ').replace(' = ', ', ')}]"


def _prose_first(reply: str) -> str:
    return "Here is my evaluation of the answers.\n\n" + reply


def _prose_last(reply: str) -> str:
    return reply + "\nThe first answer is the most complete one."


def _no_last_line(reply: str) -> str:
    return reply[: reply.rindex("\n")]


def _sentence(reply: str) -> str:
    return f"{reply} is better."


def _stranger(reply: str) -> str:
    return "C"


def _tie(reply: str) -> str:
    head, pair, rest = (*reply.split("\n", 2), "")[:3]
    return "\n".join([head, pair[:-1] + "tie", rest])


def _both_win(reply: str) -> str:
    head, pair, rest = (*reply.split("\n", 2), "")[:3]
    return "\n".join([head, pair.partition(":")[0] + ": both", rest])


def _fraction(reply: str) -> str:
    return reply + f"/{BEST_SCORE}"


def _beyond_the_scale(reply: str) -> str:
    return reply[: reply.rindex(" ")] + f" {BEST_SCORE + 1}"


def _refusal(reply: str) -> str:
    return "I'm sorry, but I can't compare these answers."


def _empty(reply: str) -> str:
    return ""


_ANYWHERE = (_prose_first, _prose_last, _no_last_line)
_INSTEAD = (_refusal, _empty)

BREAKS: dict[Grammar, tuple[Callable[[str], str], ...]] = {
    Grammar.starling_1: (_short_ranking, _repeated_letter, *_ANYWHERE, _tie, *_INSTEAD),
    Grammar.starling_1_ties: (_short_tied_ranking, _plain_list, *_ANYWHERE, _both_win, *_INSTEAD),
    Grammar.rank_1: (_short_ranking, _repeated_letter, *_ANYWHERE, *_INSTEAD),
    Grammar.rank_1_ties: (_short_tied_ranking, _plain_list, *_ANYWHERE, *_INSTEAD),
    Grammar.pair_1: (*_ANYWHERE, _tie, _both_win, *_INSTEAD),
    Grammar.pair_1_ties: (*_ANYWHERE, _both_win, *_INSTEAD),
    Grammar.score_1: (*_ANYWHERE, _fraction, _beyond_the_scale, *_INSTEAD),
    Grammar.letter_1: (_prose_first, _prose_last, _sentence, _stranger, *_INSTEAD),
}
"""By grammar, the ways in which a malformed reply is made from a good one; none of them parses."""
