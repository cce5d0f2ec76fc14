"""`starling evaluate CONFIG` with benchmarks and no chain: models and judge behind a server, results, page, resume, staleness."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from starling import benchmarks, cli
from starling.artifacts import open_artifact
from starling.config import load_config
from starling.errors import ConfigError
from starling.evaluate.registry import finished
from starling.journal import Journal
from tests.small_server import Server, completion

Command = Callable[..., tuple[int, str, str]]
GRADES = {"strong": 9, "weak": 4}


@pytest.fixture
def server() -> Iterator[Server]:
    """Two models that name themselves, and a judge that grades by that name; one answer it cannot grade."""
    one = Server()

    async def answer(text: str, times: int) -> web.StreamResponse:
        name = one.payloads[-1]["model"]
        if name != "judge":
            return web.json_response(completion(f"I am {name}; you said: {text.split()[0]}"))
        who = next(model for model in GRADES if f"I am {model}" in text)
        said = "no idea" if who == "weak" and "answer A begins\nI am weak; you said: Tell" in text else f"Score: {GRADES[who]}"
        return web.json_response(completion(f"Good natured: yes\n{said}"))

    one.answer = answer
    one.start()
    yield one
    one.stop()


@pytest.fixture
def config(tmp_path: Path, server: Server) -> Path:
    questions = tmp_path / "question.jsonl"
    rows = [("writing", "Write a poem", "Shorter"), ("stem", "Explain rain", "And snow"), ("humanities", "Tell a tale", "Again")]
    lines = [{"question_id": 81 + n, "category": c, "turns": [a, b]} for n, (c, a, b) in enumerate(rows)]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    models = "".join(
        f'[models.{name}]\ntype = "openai"\nbase_url = "{server.url}"\nname = "{name}"\n'
        + ("price = { prompt = 2, completion = 10 }\n" if name == "judge" else "")
        for name in ("strong", "weak", "judge")
    )
    path = tmp_path / "run.toml"
    path.write_text(
        f'[run]\ndir = "{tmp_path / "run"}"\n{models}[evaluate.mt_bench]\nquestions = "{questions}"\n'
        'models = ["strong", "weak"]\njudge = "judge"\nrepeats = 2\n'
    )
    return path


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = cli.call(list(map(str, arguments)))
        return code, *capsys.readouterr()

    return call


def asked(server: Server) -> int:
    return sum(server.seen.values())


def test_a_benchmark_without_a_chain(config: Path, server: Server, command: Command, tmp_path: Path) -> None:
    code, out, err = command("evaluate", config)
    assert code == 0, err
    assert "mt-bench: 2 models" in err
    strong, weak = finished(tmp_path / "run")[0].models
    assert (strong.model, strong.overall.score, weak.model, weak.overall.score) == ("strong", 9.0, "weak", 4.0)
    assert "strong" in out
    assert "9.00" in out
    # the judge's noise stands under the table
    for said in ("position", "asked again  2 times, spread", "no verdict", "people", "cost", "$"):
        assert said in out
    folder = tmp_path / "run" / "benchmarks"
    page = (folder / "page.html").read_text("utf-8")
    assert "MT-Bench" in page
    assert "strong" in page
    kept = json.loads((folder / "results.json").read_text("utf-8"))["results"]
    assert [r["benchmark"] for r in kept] == ["mt-bench"]
    assert (folder / "mt-bench" / "model_answer").is_dir(), "the official files lie beside the result"
    assert sorted(p.name for p in folder.iterdir()) == ["mt-bench", "page.html", "results.json"], "nothing else is left"


def test_done_is_done_and_repeating_pays_nothing(config: Path, server: Server, command: Command, tmp_path: Path) -> None:
    assert command("evaluate", config)[0] == 0
    paid, before = asked(server), open_artifact(tmp_path / "run" / "benchmarks", "mt-bench").fingerprint
    code, out, err = command("evaluate", config, "--json")
    assert code == 0
    assert "mt-bench: done before" in err
    assert [m["model"] for m in json.loads(out)["benchmarks"][0]["models"]] == ["strong", "weak"]
    assert asked(server) == paid
    # the work is lost, the journal is not
    (tmp_path / "run" / "benchmarks" / "mt-bench" / "manifest.json").unlink()
    assert command("evaluate", config)[0] == 1, "something of Starling's without a manifest is not overwritten"
    shutil.rmtree(tmp_path / "run" / "benchmarks")
    assert command("evaluate", config)[0] == 0
    assert asked(server) == paid
    assert before


def test_changed_settings_make_it_stale_and_cost_only_what_is_new(
    config: Path, server: Server, command: Command, tmp_path: Path
) -> None:
    def state(*overrides: str) -> tuple[str, str]:
        found = benchmarks.states(load_config(config, overrides))[0]
        return found.state, found.why

    assert state() == ("missing", "")
    assert command("evaluate", config)[0] == 0
    assert state() == ("done", "")
    assert state("models.judge.in_flight=3", "models.judge.price.prompt=7") == ("done", ""), "speed and price are no part of it"
    assert state("evaluate.mt_bench.repeats=3") == ("stale", "evaluate.mt_bench.repeats: 2 → 3")
    assert state("models.weak.sampling.top_p=0.5")[1].startswith("models.weak.sampling.top_p")
    assert state("run.seed=4")[0] == "stale"
    assert state("ranking.judge=judge")[0] == "stale"
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_bytes((tmp_path / "question.jsonl").read_bytes())
    assert state(f"evaluate.mt_bench.questions={moved}") == ("done", ""), "where a file lies is no part of it"
    moved.write_text(moved.read_text().replace("rain", "hail"))
    assert state(f"evaluate.mt_bench.questions={moved}")[0] == "stale"

    paid = asked(server)
    assert command("evaluate", config, "--set", "evaluate.mt_bench.repeats=3")[0] == 0
    assert asked(server) > paid
    assert asked(server) - paid <= 2 * 6 + 4, "only the third round, and what it could not read"
    assert benchmarks.states(load_config(config, ("evaluate.mt_bench.repeats=3",)))[0].state == "done"


def test_failures_of_the_judge_are_counted(config: Path, command: Command, tmp_path: Path) -> None:
    assert command("evaluate", config)[0] == 0
    judge = finished(tmp_path / "run")[0].judge
    assert judge is not None
    assert judge.unparsed_share is not None
    assert 0 < judge.unparsed_share < 1
    assert judge.outcomes["unparsed"] > 0
    assert judge.dollars == pytest.approx((judge.prompt_tokens * 2 + judge.completion_tokens * 10) / 1e6)


def test_status_shows_the_benchmark(config: Path, command: Command) -> None:
    code, out, _ = command("status", config, "--json")
    assert code == 0
    assert json.loads(out)[-1]["stage"] == "mt-bench"
    assert json.loads(out)[-1]["state"] == "missing"


def test_compare_and_page_read_what_it_wrote(config: Path, command: Command, tmp_path: Path) -> None:
    assert command("evaluate", config)[0] == 0
    code, out, _ = command("evaluate", "compare", tmp_path / "run", "--out", tmp_path / "cmp", "--json")
    assert code == 0
    assert [m["name"] for m in json.loads(out)["benchmarks"][0]["models"]] == ["strong", "weak"]
    assert (tmp_path / "cmp" / "page.html").exists()
    result = tmp_path / "run" / "benchmarks" / "mt-bench" / "result.json"
    assert command("evaluate", "page", result, "--out", tmp_path / "page")[0] == 0
    assert "strong" in (tmp_path / "page" / "page.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ('evaluate.mt_bench.models=["strong", "weka"]', "did you mean 'weak'"),
        ("evaluate.mt_bench.judge=jugde", "did you mean 'judge'"),
    ],
)
def test_unknown_models_are_settings_errors(config: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(config, (override,))


@pytest.mark.parametrize(
    ("override", "said", "code"),
    [
        ("evaluate.mt_bench.models=[]", "train no policy", 2),
        ('evaluate.mt_bench.models=["policy"]', "train no policy", 2),
        ("evaluate.mt_bench.questions=nowhere.jsonl", "evaluate.mt_bench.questions = nowhere.jsonl", 1),
        ("models.judge.api_key_env=STARLING_NO_SUCH_KEY", "STARLING_NO_SUCH_KEY is not set", 2),
    ],
)
def test_what_is_lacking_is_said_before_anything_is_asked(
    config: Path, server: Server, command: Command, tmp_path: Path, override: str, said: str, code: int
) -> None:
    found, _, err = command("evaluate", config, "--set", override)
    assert found == code
    assert said in err
    assert asked(server) == 0
    assert not (tmp_path / "run").exists()


def test_a_budget_stops_it_and_the_next_start_goes_on(config: Path, server: Server, command: Command, tmp_path: Path) -> None:
    code, _, err = command("evaluate", config, "--set", "run.budget_calls=7")
    assert code == 1
    assert "budget_calls" in err
    assert not (tmp_path / "run" / "benchmarks" / "mt-bench").exists(), "whole or not at all"
    paid = asked(server)
    assert command("evaluate", config)[0] == 0
    with Journal(tmp_path / "run" / "journal.sqlite") as journal:
        assert journal.usage().paid == asked(server)
    assert paid <= 7


def test_a_plan_counts_the_calls_before_they_are_made(config: Path, server: Server, command: Command, tmp_path: Path) -> None:
    code, out, _ = command("plan", config, "--json")
    assert code == 0
    found = json.loads(out)["benchmarks"]
    assert found["unknown"] == {}
    # three questions of two turns for each of two models; the judge grades each answer twice
    assert {(line["model"], line["asks_for"]): line["calls"] for line in found["lines"]} == {
        ("strong", "answers"): 6,
        ("weak", "answers"): 6,
        ("judge", "verdicts"): 24,
    }
    assert found["lines"][2]["dollars"] > 0
    assert found["lines"][0]["dollars"] is None
    assert asked(server) == 0
    assert not (tmp_path / "run").exists(), "a plan writes nothing"
    assert command("evaluate", config)[0] == 0
    code, out, _ = command("plan", config, "--json")
    assert "benchmarks" not in json.loads(out), "what is done is not asked again"


def test_a_plan_says_what_it_cannot_count(config: Path, command: Command) -> None:
    code, out, _ = command("plan", config, "--set", "evaluate.mt_bench.questions=nowhere.jsonl")
    assert code == 0
    assert "! mt-bench: its calls are not counted" in out
    assert "nowhere.jsonl" in out


def test_run_does_benchmarks_where_there_is_no_chain(config: Path, command: Command, tmp_path: Path) -> None:
    code, _, err = command("run", config)
    assert code == 0, err
    assert [r.benchmark for r in finished(tmp_path / "run")] == ["mt-bench"]
