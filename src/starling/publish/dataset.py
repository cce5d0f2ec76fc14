"""The dataset's card: what is in it, who made it, how far its judge can be trusted, what was lost on the way and what it cost.

Source: what the card of berkeley-nest/Nectar tells (sources, models with their average rank, first places by position), and what
it leaves open: failures by outcome, the rubric, intervals, cost, licences of everything that went in. Every figure is counted
from the files that are published and from the run's judgments, one by one; a run of any size fits into memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from starling import audit, nectar
from starling.config import ServerModel, journal_name
from starling.journal import Journal
from starling.nectar import Summary
from starling.nectar.summary import CONFIDENCES
from starling.publish.source import Source, origin, terms
from starling.publish.text import front_matter, settings_table, share, table
from starling.rundir import JOURNAL_FILE

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))

COLUMNS = (
    ("prompt", "string", "the conversation up to the reply, `\\n\\nHuman: …\\n\\nAssistant: `"),
    ("answers", "list of {answer, model, rank}", "best first; rank 1.0 … K, tied answers share the rank of the first of them"),
    ("turns", "int64", "user turns"),
    ("num_responses", "int64", "K"),
    ("source", "list of string", "where the prompt was found"),
    ("good_natured", "bool", "the judge's view of the request; null when it gave none"),
)
EXTRA_COLUMNS = (
    (
        "pair_confidence",
        "list of {better, worse, confidence, weight}",
        "pairs of answers by their place in `answers` (0 = best): the share of the judge's verdicts on the pair that agrees with "
        "its order, and how many verdicts that is a share of",
    ),
    (
        "pair_verdicts",
        "list of {first, second, winner}",
        "the judge's own verdicts by place, call by call; `first` is the one it named first, `winner` null when it called them "
        "equal",
    ),
    ("contested", "bool", "the judge's first order left doubt"),
    ("judge_calls", "int64", "calls that were merged into the ranking"),
)
MOST_LINES = 12
"""Lines of a histogram; the rest is one line."""


def dataset_card(source: Source, splits: Sequence[str]) -> str:
    """The dataset's README.md.

    Args:
        source: the run, with its dataset stage.
        splits: the files of the dataset stage, without their suffix.

    Raises:
        InputError: a row of the dataset breaks a law of its schema.
        ArtifactError: the judgments cannot be read.
    """
    folder = source.found["dataset"].path
    found = nectar.summarise(folder / f"{split}.parquet" for split in splits)
    rows = [(split, len(nectar.NectarFile(folder / f"{split}.parquet"))) for split in splits]
    size = next((name for limit, name in SIZES if found.rows < limit), "n>10M")
    head = front_matter(
        {
            "license": source.settings.license,
            "pretty_name": source.settings.dataset.rpartition("/")[2] or "Rankings by an AI judge",
            "annotations_creators": ["machine-generated"],
            "task_categories": ["text-generation", "text-ranking"],
            "size_categories": [size],
            "tags": ["preference", "rlaif", "ranking", "nectar", "starling"],
            "configs": [
                {"config_name": "default", "data_files": [{"split": split, "path": f"data/{split}.parquet"} for split in splits]}
            ],
        }
    )
    parts = [
        "# Rankings by an AI judge",
        f"{found.rows:,} prompts with {_range(sorted(found.answers))} ranked answers each, in the schema of "
        "berkeley-nest/Nectar: a judge ranks all answers to a prompt, from best (rank 1) to worst.",
        '```python\nfrom datasets import load_dataset\n\nrows = load_dataset("path/to/this/folder")\n```',
        "## Splits\n\n" + table(("split", "prompts"), rows),
        "Splits are cut by conversation: all turns of one conversation are on one side.",
        _columns(found),
        _prompts(found),
        _models(found),
        _judge(source),
        _confidence(found),
        _failures(source),
        _cost(source),
        "## Limits\n\nThe ranks are a model's opinion, with its taste for length and form and a bias towards positions; they are "
        "not human preferences. Answers are unfiltered model output and can be wrong or harmful.",
        "## Licences and terms\n\n" + terms(source, sorted(found.models), sorted(found.sources)),
        origin(source, "dataset"),
    ]
    return head + "\n\n".join(part for part in parts if part) + "\n"


def _range(values: Sequence[int]) -> str:
    return "no" if not values else str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _columns(found: Summary) -> str:
    rows = COLUMNS + (EXTRA_COLUMNS if found.judge_calls else ())
    said = (
        "The first six are Nectar's, exactly; whoever reads those by name need not know the others." if found.judge_calls else ""
    )
    return "\n\n".join(part for part in ("## Columns", table(("column", "type", "meaning"), rows), said) if part)


# ── what is in it ────────────────────────────────────────────────────────────────────────────────────────────────────


def _prompts(found: Summary) -> str:
    """Sources, turns, answers per prompt, how many requests are good natured."""
    sources = [(f"`{name}`", n, share(n, found.rows)) for name, n in sorted(found.sources.items(), key=lambda i: (-i[1], i[0]))]
    names = {True: "good natured", False: "not good natured", None: "the judge did not say"}
    views = [(names[view], n, share(n, found.rows)) for view, n in sorted(found.good_natured.items(), key=lambda i: names[i[0]])]
    parts = [
        "## Prompts",
        table(("source", "prompts", "share"), sources) if sources else "Where the prompts come from is not known.",
        "A prompt that several sources have counts for each of them.",
        table(("user turns", "prompts", "share"), _histogram(found.turns, found.rows)),
        table(("answers", "prompts", "share"), _histogram(found.answers, found.rows)),
        table(("request", "prompts", "share"), views),
    ]
    return "\n\n".join(parts)


def _histogram(counts: Mapping[int, int], whole: int) -> list[tuple[str, int, str]]:
    """One line per value; the tail in one."""
    ordered = sorted(counts.items())
    head, tail = (ordered, []) if len(ordered) <= MOST_LINES else (ordered[: MOST_LINES - 1], ordered[MOST_LINES - 1 :])
    lines = [(str(value), n, share(n, whole)) for value, n in head]
    if tail:
        rest = sum(n for _, n in tail)
        lines.append((f"{tail[0][0]} to {tail[-1][0]}", rest, share(rest, whole)))
    return lines


def _models(found: Summary) -> str:
    """Models by mean rank, best first."""
    rows = [
        (
            f"`{name}`",
            one.every.answers,
            _number(one.every.mean),
            _number(one.good_natured.mean),
            _number(one.not_good_natured.mean),
            share(one.every.firsts, one.every.answers),
        )
        for name, one in sorted(found.models.items(), key=lambda i: (i[1].every.mean or 0, i[0]))
    ]
    said = "Mean ranks compare models only as far as they answered the same prompts, and prompts have the same number of answers."
    if found.tied:
        said += f" {found.tied:,} prompts have tied answers; tied ones share the rank of the first of them."
    head = ("model", "answers", "mean rank", "on good natured requests", "on others", "first places")
    return f"## Answers\n\n{table(head, rows)}\n\n{said}"


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


# ── the judge ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _judge(source: Source) -> str:
    """Which judge under which rubric and settings, and what its calls say about it."""
    if source.judge is None:
        return ""
    settings = [
        *settings_table(source.chosen("ranking", "ranking"), "ranking."),
        *settings_table(source.chosen("ranking", "judge").get(source.judge.judge, {}), "judge."),
    ]
    found = audit.measure(audit.of_judgment(judgment, {}) for judgment in source.judgments)
    parts = [
        "## The judge",
        f"Judge `{source.judge.judge}`, rubric `{source.judge.rubric}` (a hash of instructions, prompt template and grammar).",
        table(("setting", "value"), settings) if settings else "",
        _positions(found),
    ]
    return "\n\n".join(part for part in parts if part)


def _positions(found: audit.Audit) -> str:
    """The judge's bias by position and its consistency, over the calls that rank k answers."""
    if not found.n:
        return "None of its calls ended with a ranking, so nothing can be said about its bias."
    told = found.as_json()
    said = (
        f"Bias and consistency over its {found.n:,} calls that rank {found.k} answers. The answers were shown in random order: a "
        f"judge without bias gives each position {1 / found.k:.3f} of the first places and a mean rank of {(found.k + 1) / 2:g}. "
        "Intervals are at 95 %."
    )
    return "\n\n".join(
        [
            said,
            _as_table(audit.position_rows(told)),
            "\n".join(f"- {line}" for line in audit.lines(told)),
            _as_table(audit.share_rows(told)),
        ]
    )


