"""Commands that measure a judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from starling.cli.common import OPTIONS, AsJson, ConfigFile, Overrides, complain, load, print_json, print_table

if TYPE_CHECKING:
    from starling.audit import Audit
    from starling.audit.session import Wanted
    from starling.config import Config
    from starling.metering import Cost, Latency, Price

audit_app = typer.Typer(name="audit", help="Measure a judge: its bias, consistency, agreement with people, and cost.", **OPTIONS)

HtmlFile = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a self-contained page with figures, too.")]
Prompts = Annotated[int, typer.Option("--prompts", min=1, help="Most prompts of the run that are judged.")]
Planned = Annotated[bool, typer.Option("--plan", help="Say how many calls and tokens it takes, and ask nothing.")]


# ── from files ───────────────────────────────────────────────────────────────────────────────────────────────────────


@audit_app.command("replies")
def audit_replies(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Saved replies: .parquet, .jsonl or .jsonl.gz.")],
    html: HtmlFile = None,
    as_json: AsJson = False,
) -> None:
    """Audit saved replies, each parsed anew: `answers` in the order shown, `rating_text`, optional `ranking_order`."""
    from starling import audit

    _one_pass(audit.measure(audit.from_replies(file)), file.name, html, as_json)


@audit_app.command("run")
def audit_run(
    path: Annotated[Path, typer.Argument(metavar="CONFIG_OR_RUNDIR", help="Settings file, or a run directory.")],
    html: HtmlFile = None,
    as_json: AsJson = False,
) -> None:
    """Audit the judge of a run on its finished ranking; nothing is asked."""
    from starling import audit

    folder = audit.run_folder(path)
    _one_pass(audit.measure(audit.from_run(folder)), folder.resolve().name, html, as_json)


@audit_app.command("votes")
def audit_votes(
    judge_votes: Annotated[Path, typer.Argument(metavar="JUDGE_VOTES", help="The judge's votes: .csv, .json, .jsonl, .parquet.")],
    human_votes: Annotated[Path, typer.Argument(metavar="HUMAN_VOTES", help="People's votes about the same pairs.")],
    html: HtmlFile = None,
    as_json: AsJson = False,
) -> None:
    """Agreement of saved judge votes with people's: an id and a `winner` per row, several people per pair."""
    from starling.audit import votes

    found = {"votes": votes.compare(votes.read_votes(judge_votes), votes.read_votes(human_votes)).as_json()}
    _show(found, f"{judge_votes.name} and {human_votes.name}", html, as_json)


# ── from a live judge ────────────────────────────────────────────────────────────────────────────────────────────────


@audit_app.command("judge")
def audit_judge(
    config: ConfigFile,
    prompts: Prompts = 2000,
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="NAME", help="Another model under [models] that ranks the same sample.")
    ] = None,
    votes: Annotated[
        Path | None, typer.Option("--votes", metavar="FILE", help="People's pairwise votes; the judge compares the same pairs.")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option("--pairs", metavar="FILE", help="Texts of those pairs, when the votes' file has none.")
    ] = None,
    canaries: Annotated[
        bool, typer.Option("--canaries/--no-canaries", help="Answers whose place is known: equal, empty, off topic.")
    ] = True,
    attacks: Annotated[bool, typer.Option("--attacks/--no-attacks", help="Answers that talk to the judge or the parser.")] = True,
    plan: Planned = False,
    set_: Overrides = None,
    html: HtmlFile = None,
    as_json: AsJson = False,
) -> None:
    """Audit the configured judge live on a sample of the run's responses: asked again, in another order, with canaries."""
    settings = load(config, set_)
    wanted = _wanted(settings, prompts, votes, pairs, canaries, attacks)
    with _Asking(settings, reference) as asking:
        if not asking.agreed(asking.session(wanted, dry=True).parts, plan, as_json):
            return
        found = asking.session(wanted).as_json()
        _show(found, asking.name, html, as_json)


@audit_app.command("modes")
def audit_modes(
    config: ConfigFile,
    modes: Annotated[str, typer.Option("--modes", metavar="A,B", help="Ways of asking to compare; all when not given.")] = "",
    prompts: Prompts = 200,
    plan: Planned = False,
    set_: Overrides = None,
    html: HtmlFile = None,
    as_json: AsJson = False,
) -> None:
    """Compare the ways of asking the configured judge: bias, accuracy where the truth is known, stability, calls, tokens."""
    from starling.audit import modes as comparing

    names = comparing.chosen([name.strip() for name in modes.split(",") if name.strip()])
    settings = load(config, set_)
    wanted = _wanted(settings, prompts, None, None, False, False)
    with _Asking(settings, None) as asking:
        parts = {row.mode: row.cost for row in asking.modes(wanted, names, dry=True)}
        if asking.agreed(parts, plan, as_json):
            _show(comparing.as_table(asking.modes(wanted, names), asking.name), asking.name, html, as_json)


