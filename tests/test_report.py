"""The report: self-contained, deterministic, honest about what is missing, and safe against what models write."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from starling import report
from starling.artifacts import open_artifact, read_records, write_records
from starling.errors import ArtifactError
from starling.evaluate.rows import REPLIES_FILE, EvaluatedPrompt
from starling.report import page
from starling.report.gather import gather


def _load_fake_run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fake_run", Path(__file__).with_name("fake_run.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fake_run = _load_fake_run()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(fake_run.make(tmp_path_factory.mktemp("fake"), prompts=40, held_out=70))


@pytest.fixture(scope="module")
def html(run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return report.write(run, tmp_path_factory.mktemp("out")).read_text(encoding="utf-8")


class _Checker(HTMLParser):
    """Collects ids, links and unbalanced tags."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.open: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [v or "" for k, v in attrs if k == "id"]
        self.targets += [v or "" for k, v in attrs if k in ("href", "src", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_it_needs_nothing_from_outside_and_is_well_formed(html: str) -> None:
    checker = _Checker()
    checker.feed(html)
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    assert all(target.startswith("#") and target[1:] in checker.ids for target in checker.targets)
    assert not checker.tags & {"script", "link", "img", "iframe"}
    assert "url(http" not in html
    assert "@import" not in html


def test_it_names_the_loss(html: str) -> None:
    assert 'loss <span class="mono">bradley_terry</span>' in html


def test_every_part_is_there(html: str) -> None:
    for part in ("evaluation", "judge", "reward", "policy", "conversations", "lineage", "settings"):
        assert f'<section id="{part}">' in html
    assert html.count("<svg") == 1 + 2 + 3 + (3 + 1 + 6)
    assert html.count('class="exchange"') == 12
    for placeholder in ("#010101", "#020202", "#030303", "#040404", "#050505", "#060606", "DejaVu Sans'"):
        assert placeholder not in html.split("</style>", 1)[1]


def test_equal_runs_give_equal_bytes_wherever_they_lie(run: Path, html: str, tmp_path: Path) -> None:
    other = fake_run.make(tmp_path / "elsewhere", prompts=40, held_out=70)
    assert report.write(other, tmp_path / "out").read_text(encoding="utf-8") == html
    assert str(run) not in html


def test_numbers_on_the_page_are_those_of_the_evaluation(run: Path, html: str) -> None:
    metrics = open_artifact(run, "evaluate").metrics
    assert page.number(metrics["gold"]["tuned"]["mean"]) in html
    assert page.signed(metrics["gold"]["difference"]["greedy"]["mean"]) in html
    assert page.percent(metrics["reward"]["pair_accuracy"]) in html
    assert f"{metrics['head_to_head']['wins']} won" in html


def test_what_a_model_wrote_stays_text(tmp_path: Path) -> None:
    run = fake_run.make(tmp_path, prompts=20, held_out=40)
    attack = "</p><script>alert(1)</script>{{ 7 * 7 }}<img src=x onerror=alert(2)>"
    folder = open_artifact(run, "evaluate").path
    rows = read_records(folder / REPLIES_FILE, EvaluatedPrompt)
    rows = [
        r.model_copy(update={"tuned_sampled": tuple(s.model_copy(update={"text": attack}) for s in r.tuned_sampled)})
        for r in rows
    ]

    def refill(draft: Any) -> None:
        write_records(draft.path / REPLIES_FILE, rows, EvaluatedPrompt)

    fake_run.stage(run, "evaluate", refill, "policy")
    text = report.write(run, tmp_path / "out").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "{{ 7 * 7 }}" in text


@pytest.mark.parametrize(
    ("until", "absent"), [("prompts", "judge"), ("ranking", "reward"), ("reward", "policy"), ("policy", "evaluation")]
)
def test_partial_runs_say_what_is_missing(tmp_path: Path, until: str, absent: str) -> None:
    run = fake_run.make(tmp_path, until=until, prompts=20, held_out=40)
    text = report.write(run, tmp_path / "out").read_text(encoding="utf-8")
    assert f'<section id="{absent}">' not in text
    assert "not made yet" in text
    assert "A partial run" in text
    _Checker().feed(text)


def test_a_damaged_stage_is_named_and_the_rest_shown(tmp_path: Path) -> None:
    run = fake_run.make(tmp_path, prompts=20, held_out=40)
    (run / "policy" / "log.jsonl").write_text("short")
    text = report.write(run, tmp_path / "out").read_text(encoding="utf-8")
    assert "altered or is half-written" in text
    assert '<section id="judge">' in text


def test_an_outdated_input_is_flagged(tmp_path: Path) -> None:
    run = fake_run.make(tmp_path, prompts=20, held_out=40)
    fake_run.stage(run, "reward", lambda draft: setattr(draft, "rows", 5), "dataset")
    assert gather(run).stages[-1].outdated == ("reward",)
    assert "made again since: reward" in report.write(run, tmp_path / "out").read_text(encoding="utf-8")


def test_nothing_to_report_on(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no stage has finished"):
        report.write(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_conversations_are_chosen_by_rule(run: Path) -> None:
    found = gather(run).conversations
    assert found is not None
    rows = read_records(open_artifact(run, "evaluate").path / REPLIES_FILE, EvaluatedPrompt)
    gains = [(r.tuned_sampled[0].gold or 0.0) - (r.base_sampled[0].gold or 0.0) for r in rows]
    assert (found.better, found.same, found.worse) == (
        sum(g > 0 for g in gains), sum(g == 0 for g in gains), sum(g < 0 for g in gains)
    )  # fmt: skip
    groups = dict(found.groups)
    assert max(gains) == groups["Biggest gains"][0].gain
    assert min(gains) == groups["Biggest losses"][0].gain
    assert len({e.prompt.kind for e in groups["Biggest gains"]}) == 4


@pytest.mark.parametrize(
    ("sampled", "greedy", "says"),
    [
        ([0.1, 0.2], [0.1, 0.2], "The tuned policy is better"),
        ([0.1, 0.2], [-0.2, -0.1], "The tuned policy is better when sampled and worse when greedy"),
        ([0.1, 0.2], [-0.1, 0.1], "The tuned policy is better when sampled and unchanged when greedy"),
        ([-0.1, 0.2], [-0.1, 0.1], "No clear change"),
        ([-0.2, -0.1], [-0.2, -0.1], "The tuned policy is worse"),
    ],
)
def test_the_title_never_says_more_than_the_intervals(run: Path, sampled: list[float], greedy: list[float], says: str) -> None:
    found = gather(run)
    gold = found.evaluation["gold"] | {
        "difference": {"sampled": {"mean": 0.0, "ci": sampled}, "greedy": {"mean": 0.0, "ci": greedy}}
    }
    changed = type(found)(**{**found.__dict__, "evaluation": found.evaluation | {"gold": gold}})
    assert page.title(changed) == says


def test_settings_come_back_from_their_toml() -> None:
    tree: dict[str, Any] = {
        "run": {"seed": 1},
        "prompts": {"sources": [{"type": "file", "path": 'a "b"\\c'}], "train": None},
        "m": {"gpt-4.1": {"s": [0.9, 1e-7], "on": True}},
    }
    again = tomllib.loads(page.toml(tree))
    assert again == tree | {"prompts": {"sources": tree["prompts"]["sources"]}}
    saved = {k: v for k, v in fake_run.SETTINGS.items() if k != "run"}
    assert tomllib.loads(page.toml(saved)) == json.loads(json.dumps(saved))


def test_smoothing_by_hand() -> None:
    from starling.report.figures import smoothed

    assert smoothed([1.0, 3.0, 5.0], 2) == [1.0, 2.0, 4.0]


def test_it_is_written_without_torch() -> None:
    heavy = "('torch', 'transformers', 'matplotlib')"
    code = f"import sys, starling.report.page; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_ids_are_prefixed_by_figure(html: str) -> None:
    assert re.search(r'id="kinds-figure_1"', html)
