"""Cards and folders: front matter the hub accepts, numbers of the run, folders that the ecosystem opens."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from starling import nectar, publish
from starling.artifacts import new_artifact, open_artifact, write_records
from starling.config import OpenAIModel, Price, PublishSection
from starling.errors import ArtifactError
from starling.journal import Answer, Intent, Journal, StoredReply, Tokens
from starling.publish import text
from starling.records import Judgment, Message, Outcome, Prompt, RankedAnswer, RankedPair, RankedPrompt


def _load_fake_run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fake_run", Path(__file__).with_name("fake_run.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fake_run = _load_fake_run()
SETTINGS = PublishSection(judge_terms="A program: none.", dataset="me/rankings", policy_base="openchat/openchat_3.5")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(fake_run.make(tmp_path_factory.mktemp("fake"), prompts=60, held_out=40))


@pytest.fixture(scope="module")
def out(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    publish.write(run, folder, SETTINGS)
    return folder


@pytest.mark.parametrize("name", ["dataset", "reward-model", "policy"])
def test_front_matter_is_what_the_hub_reads(out: Path, name: str) -> None:
    cards = pytest.importorskip("huggingface_hub")
    kind = cards.DatasetCard if name == "dataset" else cards.ModelCard
    data = kind.load(out / name / "README.md").data.to_dict()
    assert data["license"] == "apache-2.0"
    assert "starling" in data["tags"]
    assert ("bradley-terry" in data["tags"]) == (name == "reward-model")
    if name == "dataset":
        assert data["size_categories"] == ["n<1K"]
        assert {f["split"] for f in data["configs"][0]["data_files"]} == {"train", "validation"}
    else:
        assert data["library_name"] == "transformers"
        assert data["datasets"] == ["me/rankings"]
    assert data.get("base_model") == ("openchat/openchat_3.5" if name == "policy" else None)


def test_results_are_machine_readable_and_those_of_the_run(run: Path, out: Path) -> None:
    cards = pytest.importorskip("huggingface_hub")
    measured = open_artifact(run, "evaluate").metrics
    reward = cards.ModelCard.load(out / "reward-model" / "README.md").data.eval_results
    policy = cards.ModelCard.load(out / "policy" / "README.md").data.eval_results
    assert [r.metric_value for r in reward] == [round(measured["reward"]["pair_accuracy"], 4)]
    assert [r.metric_value for r in policy] == [round(measured["gold"]["tuned"]["mean"], 4)]


def test_cards_carry_counts_terms_and_lineage(run: Path, out: Path) -> None:
    text = (out / "dataset" / "README.md").read_text(encoding="utf-8")
    artifact = open_artifact(run, "dataset")
    assert f"{artifact.rows} prompts with " in text
    assert artifact.fingerprint in text
    assert "rubric `" in text
    assert "A program: none." in text
    for outcome, count in open_artifact(run, "ranking").outcomes.items():
        assert f"| ranking by the judge | {outcome.replace('_', ' ')} | {count} |" in text
    for name in fake_run.FLAWED:
        assert f"| `{name}` |" in text
    assert "| rankings to learn from | 700 |" in (out / "reward-model" / "README.md").read_text(encoding="utf-8")


def test_same_run_same_bytes_and_nothing_of_the_manifest(run: Path, out: Path, tmp_path: Path) -> None:
    publish.write(run, tmp_path, SETTINGS)
    files = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file())
    assert all((tmp_path / f).read_bytes() == (out / f).read_bytes() for f in files)
    assert not any(f.name == "manifest.json" for f in files)
    assert str(run) not in (out / "dataset" / "README.md").read_text(encoding="utf-8")


def test_the_dataset_folder_opens_with_datasets(out: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset(str(out / "dataset"), cache_dir=str(tmp_path))
    assert set(found) == {"train", "validation"}
    row = found["train"][0]
    assert [a["rank"] for a in row["answers"]] == [float(i) for i in range(1, row["num_responses"] + 1)]
    assert row["prompt"].endswith("\n\nAssistant: ")


def test_model_folders_open_with_transformers(backbone: Any, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

    from starling.models.load import load_backbone_as_scalar, load_tokenizer, save_folder
    from starling.models.scorer import score_conversations
    from starling.records import Message

    run, base = tmp_path / "run", backbone("llama")
    tokenizer = load_tokenizer(base)
    head = load_backbone_as_scalar(base, 0, tokenizer)

    def fill_reward(draft: Any) -> None:
        save_folder(draft.path, head, tokenizer)
        save_folder(draft.path / "guard", head, tokenizer)

    fake_run.stage(run, "reward", fill_reward)
    fake_run.stage(run, "policy", lambda draft: shutil.copytree(base, draft.path, dirs_exist_ok=True), "reward")
    publish.write(run, tmp_path / "out", PublishSection())
    assert not (tmp_path / "out" / "dataset").exists()
    scorer, policy = tmp_path / "out" / "reward-model", tmp_path / "out" / "policy"
    assert not (scorer / "guard").exists(), "the guard model is a tool of the run"
    assert AutoModelForSequenceClassification.from_pretrained(scorer).config.num_labels == 1
    ids = AutoTokenizer.from_pretrained(policy)("hello", return_tensors="pt")["input_ids"]
    ours = AutoModelForCausalLM.from_pretrained(policy)(ids).logits
    assert torch.equal(ours, AutoModelForCausalLM.from_pretrained(base)(ids).logits)
    messages = (Message(role="user", content="name three animals"),)
    text = "<|user|>name three animals<|end|>\n<|assistant|>a cat<|end|>\n"
    theirs = pipeline("text-classification", str(scorer), function_to_apply="none")(text)[0]["score"]
    assert theirs == pytest.approx(score_conversations(scorer, [(messages, "a cat", True)])[0], abs=1e-5)


def test_without_an_evaluation_the_card_says_so(tmp_path: Path) -> None:
    run = fake_run.make(tmp_path / "run", until="policy", prompts=20)
    publish.write(run, tmp_path / "out", PublishSection())
    assert "Not evaluated." in (tmp_path / "out" / "policy" / "README.md").read_text(encoding="utf-8")
    assert "not measured" in (tmp_path / "out" / "reward-model" / "README.md").read_text(encoding="utf-8")
    assert "model-index" not in (tmp_path / "out" / "policy" / "README.md").read_text(encoding="utf-8")


def test_nothing_to_publish(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nothing to publish"):
        publish.write(tmp_path, tmp_path / "out", PublishSection())


def test_table_cells_cannot_break_the_table() -> None:
    assert text.table(("a", "b"), [("x|y", "1\n2")]) == "| a | b |\n| --- | --- |\n| x\\|y | 1 2 |"


# ── the dataset's card, by hand ──────────────────────────────────────────────────────────────────────────────────────


def ranked(models: str, ranks: tuple[float, ...], good: bool | None, *sources: str, turns: int = 1, **more: Any) -> RankedPrompt:
    said = [Message(role="user", content=f"{models}{ranks}{turns}"), Message(role="assistant", content="b")] * turns
    answers = tuple(RankedAnswer(answer="x", model=m, rank=r) for m, r in zip(models, ranks, strict=True))
    prompt = Prompt.make(tuple(said[:-1]), sources)
    return RankedPrompt.model_validate({"prompt": prompt, "answers": answers, "good_natured": good, **more})


def pair(confidence: float) -> RankedPair:
    return RankedPair(better=0, worse=1, confidence=confidence, weight=2)


ROWS = [
    ranked("ab", (1, 2), True, "web|1", contested=False, judge_calls=1, pairs=(pair(1),)),
    ranked("ba", (1, 2), True, "web|1", "hh", contested=True, judge_calls=2, pairs=(pair(0.5),)),
    ranked("ab", (1, 2), False, "hh", contested=False, judge_calls=1, pairs=(pair(1),)),
    ranked("ab", (1, 1), None, "hh", turns=14, contested=False, judge_calls=1, pairs=(pair(1),)),
]
POOL = {"a": {"type": "openai", "name": "big"}, "b": {"type": "openai", "name": "small"}}
MODELS = {
    "a": OpenAIModel(type="openai", base_url="http://x/v1", name="big", price=Price(prompt=2, completion=10)),
    "b": OpenAIModel(type="openai", base_url="http://x/v1", name="small"),
    "j": OpenAIModel(type="openai", base_url="http://x/v1", name="judge", price=Price(prompt=10, completion=30)),
}


def judgment(prompt: str, shown: str, best_first: str | None) -> Judgment:
    return Judgment(
        prompt_id=prompt, rubric="rubric-hash", judge="j", shown=tuple(shown), pair_order=(), good_natured=True, pair_verdicts=(),
        outcome=Outcome.ranked if best_first else Outcome.refused, ranking=tuple(best_first) if best_first else None, call_id="c",
    )  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A run of four prompts, as an API would have made it; the first position wins three of four."""
    run = tmp_path / "run"
    judged = [judgment("1", "ab", "ab"), judgment("2", "ba", "ba"), judgment("3", "ab", "ab"), judgment("4", "ba", "ab")]
    stages: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
        "prompts": ({}, {"duplicate": 1200, "empty": 0}),
        "responses": ({"pool": POOL}, {"stop": 7, "length": 1}),
        "ranking": ({"ranking": {"mode": "both"}, "judge": {"j": {"type": "openai", "name": "judge"}}}, {"ranked": 4}),
        "dataset": ({}, {"refused": 1}),
    }
    for name, (config, outcomes) in stages.items():
        with new_artifact(run, name, key="k", inputs={}, config=config) as draft:
            draft.outcomes = outcomes
            if name == "ranking":
                write_records(draft.path / "judgments.parquet", [*judged, judgment("5", "ab", None)], Judgment)
            if name == "dataset":
                nectar.write_nectar(draft.path / "train.parquet", ROWS, extra=True)
                draft.rows = 4
    with Journal(run / "journal.sqlite") as journal:
        for name, purpose, count, prompt, completion in (
            ("big", "respond", 4, 1000, 500), ("small", "respond", 4, 100, 50), ("judge", "judge", 5, 20_000, 1000),
        ):  # fmt: skip
            for number in range(count):
                key = f"{name}-{number}"
                request = {"model": {"name": name}, "purpose": purpose}
                journal.write(
                    [
                        Intent(key=key, attempt=1, request=request),
                        Answer(key=key, attempt=1, reply=StoredReply(status=200, body="{}")),
                        Tokens(key=key, attempt=1, prompt=prompt, completion=completion),
                    ]
                )
    return run