def _wanted(settings: Config, prompts: int, votes: Path | None, pairs: Path | None, canaries: bool, attacks: bool) -> Wanted:
    """What the options ask for, read from the run and the files before anything is asked."""
    from starling.audit import hosts, live
    from starling.audit import votes as voting
    from starling.audit.session import Wanted
    from starling.config import MicroworldJudge
    from starling.errors import ConfigError, UsageError

    if settings.ranking is None:
        raise ConfigError("There is no judge", where="[ranking]", cure="add the section [ranking] with the judge's name")
    if pairs is not None and votes is None:
        raise UsageError("Pairs are only read together with votes", where="--pairs", cure="name the votes with --votes")
    people = None if votes is None else voting.read_votes(votes)
    texts = {} if votes is None else voting.read_pairs(pairs or votes)
    voted = [texts[pair] for pair in dict.fromkeys(v.pair for v in people.votes) if pair in texts] if people else []
    in_world = isinstance(settings.models[settings.ranking.judge], MicroworldJudge)
    planted = hosts.of_world() if in_world else hosts.HOSTS
    return Wanted(
        panels=live.sample(settings.run.dir, prompts, settings.run.seed),
        pairs=voted[:prompts],
        people=people,
        canaries=planted if canaries else (),
        attacks=planted if attacks else (),
    )


class _Asking:
    """The run's judge for the time of a command: locks the run directory, opens its journal, knows prices."""

    def __init__(self, settings: Config, reference: str | None) -> None:
        from contextlib import ExitStack

        from starling import plan
        from starling.errors import UsageError

        assert settings.ranking is not None
        self._settings, self._ranking, self._reference = settings, settings.ranking, reference
        if reference is not None and (reference not in settings.models or reference == settings.ranking.judge):
            others = [name for name in settings.models if name != settings.ranking.judge]
            raise UsageError(
                f"'{reference}' is no other model than the judge", where="--reference", cure=f"use one of {', '.join(others)}"
            )
        plan.check(settings, ["ranking"])
        self.name = settings.ranking.judge
        self._open = ExitStack()

    def __enter__(self) -> _Asking:
        from starling.progress import RichProgress
        from starling.rundir import locked
        from starling.serving import Endpoints

        self._open.enter_context(locked(self._settings.run.dir))
        endpoints = self._open.enter_context(Endpoints(self._settings))
        self._judge = endpoints.get(self.name)
        self._other = None if self._reference is None else endpoints.get(self._reference)
        self._progress = RichProgress()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.finish()
        self._open.__exit__(None, None, None)

    def session(self, wanted: Wanted, *, dry: bool = False) -> Any:
        from starling.audit import session
        from starling.progress import SILENT

        return session.run(
            wanted, self._judge, self._ranking, self._settings.run.seed, reference=self._other, price=self._price(self.name),
            reference_price=self._price(self._reference), latency=None if dry else self._latency, dry=dry,
            resamples=1 if dry else 1000, progress=SILENT if dry else self._progress,
        )  # fmt: skip

    def modes(self, wanted: Wanted, names: Sequence[str], *, dry: bool = False) -> Any:
        from starling.audit import modes
        from starling.progress import SILENT

        return modes.compare(
            wanted.panels, self._judge, self._ranking, self._settings.run.seed, names, price=self._price(self.name),
            latency=None if dry else self._latency, dry=dry, resamples=1 if dry else 1000,
            progress=SILENT if dry else self._progress,
        )  # fmt: skip

    def agreed(self, parts: dict[str, Cost], plan: bool, as_json: bool) -> bool:
        """Say what is about to be asked; whether to go on."""
        rows = [
            {
                "part": name, "calls": cost.calls, "prompt_tokens": cost.prompt_tokens,
                "completion_tokens": cost.completion_tokens, "dollars": cost.dollars,
            }
            for name, cost in parts.items()
        ]  # fmt: skip
        if plan:
            if as_json:
                print_json({"plan": rows})
            else:
                print_table([{**row, "dollars": None if row["dollars"] is None else f"{row['dollars']:,.2f}"} for row in rows])
            return False
        calls, asked, said = (sum(getattr(c, n) for c in parts.values()) for n in ("calls", "prompt_tokens", "completion_tokens"))
        complain(
            f"audit of {self.name}: {calls:,} calls, about {asked:,} prompt tokens and at most {said:,} reply tokens; "
            f"what {self._settings.run.dir}/journal.sqlite has answered is not asked again"
        )
        return True

    def _price(self, name: str | None) -> Price | None:
        """Dollars for a million tokens of prompts and of replies, for models that have a price."""
        from starling.config import ServerModel

        model = None if name is None else self._settings.models[name]
        price = model.price if isinstance(model, ServerModel) else None
        return None if price is None else (price.prompt, price.completion)

    @property
    def _latency(self) -> Latency:
        """The reference's calls stand in the same journal."""
        return self._judge.seconds


# ── showing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _one_pass(found: Audit, name: str, html: Path | None, as_json: bool) -> None:
    _show(found.as_json(), name, html, as_json)


def _show(found: dict[str, Any], name: str, html: Path | None, as_json: bool) -> None:
    """An audit's JSON form as a page, as JSON, or as tables."""
    from starling.audit import SHARES, show

    if html is not None:
        from starling.report import audit_page

        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(audit_page.render(found, SHARES, show.sections(found), name), encoding="utf-8")
    if as_json:
        print_json(found)
        return
    if "first_share" in found:
        for rows in (show.position_rows(found), show.share_rows(found)):
            if rows:
                print_table(rows)
                print()
        for line in show.lines(found):
            print(line)
    for number, section in enumerate(show.sections(found)):
        print("\n" * (number > 0 or "first_share" in found) + f"{section.title}. {section.about}\n")
        print_table(section.rows)
