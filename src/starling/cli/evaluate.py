"""Commands that measure: the chain's own evaluation, and reward models on benchmarks.

`starling evaluate CONFIG` is the chain's stage, as every stage has its command; `run` may be left out there. The other words name
what is evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from starling.cli.chain import run_to
from starling.cli.common import OPTIONS, AsJson, ConfigFile, Overrides, complain, load, print_json, print_table
from starling.cli.reward import Base, Dtype, check_dtype, load_scorer
from starling.errors import UsageError

if TYPE_CHECKING:
    from starling.evaluate.comparison import Table
    from starling.evaluate.reward_benchmarks import Kept, ScoredSet


class _RunByDefault(TyperGroup):
    """A group whose command `run` is meant where the first word is no command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


evaluate_app = typer.Typer(
    name="evaluate", help="Evaluate a run (`evaluate CONFIG`), models, or reward models on benchmarks.", cls=_RunByDefault,
    **OPTIONS,
)


@evaluate_app.command("run")
def evaluate_run(config: ConfigFile, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Run the chain up to the stage 'evaluate', then the benchmarks of the settings (all of it without a chain, if they train no
    policy); the word `run` may be left out."""
    run_to(load(config, set_), "evaluate", as_json)


@evaluate_app.command("reward")
def evaluate_reward(
    benchmark: Annotated[
        list[str] | None, typer.Option("--benchmark", metavar="NAME", help="Which benchmark; may be repeated. See --list.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", metavar="PATH", help="A reward model's folder, or a run directory; with --data.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="FILE", help="The benchmark's file; NAME=FILE, repeated, where there are several."),
    ] = None,
    scores: Annotated[
        list[str] | None,
        typer.Option("--scores", metavar="FILE", help="Answers with their scores, instead of --model; or NAME=FILE, repeated."),
    ] = None,
    save_scores: Annotated[
        Path | None,
        typer.Option("--save-scores", metavar="FILE", help="Keep the model's scores (.jsonl, .jsonl.gz); a killed run goes on."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Keep results, verdicts for `compare`, page.html; with --model its scores."),
    ] = None,
    gold: Annotated[
        Path | None,
        typer.Option("--gold", metavar="FILE", help="A second model's scores of the same answers: the truth for best-of-n."),
    ] = None,
    base: Base = None,
    dtype: Dtype = "float32",
    list_: Annotated[bool, typer.Option("--list", help="Say which benchmarks there are and where their files are.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a reward model on benchmarks: from the model, or from a file of scores without loading anything heavy."""
    from starling.evaluate import reward_benchmarks as benchmarks
    from starling.evaluate.reward_benchmarks import asking

    if list_:
        _show_list(as_json)
        return
    wanted = asking.understand(benchmark or [], model, data or [], scores or [], save_scores)
    found = [benchmarks.read_scores(benchmarks.benchmark(name), path) for name, path in wanted.scores.items()]
    kept = None
    if wanted.model is not None:
        found, kept = _score(wanted.model, wanted.data, base, dtype, asking.keeping_place(save_scores, out))
    if save_scores is not None:
        benchmarks.write_scores(save_scores, found[0])
    if gold is not None:
        found = [asking.against_gold(found, gold)]
    results = [benchmarks.measure(one) for one in found]
    if out is not None:
        if wanted.model is not None:
            asking.keep_scores(out, found)
        _keep(out, found, results, str(wanted.model or ""))
    if kept is not None:
        kept.drop()
    if as_json:
        print_json(results[0] if len(results) == 1 else {"results": results})
    else:
        _show(results)


@evaluate_app.command("page")
def evaluate_page(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULT...", help="result.json files, or folders and run directories that hold them.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Write page.html and results.json here.")],
) -> None:
    """One page about the results of benchmarks: tables, figures, and the judge's noise and bias."""
    from starling import benchmarks
    from starling.evaluate import comparison

    found = comparison.find(results)
    title = " · ".join(dict.fromkeys(one.run for one in found))
    complain(f"page: {benchmarks.write_files([one.result for one in found], out, title)}")


@evaluate_app.command("compare")
def evaluate_compare(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...", help="Run directories or folders with results of benchmarks; or what `evaluate reward --out` wrote."
        ),
    ],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Write page.html and comparison.json here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare models of several runs on the same benchmarks, or reward models on the same items: adjusted for all pairs at once,
    and never across different judges or protocols."""
    from starling.evaluate import comparison
    from starling.evaluate.reward_benchmarks import folders as kept

    models = [folder for folder in folders if comparison.holds_results(folder)]
    rewards = [folder for folder in folders if (folder / kept.VERDICTS_FILE).is_file()]
    if models and rewards:
        raise UsageError(
            f"{rewards[0]} holds results of a reward model and {models[0]} those of models: they cannot be compared",
            where="the folders of `starling evaluate compare`",
            cure="compare reward models and models separately",
        )
    if rewards or any((folder / kept.RESULTS_FILE).is_file() for folder in folders if not models):
        _compare_rewards(folders, out, as_json)
    else:
        _compare_models(comparison.compare(comparison.find(folders)), out, as_json)


def _compare_models(tables: Sequence[Table], out: Path | None, as_json: bool) -> None:
    from starling.cli.benchmark_tables import print_comparison
    from starling.evaluate import comparison
    from starling.rundir import write_json

    if out is not None:
        from starling.report import evaluation_comparison

        complain(f"page: {evaluation_comparison.write_page(tables, out)}")
        write_json(out / "comparison.json", comparison.as_json(tables))
    if as_json:
        print_json(comparison.as_json(tables))
    else:
        print_comparison(tables)


def _compare_rewards(folders: Sequence[Path], out: Path | None, as_json: bool) -> None:
    from starling.evaluate.reward_benchmarks import compare
    from starling.evaluate.reward_benchmarks import folders as kept
    from starling.rundir import write_json

    results, found = kept.compare_folders(folders)
    if out is not None:
        from starling.report import reward_page

        page = reward_page.write_comparison(results, found, out)
        write_json(out / "comparison.json", found)
        complain(f"page: {page}")
    if as_json:
        print_json(found)
        return
    print_table(compare.standing_rows(found))
    print()
    print_table(compare.pair_rows(found))
    print(
        f"\n{found['method']}: {found['tests']:,} tests, different at adjusted p < {found['alpha']:g}; models that share a "
        "letter are not distinguishable; intervals are those of single comparisons. Shares are of pairs ordered rightly "
        "(RewardBench by its own weights), whatever else a benchmark's accuracy is"
    )


def _keep(out: Path, found: Sequence[ScoredSet], results: Sequence[dict[str, Any]], model: str) -> None:
    """What a comparison needs, RewardBench's own files, and the page."""
    from starling.evaluate.reward_benchmarks import folders as kept
    from starling.report import reward_page

    name = model or next((one.model for one in found if one.model), "") or out.resolve().name
    kept.write(out, kept.of_sets(name, found, results))
    complain(f"page: {reward_page.write_page(results, out, model=name)}")