def card(run: Path, settings: PublishSection = SETTINGS, models: Any = None) -> str:
    out = run.parent / "published"
    shutil.rmtree(out, ignore_errors=True)
    publish.write(run, out, settings, models)
    return (out / "dataset" / "README.md").read_text(encoding="utf-8")


def test_what_is_in_the_dataset(small: Path) -> None:
    text = card(small)
    for line in (
        "4 prompts with 2 ranked answers each",
        "| train | 4 |",
        "| `hh` | 3 | 75.0 % |\n| `web\\|1` | 2 | 50.0 % |",
        "| 1 | 3 | 75.0 % |\n| 14 | 1 | 25.0 % |",
        "| good natured | 2 | 50.0 % |\n| not good natured | 1 | 25.0 % |\n| the judge did not say | 1 | 25.0 % |",
        # a is first in rows 1, 3 and (tied) 4; of the good natured ones it is first and second
        "| `a` | 4 | 1.25 | 1.50 | 1.00 | 75.0 % |\n| `b` | 4 | 1.50 | 1.50 | 2.00 | 50.0 % |",
        "1 prompts have tied answers",
        "| all verdicts on the pair agree with its order (confidence 1) | 3 | 75.0 % |",
        "| they balance (½) | 1 | 25.0 % |",
        "1 of 4 rankings are contested",
        "| 1 | 3 |\n| 2 | 1 |",
        "| prompts dropped | duplicate | 1,200 |",
        "| calls for answers | length | 1 |",
        "| rankings left out | refused | 1 |",
    ):
        assert line in text, line
    assert "| prompts dropped | empty" not in text