def _as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    return table(list(rows[0]), [list(row.values()) for row in rows]) if rows else ""


def _confidence(found: Summary) -> str:
    """How sure the order of the pairs is; empty where the files do not say."""
    if not found.judge_calls:
        return ""
    pairs = sum(found.confidence.values())
    said = {
        "all for": "all verdicts on the pair agree with its order (confidence 1)",
        "most for": "most do (above ½)",
        "balanced": "they balance (½)",
        "most against": "most do not (below ½)",
        "all against": "none does (0)",
    }
    rows = [(said[kind], found.confidence[kind], share(found.confidence[kind], pairs)) for kind in reversed(CONFIDENCES)]
    calls = [
        ("not known" if n is None else str(n), count)
        for n, count in sorted(found.judge_calls.items(), key=lambda item: (item[0] is None, item[0] or 0))
    ]
    parts = [
        "## Confidence",
        table(("pairs of answers by what the judge said about them", "pairs", "share"), rows) if pairs else "",
        f"{found.contested[True]:,} of {found.rows:,} rankings are contested: the judge's first order left doubt.",
        table(("judge calls behind a ranking", "prompts"), calls),
    ]
    return "\n\n".join(part for part in parts if part)


# ── what was lost, what it cost ──────────────────────────────────────────────────────────────────────────────────────


