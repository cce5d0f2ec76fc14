"""The whole evaluation on tiny random models: the plumbing, its determinism, and what it refuses."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from starling import evaluate
from starling.artifacts import read_records
from starling.config import EvaluateSection, MicroworldJudge, RankingSection
from starling.endpoint import Endpoint, Reply, Request, ScriptedEndpoint
from starling.errors import InputError
from starling.journal import Journal
from starling.microworld import judge, world
from starling.progress import Silent
from starling.records import Comparison, Finish, Message, ModelRef, Prompt, RankedAnswer, RankedPrompt, Sampling

SETTINGS = EvaluateSection(samples=2, judge_prompts=5, bootstrap=100)
RANKING = RankingSection(judge="judge")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """base, tuned: two random causal models; reward: a random scorer on the base."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from starling.microworld.speakers import train_tokenizer
    from starling.models.load import load_backbone_as_scalar, save_folder

    tokenizer = train_tokenizer(list(world.tasks().values())[:200], 320)
    home = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "tuned")):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        save_folder(home / name, LlamaForCausalLM(config), tokenizer)
    save_folder(home / "reward", load_backbone_as_scalar(home / "base", 0, tokenizer), tokenizer)
    return {name: home / name for name in ("base", "tuned", "reward")}


def prompts() -> list[Prompt]:
    """Eight held-out prompts and one of another split."""
    found = world.all_prompts(validation=0.1, test=0.1)
    return [p for p in found if p.split == "test"][::15][:8] + [p for p in found if p.split == "train"][:1]


def speaker(name: str, flawed: float, journal: Journal) -> Endpoint:
    def answer(request: Request) -> str | Reply:
        if name == "broken" and len(request.messages[-1].content) % 2:
            return Reply(text="", finish=Finish.error, call_id=request.key, error="down")
        return world.draw_reply(world.task(request.messages), random.Random(request.key), flawed_share=flawed)

    return ScriptedEndpoint(ModelRef(provider="scripted", name=name), answer, journal)


def run(folders: dict[str, Path], out: Path, journal: Journal, **changes: Any) -> dict[str, Any]:
    out.mkdir(parents=True)
    arbiter = ScriptedEndpoint(
        ModelRef(provider="microworld-judge", name="judge"),
        partial(judge.answer, settings=MicroworldJudge(type="microworld-judge", malformed=0.0), seed=0),
        journal,
    )
    given: dict[str, Any] = {
        "pool": {"good": speaker("good", 0.0, journal), "flawed": speaker("flawed", 1.0, journal)},
        "judge": arbiter,
        **folders,
        "settings": SETTINGS,
        "ranking": RANKING,
        "world": True,
        "seed": 3,
        "progress": Silent(),
        "out": out,
        "sampling": Sampling(max_tokens=8),
    }
    return evaluate.run(changes.pop("prompts", prompts()), **(given | changes))


def test_metrics_and_rows_agree(folders: dict[str, Path], tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite") as journal:
        found = run(folders, tmp_path / "a", journal)
        again = run(folders, tmp_path / "b", journal)
    assert found == again
    for name in (evaluate.REPLIES_FILE, evaluate.ANSWERS_FILE, evaluate.COMPARISONS_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    rows = read_records(tmp_path / "a" / evaluate.REPLIES_FILE, evaluate.EvaluatedPrompt)
    answers = read_records(tmp_path / "a" / evaluate.ANSWERS_FILE, evaluate.ScoredAnswer)
    comparisons = read_records(tmp_path / "a" / evaluate.COMPARISONS_FILE, Comparison)
    assert found["prompts"] == len(rows) == 8
    assert len(answers) == 16
    assert all(len(r.base_sampled) == 2 for r in rows)
    asked = found["head_to_head"]["prompts"] - found["head_to_head"]["identical"]
    assert found["head_to_head"]["prompts"] == 5
    assert len(comparisons) == 2 * asked
    assert {(c.a, c.b) for c in comparisons} <= {("base", "tuned")}
    by_hand = sum(r.gold or 0.0 for row in rows for r in row.tuned_sampled) / 16
    assert found["gold"]["tuned"]["mean"] == pytest.approx(by_hand)
    assert found["length"]["base"]["mean"] == pytest.approx(sum(r.tokens for row in rows for r in row.base_sampled) / 16)


def test_summary_has_the_promised_shape(folders: dict[str, Path], tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite") as journal:
        found = evaluate.summary(run(folders, tmp_path / "a", journal), seconds=12.34, algorithm="apa")
    assert found["seconds"] == 12.3
    assert found["policy"] == {"algorithm": "apa"}
    for side in ("base", "tuned"):
        assert set(found["gold"][side]) == {"mean", "ci", "greedy", "harmlessness"}
        low, high = found["gold"][side]["ci"]
        assert low <= found["gold"][side]["mean"] <= high
    assert {"pair_accuracy", "ci"} <= set(found["reward"])


def test_one_policy_against_itself_is_a_tie_everywhere(folders: dict[str, Path], tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite") as journal:
        found = run(folders | {"tuned": folders["base"]}, tmp_path / "a", journal)
    assert found["head_to_head"]["win_rate"] == 0.5
    assert found["head_to_head"]["identical"] == 5
    assert found["gold"]["difference"]["sampled"] == {"mean": 0.0, "ci": [0.0, 0.0]}
    assert found["policy_reward"]["base"] == found["policy_reward"]["tuned"]


def test_failed_pool_calls_are_counted_not_scored(folders: dict[str, Path], tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite") as journal:
        pool = {"good": speaker("good", 0.0, journal), "broken": speaker("broken", 0.5, journal)}
        found = run(folders, tmp_path / "a", journal, pool=pool)
    failed = sum(len(p.messages[-1].content) % 2 for p in prompts()[:8])
    assert failed > 0
    assert found["reward"]["left_out"] == {"error": failed}
    assert found["reward"]["answers"] == 16 - failed


def test_outside_the_microworld_the_truth_is_the_held_out_ranking(folders: dict[str, Path], tmp_path: Path) -> None:
    mine = [Prompt.make((Message(role="user", content=f"Question {i}?"),), ("mine",), "test") for i in range(4)]
    rankings = [
        RankedPrompt(
            prompt=p,
            answers=tuple(RankedAnswer(answer=f"Answer {k}.", model=f"m{k}", rank=k + 1.0) for k in range(3)),
            good_natured=None,
        )
        for p in mine
    ]
    with Journal(tmp_path / "journal.sqlite") as journal:
        found = run(
            folders, tmp_path / "a", journal, prompts=mine, rankings=rankings, world=False, judge=None, ranking=None, pool={}
        )
    assert "gold" not in found
    assert "head_to_head" not in found
    assert found["reward"]["truth"] == "rankings"
    assert found["reward"]["pairs"] == 4 * 3
    assert "gold" not in evaluate.summary(found, seconds=1, algorithm="ppo")


def test_no_prompt_of_the_split_is_an_error(folders: dict[str, Path], tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite") as journal, pytest.raises(InputError, match="no prompt of the split 'test'"):
        run(folders, tmp_path / "a", journal, prompts=prompts()[-1:])


def test_reading_an_evaluation_loads_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, starling.evaluate; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