def test_the_judge_and_its_bias(small: Path) -> None:
    text = card(small)
    assert "Judge `j`, rubric `rubric-hash`" in text
    assert '| `ranking.mode` | `"both"` |' in text
    assert '| `judge.name` | `"judge"` |' in text
    assert "over its 4 calls that rank 2 answers" in text
    assert "gives each position 0.500 of the first places and a mean rank of 1.5" in text
    assert "| A | 0.750 | 0.301 to 0.954 | 1.25 |" in text, "Wilson's interval of 3 of 4"
    assert "5 calls: ranked 4, refused 1" in text


def test_the_cost_is_that_of_the_journal(small: Path) -> None:
    """big: 4 x (1000 x 2 + 500 x 10) / 1e6 = 0.028; judge: 5 x (20,000 x 10 + 1000 x 30) / 1e6 = 1.15."""
    text = card(small, models=MODELS)
    assert "| `a` | answers | 4 | 4,000 | 2,000 | 0.03 |" in text
    assert "| `b` | answers | 4 | 400 | 200 | no price set |" in text
    assert "| `j` | judges | 5 | 100,000 | 5,000 | 1.15 |" in text
    assert "In all $1.18" in text
    assert "Not known: the journal of the calls is not there." in card(small)
    (small / "journal.sqlite").unlink()
    assert "Not known: the journal of the calls is not there." in card(small, models=MODELS)


