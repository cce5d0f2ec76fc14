"""The cards of reward model and policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starling.publish.source import Source, origin, terms
from starling.publish.text import front_matter, number, settings_table, table, with_interval


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
            "tags": ["reward-model", "rlaif", *_loss_tag(chosen), "starling"],
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
        "## Terms\n\n" + _model_terms(source),
        origin(source, "reward"),
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


def _loss_tag(chosen: Mapping[str, Any]) -> list[str]:
    """The loss as a tag of the hub, e.g. plackett-luce; none when the settings do not say."""
    kind = chosen.get("loss", {}).get("type")
    return [str(kind).replace("_", "-")] if kind else []


def _model_terms(source: Source) -> str:
    return terms(source, source.chosen("responses", "pool"))


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
        "## Terms\n\n" + _model_terms(source),
        origin(source, "policy"),
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