def _score(
    model: Path, data: dict[str, Path], base: Path | None, dtype: str, place: Path | None
) -> tuple[list[ScoredSet], Kept | None]:
    """The model's scores, and where they are kept meanwhile if there is a place for them."""
    from starling import interact, scoring
    from starling.evaluate import reward_benchmarks as benchmarks
    from starling.progress import RichProgress
    from starling.records import content_hash

    check_dtype(dtype)
    folder = interact.model_folder(model, "reward")
    read = {name: (path, *benchmarks.read_items(benchmarks.benchmark(name), path)) for name, path in data.items()}
    key = content_hash([scoring.folder_key(folder), str(base), dtype], 32)
    kept = None if place is None else benchmarks.Kept(place, key)
    return benchmarks.score_all(lambda: load_scorer(folder, base, dtype), str(folder), read, RichProgress(), kept), kept


# ── what is shown ────────────────────────────────────────────────────────────────────────────────────────────────────


def _show_list(as_json: bool) -> None:
    from starling.evaluate.reward_benchmarks import BENCHMARKS

    listed = [{"benchmark": b.name, "asks": b.asks, "file": b.file, "source": b.source} for b in BENCHMARKS.values()]
    if as_json:
        print_json(listed)
        return
    for row in listed:
        print(f"{row['benchmark']}: {row['asks']}\n  file    {row['file']}\n  source  {row['source']}")