def _failures(source: Source) -> str:
    """What became of the prompts, of every call, of the answers and of the rankings."""
    lines = []
    for stage, what in (
        ("prompts", "prompts dropped"),
        ("responses", "calls for answers"),
        ("ranking", "ranking by the judge"),
        ("dataset", "rankings left out"),
    ):
        counts = {k: v for k, v in source.found[stage].outcomes.items() if v} if stage in source.found else {}
        lines += [(what, outcome.replace("_", " "), count) for outcome, count in sorted(counts.items())]
    return "## What became of every prompt and call\n\n" + table(("what", "outcome", "count"), lines) if lines else ""


def _cost(source: Source) -> str:
    """Calls, tokens and dollars by model, from the journal. Only answers count: a run that was killed and resumed says the same
    as one that was not."""
    path = source.run_dir / JOURNAL_FILE
    asked = [(label, "respond") for label in source.chosen("responses", "pool")]
    asked += [(label, "judge") for label in source.chosen("ranking", "judge")]
    by_name: dict[tuple[str, str], list[str]] = {}
    for label, purpose in asked:
        if label in source.models:
            by_name.setdefault((journal_name(label, source.models[label]), purpose), []).append(label)
    if not path.is_file() or not by_name:
        return "## Cost\n\nNot known: the journal of the calls is not there."
    rows: list[tuple[str, ...]] = []
    total: list[float] = []
    with Journal(path) as journal:
        for (name, purpose), labels in by_name.items():
            used = journal.usage(model=name, purpose=purpose)
            model = source.models[labels[0]]
            price = model.price if isinstance(model, ServerModel) else None
            counted = used.prompt_tokens + used.completion_tokens > 0
            tokens = [f"{n:,}" if counted else "not reported" for n in (used.prompt_tokens, used.completion_tokens)]
            dollars = "no price set"
            if price is not None and counted:
                total.append(price.dollars(used.prompt_tokens, used.completion_tokens))
                dollars = f"{total[-1]:,.2f}"
            what = "answers" if purpose == "respond" else "judges"
            rows.append((_labels(labels), what, f"{used.answered:,}", *tokens, dollars))
    said = f"In all ${sum(total):,.2f}, by the prices in the settings. " if total else ""
    said += "All calls in the run's journal are counted, those of its evaluation and of earlier settings included."
    head = ("model", "does", "calls answered", "prompt tokens", "reply tokens", "dollars")
    return f"## Cost\n\n{table(head, rows)}\n\n{said}"


def _labels(labels: Iterable[str]) -> str:
    return ", ".join(f"`{label}`" for label in labels)
