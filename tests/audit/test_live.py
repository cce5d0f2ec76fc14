"""The live audit as a person uses it: the plan before it, the calls once only, tables, JSON and page; and how it fails."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from starling import cli
from starling.artifacts import open_artifact, read_records
from starling.audit.live import gold_of, sample
from starling.audit.tap import tapped
from starling.errors import ArtifactError
from starling.journal import Journal
from starling.metering import Cost, Meter
from starling.microworld import world
from starling.records import Judgment

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("fake_run", Path(__file__).parents[1] / "fake_run.py")
    assert spec is not None
    assert spec.loader is not None
    fake_run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fake_run)
    return Path(fake_run.make(tmp_path_factory.mktemp("runs") / "fake", until="ranking", prompts=40))


@pytest.fixture(scope="module")
def config(run_dir: Path) -> Path:
    path = run_dir.parent / "run.toml"
    path.write_text(
        f'[run]\ndir = "{run_dir}"\nseed = 1\n[microworld]\n[models.judge]\ntype = "microworld-judge"\nposition_bias = 0.1\n'
        '[models.other]\ntype = "microworld-judge"\nnoise = 0.0\n[ranking]\njudge = "judge"\n'
    )
    return path


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = cli.call(["audit", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


def paid(run_dir: Path) -> int:
    with Journal(run_dir / "journal.sqlite") as journal:
        return journal.usage(purpose="audit").attempts


def test_the_sample_is_nested_and_is_what_was_ranked(run_dir: Path) -> None:
    few, many = sample(run_dir, 10, 3), sample(run_dir, 25, 3)
    assert len(few) == 10
    assert {p.prompt.id for p in few} < {p.prompt.id for p in many}
    assert [p.prompt.id for p in sample(run_dir, 25, 4)] != [p.prompt.id for p in many]
    judged = read_records(open_artifact(run_dir, "ranking").path / "judgments.parquet", Judgment)
    shown = {j.prompt_id: set(j.shown) for j in judged}
    assert all({r.id for r in p.responses} == shown[p.prompt.id] for p in many)
    gold = gold_of(few)
    answer = few[0].responses[0]
    truth = world.gold(few[0].prompt.messages, answer.text, answer.finish.value == "stop").score
    assert gold[few[0].prompt.id][answer.id] == truth


def test_without_responses(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        sample(tmp_path, 10, 0)


def test_plan_asks_nothing_and_says_what_is_asked_then(command: Command, config: Path, run_dir: Path) -> None:
    before = paid(run_dir)
    code, out, _ = command("judge", config, "--prompts", "12", "--reference", "other", "--plan", "--json")
    planned = {row["part"]: row for row in json.loads(out)["plan"]}
    assert (code, paid(run_dir)) == (0, before)
    assert {name: row["calls"] for name, row in planned.items()} == {
        "sample": 36, "reference": 12, "canaries": 180, "attacks": 360,
    }  # fmt: skip
    code, out, err = command("judge", config, "--prompts", "12", "--reference", "other", "--json")
    found = json.loads(out)
    assert code == 0
    assert "588 calls" in err
    assert {name: cost["calls"] for name, cost in found["parts"].items()} == {n: row["calls"] for n, row in planned.items()}
    assert all(found["parts"][n]["prompt_tokens"] == row["prompt_tokens"] for n, row in planned.items() if n != "attacks")
    assert all(found["parts"][n]["completion_tokens"] <= row["completion_tokens"] for n, row in planned.items())
    asked = paid(run_dir)
    assert asked > before
    code, again, _ = command("judge", config, "--prompts", "12", "--reference", "other", "--json")
    assert (code, json.loads(again), paid(run_dir)) == (0, found, asked), "every call is paid once"


def test_table_and_page(command: Command, config: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "audit.html"
    code, out, _ = command("judge", config, "--prompts", "12", "--reference", "other", "--html", page)
    assert code == 0
    for words in ("asked again", "another order", "order alone", "of equal true quality", "Canaries", "Attacks", "Cost"):
        assert words in out
    text = page.read_text("utf-8")
    assert text.count("<svg") == 5
    assert text.count("<h2>") == 7
    assert not re.search(r'(?:src|href)="(?!#)', text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)), "ids of several figures do not meet"


def test_votes_of_people_about_world_answers(command: Command, config: Path, run_dir: Path, tmp_path: Path) -> None:
    rows = []
    for panel in sample(run_dir, 20, 0):
        gold = gold_of([panel])[panel.prompt.id]
        a, b = panel.responses[0], panel.responses[1]
        if gold[a.id] != gold[b.id]:
            texts = {"messages": [m.model_dump() for m in panel.prompt.messages], "response_a": a.text, "response_b": b.text}
            rows.append({"id": panel.prompt.id, "winner": "a" if gold[a.id] > gold[b.id] else "b", **texts})
    (tmp_path / "votes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ("--prompts", "20", "--no-canaries", "--no-attacks", "--votes", tmp_path / "votes.jsonl")
    code, out, _ = command("judge", config, *options, "--json")
    found = json.loads(out)["votes"]
    assert (code, found["asked"]["outcomes"].keys() <= {"ranked", "unparsed"}) == (0, True)
    assert len(rows) - found["pairs"] == found["left_out"].get("pairs_without_judge", 0)
    assert found["agreement_decided"] > 0.8
    code, out, _ = command("judge", config, *options)
    assert "judge and a person say the same" in out


def test_saved_votes(command: Command, tmp_path: Path) -> None:
    (tmp_path / "judge.csv").write_text("id,winner\n1,a\n2,b\n")
    (tmp_path / "people.csv").write_text("id,winner\n1,a\n1,b\n2,tie\n")
    code, out, _ = command("votes", tmp_path / "judge.csv", tmp_path / "people.csv", "--html", tmp_path / "v.html")
    assert code == 0
    assert "2 pairs, 3 votes" in out
    assert "They say the same" in (tmp_path / "v.html").read_text("utf-8")
    assert command("votes", tmp_path / "judge.csv", tmp_path / "none.csv")[0] == 1


def test_modes(command: Command, config: Path, tmp_path: Path) -> None:
    code, out, _ = command("modes", config, "--prompts", "12", "--json", "--html", tmp_path / "m.html")
    rows = {row["mode"]: row for row in json.loads(out)["modes"]}
    assert code == 0
    assert len(rows) == 8
    assert [rows[m]["calls"] for m in ("internal_flipped", "rank_only", "pointwise")] == [1, 1, pytest.approx(7, abs=1)]
    assert rows["pairwise_both"]["calls"] == 2 * rows["pairwise"]["calls"] > 30
    assert rows["pairwise"]["prompt_tokens"] > 10 * rows["rank_only"]["prompt_tokens"]
    assert (rows["pointwise"]["position_slope"], rows["rank_only"]["contradiction"]) == (None, None)
    assert all(row["pair_accuracy"] > 0.7 for row in rows.values())
    assert (tmp_path / "m.html").read_text("utf-8").count("<svg") == 4
    code, out, _ = command("modes", config, "--prompts", "12", "--modes", "rank_only")
    assert (code, "rank_only" in out, "pointwise" in out) == (0, True, False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("judge", "--reference", "judge"), "no other model"),
        (("judge", "--reference", "nobody"), "no other model"),
        (("judge", "--pairs", "x.jsonl"), "together with votes"),
        (("modes", "--modes", "telepathy"), "no mode 'telepathy'"),
    ],
)
def test_wrong_use(command: Command, config: Path, arguments: tuple[str, ...], says: str) -> None:
    code, out, err = command(arguments[0], config, *arguments[1:])
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err


def test_a_budget_stops_it_and_the_rest_follows(command: Command, config: Path, run_dir: Path) -> None:
    done = paid(run_dir)
    with Journal(run_dir / "journal.sqlite") as journal:
        spent = journal.usage().paid
    options = ("judge", config, "--prompts", "20", "--set", "run.seed=9", "--no-canaries", "--no-attacks", "--json")
    code, out, err = command(*options, "--set", f"run.budget_calls={spent + 7}")
    assert (code, out, paid(run_dir)) == (1, "", done + 7)
    assert "budget" in err
    assert command(*options)[0] == 0
    assert paid(run_dir) == done + 60


def test_cost() -> None:
    meter = Meter(price=(2.0, 10.0), prompt_tokens=1_000_000, completion_tokens=100_000, keys=["a", "b"])
    cost = meter.cost(lambda keys: 1.5 * len(keys))
    assert (cost.dollars, cost.seconds, cost.calls) == (3.0, 3.0, 2)
    assert cost.per(4)["dollars"] == 0.75
    assert cost.per(0)["calls"] is None
    free = Cost(calls=2, prompt_tokens=1, completion_tokens=1, estimated=2, dollars=None, seconds=None)
    assert free.per(1)["dollars"] is None


def test_tokens_that_the_server_counted_are_not_estimated(tmp_path: Path) -> None:
    from starling.endpoint import Reply, Request, ScriptedEndpoint
    from starling.records import Finish, Message, ModelRef

    model = ModelRef(provider="scripted", name="j")

    def answer(request: Request) -> Any:
        return Reply("x" * 40, Finish.stop, "", "", 17, 5) if request.sample else "x" * 40

    with Journal(tmp_path / "journal.sqlite") as journal:
        tap = tapped(ScriptedEndpoint(model, answer, journal))
        question = Request(model, (Message(role="user", content="y" * 400),), purpose="judge")
        for one in (tap, tap.again(1)):
            assert one.complete_all([question])[0].text == "x" * 40
        assert journal.usage(purpose="audit").answered == 2
    cost = tap.meter.cost()
    assert (cost.calls, cost.prompt_tokens, cost.completion_tokens, cost.estimated) == (2, 101 + 17, 11 + 5, 1)