def _show(results: Sequence[dict[str, Any]]) -> None:
    print_table(_headline(result) for result in results)
    for result in results:
        rows = list(_details(result))
        if rows:
            print(f"\n{result['benchmark']}")
            print_table(rows)
        if result["cut"]:
            complain(
                f"{result['benchmark']}: {result['cut']:,} answers stand in conversations too long for the model, cut on the left"
            )
        if result["left_out"]:
            counts = ", ".join(f"{n:,} {reason}" for reason, n in result["left_out"].items())
            complain(f"{result['benchmark']}: not asked about or not usable: {counts}")
        if result["interval"]["few_clusters"]:
            complain(f"{result['benchmark']}: only {result['clusters']} clusters: the intervals are too narrow")


def _headline(result: dict[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in result["baselines"].items() if value is not None}
    best = max(known, key=lambda name: known[name], default="")
    return {
        "benchmark": result["benchmark"],
        "accuracy": _number(result["accuracy"]),
        "95 % interval": _interval(result["ci"]),
        "n": result["n"],
        "clusters": result["clusters"],
        "ties": result.get("ties"),
        "best baseline": f"{_number(known[best])} {best}" if best else "",
    }


def _details(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every named number with an interval that the result holds, in rows."""
    for group in ("parts", "subsets", "honest", "by_type"):
        for name, part in result.get(group, {}).items():
            yield _row(name, part["accuracy"], part["ci"], part["n"])
    for name, key in (("top1", "accuracy"), ("adjacent", "accuracy"), ("kendall_tau", "tau"), ("auroc", "auroc")):
        if result.get(name):
            yield _row(name, result[name][key], result[name]["ci"], result[name]["n"])
    yield from _lengths(result.get("length") or {})
    if over := result.get("over_baseline"):
        yield _row(f"above {over['baseline']}", over["difference"], over["ci"], result["n"])
    for name, value in result["baselines"].items():
        yield _row(f"baseline {name}", value, None, result["n"])
    for name, value in (result.get("top1_baselines") or {}).items():
        yield _row(f"top1 baseline {name}", value, None, result["top1"]["n"])


def _lengths(length: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Taste for length, and the accuracy where the longer, the shorter or neither answer is the better one and by the gap."""
    for name, said in (
        ("model_longer", "prefers the longer answer"),
        ("truth_longer", "  so does the truth"),
        ("accuracy_longer_right", "right where the longer is better"),
        ("accuracy_shorter_right", "right where the shorter is better"),
    ):
        if length.get(name) is not None:
            yield _row(said, length[name], length[f"{name}_ci"], length[f"{name}_n"])
    for gap in length.get("by_gap", ()):
        bounds = f"{gap['from']:g} to {gap['to']:g}" if gap["to"] else f"over {gap['from']:g}"
        yield _row(f"right, lengths {bounds} times", gap["accuracy"], gap["ci"], gap["n"])


def _row(name: str, value: float | None, ci: Sequence[float] | None, n: int) -> dict[str, Any]:
    return {"what": name, "value": _number(value), "95 % interval": _interval(ci), "n": n}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _interval(ci: Sequence[float] | None) -> str:
    return "" if ci is None else f"[{ci[0]:.3f}, {ci[1]:.3f}]"
