"""Cards and folders: front matter the hub accepts, numbers of the run, folders that the ecosystem opens."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from starling import publish
from starling.artifacts import open_artifact
from starling.config import PublishSection
from starling.errors import ArtifactError


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
        assert f"| {name} |" in text
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
    from starling.models.score import score_conversations
    from starling.records import Message

    run, base = tmp_path / "run", backbone("llama")
    tokenizer = load_tokenizer(base)
    head = load_backbone_as_scalar(base, 0, tokenizer)
    fake_run.stage(run, "reward", lambda draft: save_folder(draft.path, head, tokenizer))
    fake_run.stage(run, "policy", lambda draft: shutil.copytree(base, draft.path, dirs_exist_ok=True), "reward")
    publish.write(run, tmp_path / "out", PublishSection())
    assert not (tmp_path / "out" / "dataset").exists()
    scorer, policy = tmp_path / "out" / "reward-model", tmp_path / "out" / "policy"
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
    assert publish.table(("a", "b"), [("x|y", "1\n2")]) == "| a | b |\n| --- | --- |\n| x\\|y | 1 2 |"
