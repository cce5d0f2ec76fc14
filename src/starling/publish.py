"""Stage 10: folders that can be put on a hub as they are: dataset, reward model and policy, each with its card.

    dataset/        README.md, data/train.parquet …      datasets.load_dataset(folder)
    reward-model/   README.md, a transformers folder     AutoModelForSequenceClassification.from_pretrained(folder)
    policy/         README.md, a transformers folder     AutoModelForCausalLM.from_pretrained(folder)

The cards' front matter follows the Hugging Face hub's card format (its values are written as JSON, which is YAML). Their
numbers come from the artifacts only; what a run did not measure is said to be not measured. Nothing is uploaded. Parts that
a run did not make are left out. Times are left out too, so equal runs give equal bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling import nectar
from starling.artifacts import MANIFEST, Artifact, open_artifact, read_records
from starling.config import PublishSection
from starling.errors import ArtifactError
from starling.records import Judgment, RankedPrompt

READS = ("prompts", "responses", "ranking", "dataset", "reward", "policy", "evaluate")
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))


@dataclass(frozen=True)
class Source:
    """What the cards are made from."""

    found: Mapping[str, Artifact]
    settings: PublishSection

    def metrics(self, stage: str) -> Mapping[str, Any]:
        return self.found[stage].metrics if stage in self.found else {}

    def chosen(self, stage: str, section: str) -> Mapping[str, Any]:
        """The settings that a stage read; paths are replaced by hashes of what lay there."""
        value = self.found[stage].config.get(section) if stage in self.found else None
        return value if isinstance(value, Mapping) else {}


def write(run_dir: Path, out: Path, settings: PublishSection) -> list[Path]:
    """Write the folders of what the run has made into `out`; returns them.

    Raises:
        ArtifactError: the run has neither dataset nor models, or an artifact is damaged.
    """
    source = Source({stage: open_artifact(run_dir, stage) for stage in READS if (run_dir / stage / MANIFEST).exists()}, settings)
    made = []
    if "dataset" in source.found:
        made.append(_write_dataset(source, out / "dataset"))
    if "reward" in source.found:
        made.append(_copy_model(source.found["reward"], out / "reward-model", reward_card(source)))
    if "policy" in source.found:
        made.append(_copy_model(source.found["policy"], out / "policy", policy_card(source)))
    if not made:
        raise ArtifactError("There is nothing to publish yet", where=str(run_dir), cure="`starling run CONFIG` first")
    return made


def _write_dataset(source: Source, folder: Path) -> Path:
    artifact = source.found["dataset"]
    rows = {
        name.removesuffix(".parquet"): nectar.read_nectar(artifact.path / name)
        for name in artifact.files
        if name.endswith(".parquet")
    }
    (folder / "data").mkdir(parents=True)
    for split in rows:
        shutil.copyfile(artifact.path / f"{split}.parquet", folder / "data" / f"{split}.parquet")
    (folder / "README.md").write_text(dataset_card(source, rows), encoding="utf-8")
    return folder


def _copy_model(artifact: Artifact, folder: Path, card: str) -> Path:
    folder.mkdir(parents=True)
    for name in artifact.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.path / name, folder / name)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def front_matter(values: Mapping[str, Any]) -> str:
    """YAML front matter of a card; empty values are left out."""
    lines = [
        f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items() if value not in ("", None, [], {})
    ]
    return "\n".join(["---", *lines, "---", ""])


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; bars and line breaks in cells are escaped."""
    cells = [[str(c).replace("|", "\\|").replace("\n", " ") for c in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def settings_table(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Settings as (dotted name, value) rows."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += settings_table(value, f"{prefix}{key}.")
        else:
            rows.append((f"`{prefix}{key}`", f"`{json.dumps(value, ensure_ascii=False)}`"))
    return rows


def number(value: float | None, digits: int = 3) -> str:
    return "not measured" if value is None else f"{value:.{digits}f}"


def with_interval(value: float | None, bounds: Sequence[float] | None) -> str:
    return number(value) if bounds is None else f"{number(value)} ({bounds[0]:.3f} to {bounds[1]:.3f})"


def _judge(source: Source) -> Judgment | None:
    """Any of the run's judgments: all share judge and rubric."""
    if "ranking" not in source.found:
        return None
    judgments = read_records(source.found["ranking"].path / "judgments.parquet", Judgment)
    return judgments[0] if judgments else None


def _origin(source: Source, stage: str) -> str:
    artifact = source.found[stage]
    return f"Made by Starling {artifact.code_version}; fingerprint of the artifact `{artifact.fingerprint}`."


def _terms(source: Source) -> str:
    judge = _judge(source)
    lines = [
        f"Licence: {source.settings.license}. The terms of the prompts' sources and of the models that answered still apply."
    ]
    if judge is not None:
        lines.append(
            f"Judge `{judge.judge}`, rubric `{judge.rubric}`. "
            + (source.settings.judge_terms or "No terms of the judge are stated in the settings.")
        )
    return "\n\n".join(lines)


# ── dataset ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def dataset_card(source: Source, rows: Mapping[str, Sequence[RankedPrompt]]) -> str:
    """The dataset's README.md."""
    every = [row for part in rows.values() for row in part]
    size = next((name for limit, name in SIZES if len(every) < limit), "n>10M")
    head = front_matter(
        {
            "license": source.settings.license,
            "pretty_name": source.settings.dataset.rpartition("/")[2] or "Rankings by an AI judge",
            "task_categories": ["text-generation", "text-ranking"],
            "size_categories": [size],
            "tags": ["preference", "rlaif", "ranking", "nectar", "starling"],
            "configs": [
                {"config_name": "default", "data_files": [{"split": split, "path": f"data/{split}.parquet"} for split in rows]}
            ],
        }
    )
    answers = sorted({len(row.answers) for row in every})
    sources = sorted({name for row in every for name in row.prompt.sources})
    judged_good = [row.good_natured for row in every if row.good_natured is not None]
    parts = [
        "# Rankings by an AI judge",
        f"{len(every)} prompts with {_range(answers)} ranked answers each, in the schema of berkeley-nest/Nectar: a judge "
        "ranks all answers to a prompt in one call, from best (rank 1) to worst.",
        '```python\nfrom datasets import load_dataset\n\nrows = load_dataset("path/to/this/folder")\n```',
        "## Splits\n\n" + table(("split", "prompts"), [(split, len(part)) for split, part in rows.items()]),
        "Splits are cut by conversation: all turns of one conversation are on one side.",
        "## Columns\n\n" + table(("column", "type", "meaning"), COLUMNS),
        "## Answers\n\n" + table(("model", "answers", "mean rank", "first places"), _by_model(every)),
        f"Sources of the prompts: {', '.join(sources) or 'unknown'}. "
        + (f"The judge calls {100 * sum(judged_good) / len(judged_good):.1f} % of them good natured." if judged_good else ""),
        _judge_part(source),
        "## Limits\n\nThe ranks are a model's opinion, with its taste for length and form and a bias towards positions; they are "
        "not human preferences. Answers are unfiltered model output and can be wrong or harmful.",
        "## Terms\n\n" + _terms(source),
        _origin(source, "dataset"),
    ]
    return head + "\n\n".join(part for part in parts if part) + "\n"


COLUMNS = (
    ("prompt", "string", "the conversation up to the reply, `\\n\\nHuman: …\\n\\nAssistant: `"),
    ("answers", "list of {answer, model, rank}", "best first; rank 1.0 … K without ties"),
    ("turns", "int64", "user turns"),
    ("num_responses", "int64", "K"),
    ("source", "list of string", "where the prompt was found"),
    ("good_natured", "bool", "the judge's view of the request"),
)


def _range(values: Sequence[int]) -> str:
    return "no" if not values else str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _by_model(rows: Sequence[RankedPrompt]) -> list[tuple[Any, ...]]:
    """(model, answers, mean rank, share of first places), best first."""
    ranks: dict[str, list[float]] = {}
    for row in rows:
        for answer in row.answers:
            ranks.setdefault(answer.model, []).append(answer.rank)
    ordered = sorted(ranks.items(), key=lambda item: (sum(item[1]) / len(item[1]), item[0]))
    return [(m, len(r), f"{sum(r) / len(r):.2f}", f"{100 * r.count(1.0) / len(r):.1f} %") for m, r in ordered]


def _judge_part(source: Source) -> str:
    """What became of the judge's calls and of the answers, failures included."""
    lines = []
    for stage, what in (
        ("responses", "calls for answers"),
        ("ranking", "ranking by the judge"),
        ("dataset", "judgments left out"),
    ):
        counts = {k: v for k, v in source.found[stage].outcomes.items() if v} if stage in source.found else {}
        lines += [(what, outcome.replace("_", " "), count) for outcome, count in sorted(counts.items())]
    return "## What became of every call\n\n" + table(("what", "outcome", "count"), lines) if lines else ""


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def reward_card(source: Source) -> str:
    """The reward model's README.md."""
    chosen, trained, measured = (
        source.chosen("reward", "reward"),
        source.metrics("reward"),
        source.metrics("evaluate").get("reward", {}),
    )
    accuracy = [
        {"type": "accuracy", "name": "pair accuracy on unseen prompts", "value": round(value, 4)}
        for value in [measured.get("pair_accuracy")]
        if value is not None
    ]
    head = front_matter(
        {
            "license": source.settings.license,
            "library_name": "transformers",
            "pipeline_tag": "text-classification",
            "base_model": source.settings.reward_base,
            "datasets": [source.settings.dataset] if source.settings.dataset else [],
            "tags": ["reward-model", "rlaif", "plackett-luce", "starling"],
            "model-index": _model_index("reward model", "text-classification", accuracy),
        }
    )
    parts = [
        "# Reward model",
        "One number per conversation: higher means that the judge would rank the reply higher. Only differences between replies "
        "to the same prompt mean something.",
        REWARD_USE,
        "## Training\n\n" + table(("what", "count"), _counts(trained)),
        "Loss and settings (paths are replaced by hashes of what lay there):\n\n"
        + table(("setting", "value"), settings_table(chosen)),
        "## Results\n\n" + _reward_results(measured, trained),
        "## Limits\n\nIt has learnt one judge's taste on this data's kind of prompts, and a policy tuned hard against it will "
        "find its errors. Conversations longer than its context are cut on the left.",
        "## Terms\n\n" + _terms(source),
        _origin(source, "reward"),
    ]
    return head + "\n\n".join(parts) + "\n"


REWARD_USE = """```python
from transformers import pipeline

score = pipeline("text-classification", "path/to/this/folder", function_to_apply="none")
print(score("the whole conversation, reply and end token included, as the chat template renders it"))
```"""

POLICY_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
chat = [{"role": "user", "content": "Hello!"}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))
```"""


def _model_index(name: str, task: str, metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The hub's machine-readable results; none without a metric."""
    if not metrics:
        return []
    data = {"type": "starling-held-out", "name": "prompts that no stage trained on"}
    return [{"name": name, "results": [{"task": {"type": task}, "dataset": data, "metrics": metrics}]}]


def _counts(metrics: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The counts among a stage's metrics."""
    names = {
        "rankings/train": "rankings to learn from", "rankings/validation": "rankings held out", "steps": "optimiser steps",
        "answers/whole": "answers that went in whole", "answers/prompt_cut": "answers with a cut prompt",
        "answers/answer_cut": "answers that were cut", "answers/dropped": "answers dropped as too long",
    }  # fmt: skip
    return [(said, int(metrics[name])) for name, said in names.items() if name in metrics]


def _reward_results(measured: Mapping[str, Any], trained: Mapping[str, Any]) -> str:
    truth = "the true quality of the answers" if measured.get("truth") == "gold" else "held-out rankings by the judge"
    rows = [
        (f"pairs ordered rightly, against {truth}", with_interval(measured.get("pair_accuracy"), measured.get("ci"))),
        ("best answer chosen (top-1)", with_interval(measured.get("top1"), measured.get("top1_ci"))),
        ("Kendall τ-b", with_interval(measured.get("kendall_tau"), measured.get("kendall_tau_ci"))),
        ("pairs ordered as the judge did, validation split", number(trained.get("validation/pair_accuracy"))),
    ]
    return table(("on unseen prompts", "value (95 % interval over prompts)"), rows)


def policy_card(source: Source) -> str:
    """The policy's README.md."""
    chosen, measured = source.chosen("policy", "policy"), source.metrics("evaluate")
    algorithm = str(chosen.get("algorithm", {}).get("type", "")).upper() or "policy optimisation"
    gold = measured.get("gold", {}).get("tuned", {})
    score = [{"type": "gold", "name": "gold score at T = 1", "value": round(gold["mean"], 4)}] if gold else []
    head = front_matter(
        {
            "license": source.settings.license,
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
            "base_model": source.settings.policy_base,
            "datasets": [source.settings.dataset] if source.settings.dataset else [],
            "tags": ["rlaif", "rlhf", *([algorithm.lower()] if chosen else []), "starling"],
            "model-index": _model_index("policy", "text-generation", score),
        }
    )
    parts = [
        "# Tuned policy",
        f"A language model tuned by {algorithm} against a reward model that learnt from an AI judge's rankings.",
        POLICY_USE,
        "## Training\n\nSettings (paths are replaced by hashes of what lay there):\n\n"
        + table(("setting", "value"), settings_table(chosen)),
        "## Results\n\n" + _policy_results(measured),
        "## Limits\n\nIt was tuned towards one judge's taste. Outside the kinds of prompt it was tuned on it may be no better "
        "than its base, and it can be wrong or harmful.",
        "## Terms\n\n" + _terms(source),
        _origin(source, "policy"),
    ]
    return head + "\n\n".join(parts) + "\n"


def _policy_results(measured: Mapping[str, Any]) -> str:
    if not measured:
        return "Not evaluated."
    rows: list[tuple[str, str, str, str]] = []
    gold, length, finished = measured.get("gold"), measured.get("length"), measured.get("finished")
    if gold:
        for name, value, ci, change in (
            ("true quality, sampled at T = 1", "mean", "ci", "sampled"),
            ("true quality, greedy", "greedy", "greedy_ci", "greedy"),
            ("harmlessness", "harmlessness", "harmlessness_ci", "harmlessness"),
        ):
            before, after = (with_interval(gold[side][value], gold[side][ci]) for side in ("base", "tuned"))
            rows.append(
                (name, before, after, with_interval(gold["difference"][change]["mean"], gold["difference"][change]["ci"]))
            )
    for name, part, digits in (("tokens per reply", length, 1), ("share that ended by itself", finished, 3)):
        if part:
            rows.append((name, number(part["base"]["mean"], digits), number(part["tuned"]["mean"], digits), ""))
    said = (
        f"{measured['prompts']} prompts of the {measured['split']} split, none of them trained on; 95 % intervals over prompts."
    )
    parts = [said, table(("what", "base", "tuned", "paired change"), rows)]
    duel = measured.get("head_to_head", {})
    if duel.get("win_rate") is not None:
        rate = with_interval(duel["win_rate"], duel["ci"])
        parts.append(
            f"Shown both replies in both orders, the judge prefers this model over its base with a win rate of {rate} on "
            f"{duel['prompts']} prompts; a disagreement of the two orders counts half."
        )
    return "\n\n".join(parts)
