"""Every way of asking a judge, side by side: what docs/audit.md reports about the microworld's judge.

    python benchmarks/judge_modes.py --prompts 300 --k 7

No model is trained: the answers are drawn from the world's own drafts, K speakers from always flawed to never, so their true
quality varies and is known. The judge is the microworld's, with the noise and the taste for early positions given here. Dollars
are for the price given, in dollars per million tokens, at four characters a token. On any other judge the same table comes from
`starling audit modes CONFIG` (without the two columns on truth, which only the microworld has).
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from starling.audit import modes, show
from starling.cli.common import print_table
from starling.config import MicroworldJudge, RankingSection
from starling.endpoint import ScriptedEndpoint
from starling.journal import Journal
from starling.judge.judge import Panel
from starling.microworld import judge, world
from starling.progress import RichProgress
from starling.records import Finish, ModelRef, Response, content_hash


def panels(count: int, k: int, seed: int) -> list[Panel]:
    """Prompts of the world, kinds as they come, each with k answers of speakers that are flawed in 100 … 0 % of their replies."""
    every = world.all_prompts(validation=0.1, test=0.1)
    rng = random.Random(seed)
    found = []
    for prompt in rng.sample(every, min(count, len(every))):
        task = world.task(prompt.messages)
        texts = [world.draw_reply(task, rng, flawed_share=1 - speaker / (k - 1)) for speaker in range(k)]
        responses = tuple(
            Response(
                id=content_hash([prompt.id, i, text], 16), prompt_id=prompt.id, model=f"speaker-{i}", text=text,
                finish=Finish.stop, call_id="",
            )
            for i, text in enumerate(texts)
        )  # fmt: skip
        found.append(Panel(prompt, responses))
    return found


def table(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The comparison as JSON."""
    settings = MicroworldJudge(
        type="microworld-judge", noise=arguments.noise, position_bias=arguments.bias, malformed=arguments.malformed
    )
    revision = content_hash(settings.model_dump(mode="json"), 16)
    model = ModelRef(provider=settings.type, name="judge", revision=revision)
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal.sqlite") as journal:
        endpoint = ScriptedEndpoint(model, partial(judge.answer, settings=settings, seed=arguments.seed), journal)
        rows = modes.compare(
            panels(arguments.prompts, arguments.k, arguments.seed), endpoint, RankingSection(judge="judge"), arguments.seed,
            names, price=(arguments.price_prompt, arguments.price_completion), progress=RichProgress(every_s=60),
        )  # fmt: skip
    return modes.as_table(rows, "the microworld's judge")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the ways of asking the microworld's judge.")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--k", type=int, default=7, help="answers per prompt")
    parser.add_argument("--modes", default="", help="comma-separated; all when not given")
    parser.add_argument("--noise", type=float, default=0.1, help="standard deviation of the judge's view of quality")
    parser.add_argument("--bias", type=float, default=0.1, help="quality that the first place seems to add over the last")
    parser.add_argument("--malformed", type=float, default=0.01, help="share of replies that break the grammar")
    parser.add_argument("--price-prompt", type=float, default=2.5)
    parser.add_argument("--price-completion", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = table(arguments, modes.chosen([name for name in arguments.modes.split(",") if name]))
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for section in show.sections(found):
        print(f"{section.title}. {section.about}\n")
        print_table(section.rows)


if __name__ == "__main__":
    main()