def test_repeated_attempts_of_a_killed_run_change_no_byte(small: Path) -> None:
    before = card(small, models=MODELS)
    with Journal(small / "journal.sqlite") as journal:
        journal.write([Intent(key="big-0", attempt=2, request={"model": {"name": "big"}, "purpose": "respond"})])
    assert card(small, models=MODELS) == before


def test_licences_that_nobody_stated_are_said_to_be_missing(small: Path) -> None:
    text = card(small, PublishSection(license="cc-by-4.0"))
    assert "as its publisher states it: cc-by-4.0." in text
    assert "**Not stated by the publisher**, in part or at all: judge `j`, model that answered `a`, model" in text
    assert text.count("| **not stated** | **not stated** |") == 5
    half = PublishSection(models={"a": {"license": "llama3.1"}})
    assert "| model that answered | `a` | llama3.1 | **not stated** |" in card(small, half)
    stated = {"license": "mit", "terms": "none"}
    whole = PublishSection(
        judge_license="proprietary", judge_terms="No competing models.", models={"a": stated, "b": stated},
        sources={"hh": stated, "web|1": stated},
    )  # fmt: skip
    text = card(small, whole)
    assert "**Not stated" not in text
    assert "| judge | `j` | proprietary | No competing models. |" in text
    assert "| prompt source | `web\\|1` | mit | none |" in text


def test_what_starling_made_itself_needs_no_statement(run: Path, out: Path) -> None:
    text = (out / "dataset" / "README.md").read_text(encoding="utf-8")
    assert "| prompt source | `microworld/sum` | apache-2.0 | none: part of Starling, made offline |" in text
    assert "**Not stated" not in text


def test_every_table_of_the_card_is_one(small: Path) -> None:
    """As many columns in each row as in its head, whatever names the settings chose."""
    markdown = pytest.importorskip("markdown_it")
    tokens = markdown.MarkdownIt().enable("table").parse(card(small, models=MODELS).split("---\n", 2)[2])
    rows: list[int] = []
    tables = 0
    for token in tokens:
        if token.type == "table_open":
            rows, tables = [], tables + 1
        elif token.type == "tr_open":
            rows.append(0)
        elif token.type in ("th_open", "td_open"):
            rows[-1] += 1
        elif token.type == "table_close":
            assert len(rows) > 1
            assert len(set(rows)) == 1
    assert tables == 15
    assert not [t.content for t in tokens if t.type == "inline" and "| ---" in t.content]


def test_a_long_tail_of_turns_is_one_line(tmp_path: Path) -> None:
    rows = [ranked("ab", (1, 2), True, "s", turns=n) for n in range(1, 21)]
    with new_artifact(tmp_path / "run", "dataset", key="k", inputs={}, config={}) as draft:
        nectar.write_nectar(draft.path / "train.parquet", rows)
    text = card(tmp_path / "run")
    assert "| 11 | 1 | 5.0 % |\n| 12 to 20 | 9 | 45.0 % |" in text
    assert "## The judge" not in text
    assert "## Confidence" not in text
    assert "| pair_verdicts |" not in text
