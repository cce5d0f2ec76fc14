"""Policy tuning on tiny models: laws of the plan, experience by hand, exact resume, the phases, errors."""

import json
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from starling.config import APA, PolicySection
from starling.errors import ConfigError, InputError, TrainingError
from starling.losses.policy import kl_k1
from starling.models.load import load_backbone_as_scalar, load_causal, load_tokenizer, save_folder
from starling.policy import train as tuning
from starling.policy import update
from starling.policy.experience import Experience, make_experience, measure
from starling.policy.metrics import definition
from starling.policy.models import Models
from starling.policy.rollout import Rollout, choose_prompts, rollout
from starling.policy.update import steps_of
from starling.records import Message, Prompt
from tests.policy.small import PROMPTS, begun, count_replies, lines, settings, tune

Make = Callable[..., Path]


# ── what is drawn ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_prompts_come_once_per_epoch_and_depend_on_the_iteration_only() -> None:
    seen = [p.id for i in range(4) for p in choose_prompts(PROMPTS, 6, i, seed=1)]
    assert len(seen) == 24
    for epoch in range(3):
        assert sorted(seen[8 * epoch : 8 * epoch + 8]) == sorted(p.id for p in PROMPTS)
    assert seen[:8] != seen[8:16]
    assert [p.id for p in choose_prompts(PROMPTS, 6, 2, seed=1)] == seen[12:18]


def test_every_group_is_in_one_step_of_each_epoch() -> None:
    steps = steps_of(10, 4, 3, seed=1, iteration=2)
    assert [len(step) for step in steps] == [3, 3, 2, 2] * 3
    for epoch in range(3):
        assert sorted(i for step in steps[4 * epoch : 4 * epoch + 4] for i in step) == list(range(10))
    assert steps[:4] != steps[4:8]
    assert steps == steps_of(10, 4, 3, seed=1, iteration=2)
    assert steps != steps_of(10, 4, 3, seed=1, iteration=3)


def test_a_reply_ends_where_its_stop_string_is_complete(backbone: Make, reward_folder: Path, tmp_path: Path) -> None:
    encoder = begun(backbone("llama"), reward_folder, tmp_path).encoder
    ids = encoder.reply_ids("a cat, a dog and a cow", True)
    whole = rollout(encoder, PROMPTS[0], (1, 2), ids, [-1.0] * len(ids), True, ())
    assert (whole.text, whole.finished, whole.ids) == ("a cat, a dog and a cow", True, ids)
    cut = rollout(encoder, PROMPTS[0], (1, 2), ids[:-1], [-1.0] * len(ids), False, ("dog",))
    assert (cut.text, cut.finished) == ("a cat, a ", True)
    assert encoder.decode_reply(cut.ids).endswith("dog")
    assert "dog" not in encoder.decode_reply(cut.ids[:-1])
    assert len(cut.logprobs) == len(cut.ids)


# ── experience ───────────────────────────────────────────────────────────────────────────────────────────────────────


def experience_of(tuner: Any, scores: torch.Tensor | None = None) -> tuple[list[Rollout], Experience, dict[str, float]]:
    """One iteration's, with these rewards."""
    rollouts, found = tuner._scored(1)
    rewards = torch.from_numpy(found[0]) if scores is None else scores
    measured = measure(
        tuner.learner.engine, tuner.learner.reference, [r.encoded for r in rollouts], tuner.packing, budget=10_000,
        temperature=tuner.settings.sampling.temperature, values=tuner.updates.objective.has_critic,
    )  # fmt: skip
    return rollouts, *make_experience(rollouts, rewards, measured, tuner.packing, tuner.settings, tuner.learner.state.kl)


class Halved:
    """A reference that is another model, so that there is a KL."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def logprobs(self, replies: Any, temperature: float) -> torch.Tensor:
        return torch.where(replies.mask_BR, 0.9 * self._real.logprobs(replies, temperature), 0.0)


def test_experience_puts_the_score_on_the_last_token_and_the_kl_on_all(
    backbone: Make, reward_folder: Path, tmp_path: Path
) -> None:
    tuner = begun(backbone("llama"), reward_folder, tmp_path, settings(gae_lambda=1.0, gamma=1.0))
    tuner.learner.reference = Halved(tuner.learner.reference)
    rewards = torch.arange(8.0)
    rollouts, exp, metrics = experience_of(tuner, rewards)
    kl = torch.where(exp.mask_BR, exp.logprobs_BR - exp.reference_BR, 0.0)
    for i, r in enumerate(rollouts):
        count = len(r.ids)
        assert exp.mask_BR[i].tolist() == [True] * count + [False] * (exp.mask_BR.shape[1] - count)
        # with γ = λ = 1 the return of the first token is the whole reward: score − 0.05 · Σ KL
        assert float(exp.returns_BR[i, 0]) == pytest.approx(float(rewards[i] - 0.05 * kl[i].sum()), abs=1e-4)
        # of the last token only the score and its own KL are left
        assert float(exp.returns_BR[i, count - 1]) == pytest.approx(float(rewards[i] - 0.05 * kl[i, count - 1]), abs=1e-4)
    assert float(kl.abs().sum()) > 0.1
    assert metrics["kl_reply"] == pytest.approx(float(kl.sum(1).mean()), rel=1e-5)
    assert metrics["kl_penalty"] == pytest.approx(0.05 * metrics["kl_reply"], rel=1e-5)
    assert metrics["length"] == pytest.approx(sum(len(r.ids) for r in rollouts) / 8)
    errors = (exp.returns_BR - exp.values_BR)[exp.mask_BR]
    explained = 1 - errors.var(correction=0) / exp.returns_BR[exp.mask_BR].var(correction=0)
    assert metrics["explained_variance"] == pytest.approx(float(explained), abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_training_and_sampling_agree_on_log_probabilities(
    temperature: float, backbone: Make, reward_folder: Path, tmp_path: Path
) -> None:
    rules = settings(sampling={"max_tokens": 6, "temperature": temperature, "top_p": 0.9})
    tuner = begun(backbone("llama"), reward_folder, tmp_path, rules)
    rollouts, exp, metrics = experience_of(tuner)
    assert metrics["mismatch_max"] < 1e-5
    assert metrics["mismatch"] <= metrics["mismatch_max"]
    broken = [
        Rollout(prompt=r.prompt, encoded=r.encoded, logprobs=tuple(x - 0.5 for x in r.logprobs), text=r.text, finished=r.finished)
        for r in rollouts
    ]
    measured = measure(
        tuner.learner.engine, tuner.learner.reference, [r.encoded for r in rollouts], tuner.packing, budget=10_000,
        temperature=temperature, values=True,
    )  # fmt: skip
    _, shifted = make_experience(broken, torch.zeros(8), measured, tuner.packing, rules, 0.0)
    assert shifted["mismatch"] == pytest.approx(0.5, abs=1e-5)
    assert shifted["mismatch_kl"] == pytest.approx(torch.e**0.5 - 1.5, abs=1e-4)
    assert "weight" not in shifted  # ours needs no importance weights
    served = settings(engine={"type": "vllm", "urls": ["http://127.0.0.1:1"], "weights": "w", "ratio_cap": 1.2})
    weighted, numbers = make_experience(broken, torch.zeros(8), measured, tuner.packing, served, 0.0)
    assert weighted.weights_BR is not None
    assert weighted.weights_BR[exp.mask_BR].tolist() == pytest.approx([1.2] * int(exp.mask_BR.sum()))  # e^0.5 is above the cap
    assert numbers["weight_capped"] == 1.0


def test_rows_of_an_experience_are_cut_to_the_longest(backbone: Make, reward_folder: Path, tmp_path: Path) -> None:
    tuner = begun(backbone("llama"), reward_folder, tmp_path)
    _, exp, _ = experience_of(tuner)
    exp.mask_BR[2, 3:] = False
    exp.mask_BR[5, 4:] = False
    part = exp.rows([5, 2])
    assert part.mask_BR.shape == (2, 4)
    assert torch.equal(part.values_BR, exp.values_BR[[5, 2], :4])
    assert part.encoded == (exp.encoded[5], exp.encoded[2])
    assert part.group_B.tolist() == [5, 2]


def test_rloo_compares_with_the_other_replies_to_the_prompt(backbone: Make, reward_folder: Path, tmp_path: Path) -> None:
    rules = settings(algorithm={"type": "rloo"}, samples_per_prompt=4, kl=0.0)
    tuner = begun(backbone("llama"), reward_folder, tmp_path, rules)
    rewards = torch.tensor([1.0, 2.0, 3.0, 6.0, 0.0, 0.0, 0.0, 4.0])
    rollouts, exp, metrics = experience_of(tuner, rewards)
    assert [r.prompt.id for r in rollouts] == [r.prompt.id for r in rollouts[:1]] * 4 + [r.prompt.id for r in rollouts[4:5]] * 4
    # 1 − (2+3+6)/3, …; 4 − 0
    expected = [-8 / 3, -4 / 3, 0.0, 4.0, -4 / 3, -4 / 3, -4 / 3, 4.0]
    assert exp.advantages_B.tolist() == pytest.approx(expected, abs=1e-5)
    assert metrics["advantage"] == pytest.approx(0.0, abs=1e-6)
    assert "explained_variance" not in metrics


def test_the_reward_model_sees_whether_a_reply_is_finished(backbone: Make, reward_folder: Path, tmp_path: Path) -> None:
    tuner = begun(backbone("llama"), reward_folder, tmp_path)
    encoded = tuner.encoder.completion(PROMPTS[0].messages, "a cat")
    rows = [Rollout(prompt=PROMPTS[0], encoded=encoded, logprobs=(), text="a cat", finished=f) for f in (True, False)]
    done, cut = tuner.proxies[0].score(rows, 1, tuner.learner.engine, 1000).tolist()
    assert done != cut


# ── exact resume ─────────────────────────────────────────────────────────────────────────────────────────────────────

ALGORITHMS: dict[str, dict[str, Any]] = {
    "apa": {"algorithm": {"type": "apa"}},
    "apa initial": {"algorithm": {"type": "apa", "anchor": "initial", "lam": 0.1, "whiten": True}},
    "ppo": {"algorithm": {"type": "ppo", "entropy": 0.01}, "kl": {"type": "adaptive", "target": 0.1, "horizon": 40}},
    "p3o": {"algorithm": {"type": "p3o"}, "samples_per_prompt": 4},
    "rloo": {"algorithm": {"type": "rloo"}, "samples_per_prompt": 4, "shaping": {"scale": "running_std"}},
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_killed_run_goes_on_to_the_same_weights(
    name: str, backbone: Make, reward_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = settings(checkpoint_every=2, **ALGORITHMS[name])
    metrics = tune(backbone("llama"), reward_folder, tmp_path, "whole", rules)
    assert metrics["gold"] == 4
    assert metrics["prompts/too_long"] == 0
    real, drawn = tuning._Tuning._learn, []

    def dies(self: Any, rollouts: Any, rewards_B: Any, iteration: int) -> dict[str, float]:
        if iteration == 4:
            raise KeyboardInterrupt
        return real(self, rollouts, rewards_B, iteration)

    monkeypatch.setattr(tuning._Tuning, "_learn", dies)
    with pytest.raises(KeyboardInterrupt):
        tune(backbone("llama"), reward_folder, tmp_path, "halves", rules)
    monkeypatch.setattr(tuning._Tuning, "_learn", real)
    sample = tuning.sample_rollouts
    monkeypatch.setattr(tuning, "sample_rollouts", lambda *a, **k: drawn.append(k["stream"]) or sample(*a, **k))
    torch.manual_seed(99)
    tune(backbone("llama"), reward_folder, tmp_path, "halves", rules)
    assert drawn == []  # iterations 3 and 4 had been sampled, and only the update was lost
    for file in ("model.safetensors", "log.jsonl", "selection.json", "best_of_n.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "halves" / file).read_bytes()
    before = load_causal(backbone("llama")).state_dict()
    after = load_causal(tmp_path / "whole").state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before)
    for row in lines(tmp_path / "whole"):
        assert [key for key in row if definition(key) is None and key not in ("iteration", "guard")] == []


def test_a_damaged_buffer_is_sampled_again(
    backbone: Make, reward_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tuner = begun(backbone("llama"), reward_folder, tmp_path)
    rollouts, scores = tuner._scored(1)
    again, kept = begun(backbone("llama"), reward_folder, tmp_path)._scored(1)
    assert again == rollouts
    assert (kept == scores).all()
    (file,) = (tmp_path / "rollouts").iterdir()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        anew, found = begun(backbone("llama"), reward_folder, tmp_path)._scored(1)
    assert "are damaged; they are sampled again" in caplog.text
    assert anew == rollouts
    assert (found == scores).all()


def test_a_buffer_of_other_prompts_is_not_used(backbone: Make, reward_folder: Path, tmp_path: Path) -> None:
    begun(backbone("llama"), reward_folder, tmp_path)._scored(1)
    other = begun(backbone("llama"), reward_folder, tmp_path, seed=5)
    rollouts, _ = other._scored(1)
    assert {r.prompt.id for r in rollouts} == {p.id for p in PROMPTS}
    assert len(list((tmp_path / "rollouts").iterdir())) == 2


@pytest.mark.parametrize("moment", ["_scored", "_learn"])
def test_sigterm_saves_what_was_done(
    moment: str, backbone: Make, reward_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = settings(checkpoint_every=10)
    tune(backbone("llama"), reward_folder, tmp_path, "whole", rules)
    real = getattr(tuning._Tuning, moment)

    def signalled(self: Any, *given: Any) -> Any:
        if self.learner.state.iteration == 2:
            signal.raise_signal(signal.SIGTERM)
        return real(self, *given)

    monkeypatch.setattr(tuning._Tuning, moment, signalled)
    with pytest.raises(KeyboardInterrupt):
        tune(backbone("llama"), reward_folder, tmp_path, "halves", rules)
    monkeypatch.setattr(tuning._Tuning, moment, real)
    saved = [p.name for p in (tmp_path / "halves-work" / "checkpoints").iterdir()]
    assert saved == (["step-00000002"] if moment == "_scored" else ["step-00000003"])
    assert len(list((tmp_path / "halves-work" / "rollouts").iterdir())) == (1 if moment == "_scored" else 0)
    tune(backbone("llama"), reward_folder, tmp_path, "halves", rules)
    for file in ("model.safetensors", "log.jsonl"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "halves" / file).read_bytes()


def test_a_checkpoint_of_other_settings_is_refused(backbone: Make, reward_folder: Path, tmp_path: Path) -> None:
    tune(backbone("llama"), reward_folder, tmp_path, "one", settings(iterations=2))
    with pytest.raises(TrainingError, match="belongs to other settings"):
        tune(backbone("llama"), reward_folder, tmp_path, "one", settings(iterations=2, gamma=0.9))


# ── phases ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def same_policy(folder: Path, base: Path) -> bool:
    before, after = load_causal(base).state_dict(), load_causal(folder).state_dict()
    return all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("trunk", ["own", "shared"])
def test_the_critic_warms_up_before_the_policy_moves(trunk: str, backbone: Make, reward_folder: Path, tmp_path: Path) -> None:
    critic = {"pretrain": 2, "learning_rate": 1e-2, "trunk": trunk}
    tune(backbone("llama"), reward_folder, tmp_path, "out", settings(iterations=2, critic=critic))
    assert same_policy(tmp_path / "out", backbone("llama"))
    first, second = lines(tmp_path / "out")[1:]
    assert second["explained_variance"] != first["explained_variance"]  # it did learn
    assert "policy_loss" not in second
    assert first["critic_learning_rate"] == 1e-2
    tune(backbone("llama"), reward_folder, tmp_path, "three", settings(iterations=3, critic=critic))
    assert not same_policy(tmp_path / "three", backbone("llama"))


@pytest.mark.parametrize("mark", [{"pretrain_explained_variance": -1e9}, {"pretrain_value_loss": 1e9}])
def test_warming_up_ends_early_at_its_mark(mark: dict[str, float], backbone: Make, reward_folder: Path, tmp_path: Path) -> None:
    rules = settings(iterations=2, critic={"pretrain": 2, "learning_rate": 1e-2, **mark})
    tune(backbone("llama"), reward_folder, tmp_path, "out", rules)
    assert not same_policy(tmp_path / "out", backbone("llama"))
    rows = lines(tmp_path / "out")
    assert "policy_loss" not in rows[1]
    assert "policy_loss" in rows[2]
    assert rows[2]["learning_rate"] == pytest.approx(1e-2 / 4)  # linear over the one iteration left, 4 steps: 1, 3/4, 1/2, 1/4


@pytest.mark.parametrize("trunk", ["own", "shared"])
def test_a_closed_gate_keeps_the_policy_as_it_was(trunk: str, backbone: Make, reward_folder: Path, tmp_path: Path) -> None:
    critic = {"pretrain": 0, "learning_rate": 1e-2, "trunk": trunk, "gate": 1e-9}
    # decay would move a policy whose gradient is 0
    decaying = {"learning_rate": 1e-2, "weight_decay": 0.1}
    tune(backbone("llama"), reward_folder, tmp_path, "shut", settings(iterations=2, critic=critic, optimizer=decaying))
    # with a shared trunk the value loss moves it, as in the original
    assert same_policy(tmp_path / "shut", backbone("llama")) == (trunk == "own")
    assert [row["gated"] for row in lines(tmp_path / "shut")[1:]] == [1.0, 1.0]
    tune(backbone("llama"), reward_folder, tmp_path, "open", settings(iterations=2, critic=critic | {"gate": 1e9}))
    tune(backbone("llama"), reward_folder, tmp_path, "none", settings(iterations=2, critic=critic | {"gate": None}))
    assert (tmp_path / "open" / "model.safetensors").read_bytes() == (tmp_path / "none" / "model.safetensors").read_bytes()


def test_policy_and_critic_have_their_own_rates(backbone: Make, reward_folder: Path, tmp_path: Path) -> None:
    tune(backbone("llama"), reward_folder, tmp_path, "out")
    rows = lines(tmp_path / "out")
    assert [row["critic_learning_rate"] for row in rows[1:]] == [1e-2] * 4
    # three iterations of 4 steps after the critic's own: the last steps of a linear schedule over 12
    assert [row["learning_rate"] for row in rows[2:]] == pytest.approx([1e-2 * (1 - n / 12) for n in (3, 7, 11)])


def test_an_adaptive_coefficient_follows_the_measured_kl(backbone: Make, reward_folder: Path, tmp_path: Path) -> None:
    kl = {"type": "adaptive", "coefficient": 0.1, "target": 1e-6, "horizon": 40}
    critic = {"pretrain": 0, "learning_rate": 1e-2}
    tune(backbone("llama"), reward_folder, tmp_path, "out", settings(kl=kl, critic=critic))
    rows = lines(tmp_path / "out")[1:]
    expected = [0.1]
    for row in rows[:-1]:
        error = min(max(row["kl_reply"] / 1e-6 - 1, -0.2), 0.2)
        expected.append(expected[-1] * (1 + error * 8 / 40))
    assert [row["kl_coefficient"] for row in rows] == pytest.approx(expected)
    assert expected[-1] != 0.1


# ── what is trained ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("trained", [{"type": "last_layers", "layers": 1}, {"type": "lora", "rank": 4, "dropout": 0.1}])
def test_a_part_is_trained(trained: dict[str, Any], backbone: Make, reward_folder: Path, tmp_path: Path) -> None:
    rules = settings(trained=trained, samples_per_prompt=2)
    tune(backbone("llama"), reward_folder, tmp_path, "out", rules)
    before, after = load_causal(backbone("llama")).state_dict(), load_causal(tmp_path / "out").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    if trained["type"] == "last_layers":
        assert not any(".layers.0." in name for name in changed)
    rows = lines(tmp_path / "out")
    assert rows[1]["kl_reply"] == pytest.approx(0.0, abs=1e-5)
    assert abs(rows[-1]["kl_reply"]) > 1e-4


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_cannot_work_is_refused(backbone: Make, reward_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no prompts"):
        tune(backbone("llama"), reward_folder, tmp_path, "o", prompts=[], validation=[])
    bare = tmp_path / "bare"
    save_folder(bare, load_backbone_as_scalar(backbone("llama"), 0), load_tokenizer(backbone("llama")))
    with pytest.raises(InputError, match="no score statistics"):
        tune(backbone("llama"), bare, tmp_path, "o", validation=[])
    with pytest.raises(InputError, match="No prompt leaves room"):
        tune(backbone("llama"), reward_folder, tmp_path, "o", settings(sampling={"max_tokens": 127}))
    with pytest.raises(InputError, match="does not exist"):
        tune(tmp_path / "none", reward_folder, tmp_path, "o")
    with pytest.raises(ConfigError, match="no number called eval/guard"):
        tune(backbone("llama"), reward_folder, tmp_path, "o", settings(selection={"keep": "rule"}))
    assert not (tmp_path / "o").exists()


def test_prompts_without_room_for_a_reply_are_left_out_and_counted(backbone: Make, reward_folder: Path, tmp_path: Path) -> None:
    long = Prompt.make((Message(role="user", content="animals " * 200),), ("test",))
    rules = settings(iterations=1, critic={"pretrain": 0, "learning_rate": 1e-2})
    metrics = tune(
        backbone("llama"), reward_folder, tmp_path, "out", rules, prompts=[*PROMPTS, long], validation=[*PROMPTS[:2], long]
    )
    assert metrics["prompts/too_long"] == 1
    assert metrics["gold"] == 2


def test_without_validation_prompts_the_last_weights_are_kept(backbone: Make, reward_folder: Path, tmp_path: Path) -> None:
    metrics = tune(backbone("llama"), reward_folder, tmp_path, "out", validation=[])
    assert metrics == {"prompts/too_long": 0.0, "iterations": 4.0}
    assert len(lines(tmp_path / "out")) == 5


def test_a_loss_that_is_not_finite_stops_with_its_replies_saved(
    backbone: Make, reward_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tuning._Tuning._learn

    def broken(self: Any, rollouts: Any, rewards_B: torch.Tensor, iteration: int) -> dict[str, float]:
        if iteration == 3:
            rewards_B[2] = float("nan")
        return real(self, rollouts, rewards_B, iteration)

    monkeypatch.setattr(tuning._Tuning, "_learn", broken)
    with pytest.raises(TrainingError, match=r"The loss is nan.*iteration 3, step [12]; prompts .*non_finite\.json"):
        tune(backbone("llama"), reward_folder, tmp_path, "out")
    saved = json.loads((tmp_path / "out-work" / "non_finite.json").read_text())
    assert saved["iteration"] == 3
    third = choose_prompts(PROMPTS, 8, 2, 3)[2].id
    assert third in saved["prompt_ids"]
    assert len(saved["rollouts"]) == 4  # the step's, not the iteration's
    assert any(row["prompt_id"] == third and row["reward"] != row["reward"] for row in saved["rollouts"])
    assert [p.name for p in (tmp_path / "out-work" / "checkpoints").iterdir()] == ["step-00000001", "step-00000002"]


class Small:
    """A device whose memory holds passes of so many replies, and no more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.sizes: list[int] = []
        real = update._Step._pass

        def limited(step: Any, index: Any, policy: bool) -> Any:
            self.sizes.append(len(index))
            if len(index) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return real(step, index, policy)

        monkeypatch.setattr(update._Step, "_pass", limited)


def test_out_of_memory_halves_the_micro_batches_once_and_says_so(
    backbone: Make, reward_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tune(backbone("llama"), reward_folder, tmp_path, "enough")
    small = Small(monkeypatch, 2)
    with caplog.at_level(logging.WARNING):
        tune(backbone("llama"), reward_folder, tmp_path, "scarce")
    assert caplog.text.count("the memory of the device ran out") == 1
    assert max(small.sizes[1:]) <= 4
    assert small.sizes.count(4) == 1  # tried once, never again
    ours, theirs = load_causal(tmp_path / "enough").state_dict(), load_causal(tmp_path / "scarce").state_dict()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, atol=1e-4, rtol=1e-4)
    rows = lines(tmp_path / "scarce")
    assert "micro_tokens" in rows[1]
    assert "micro_tokens" not in rows[2]


def test_replies_of_a_prompt_that_do_not_fit_are_an_error(
    backbone: Make, reward_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Small(monkeypatch, 1)
    with pytest.raises(TrainingError, match="does not hold one prompt's replies"):
        tune(backbone("llama"), reward_folder, tmp_path, "out", settings(samples_per_prompt=2))


# ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("layout", ["sequences", "shared_prefix"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_step_does_not_depend_on_how_it_is_split_into_passes(
    name: str, layout: str, backbone: Make, reward_folder: Path, tmp_path: Path
) -> None:
    def weights(micro_tokens: int, layout: str) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        changes = {"critic": {"pretrain": 0, "learning_rate": 1e-2}, "epochs": 1, "shaping": {"unfinished": 10.0}}
        rules = settings(**ALGORITHMS[name] | changes, micro_tokens=micro_tokens, layout=layout, checkpoint_every=10)
        tuner = begun(backbone("llama"), reward_folder, tmp_path / f"{micro_tokens}{layout}", rules)
        rollouts, scores = tuner._scored(1)
        metrics = tuner._learn(rollouts, torch.from_numpy(scores[0]), 1)
        return tuner.learner.engine.tensors(), metrics

    together, metrics = weights(10_000, "sequences")
    one_by_one, others = weights(1, layout)
    for key, value in together.items():
        # Adam's first steps turn gradients near 0 into full steps of lr 1e-2: compare to a small share of that
        assert torch.allclose(value, one_by_one[key], atol=1e-4), key
    assert metrics == pytest.approx(others, abs=1e-4, rel=1e-4)


@pytest.mark.parametrize("minibatches", [1, 2])
def test_losses_of_an_update_by_hand(minibatches: int, backbone: Make, reward_folder: Path, tmp_path: Path) -> None:
    """At a rate of almost 0 values and log-probabilities stay the old ones, so the means over tokens are known; at another
    temperature than 1 too."""
    rules = settings(
        algorithm={"type": "apa", "lam": 2.0}, epochs=1, minibatches=minibatches, critic={"pretrain": 0, "learning_rate": 1e-12},
        optimizer={"learning_rate": 1e-12, "warmup_fraction": 0}, sampling={"max_tokens": 6, "temperature": 0.7},
    )  # fmt: skip
    tuner = begun(backbone("llama"), reward_folder, tmp_path, rules)
    rollouts, exp, _ = experience_of(tuner)
    mask = exp.mask_BR
    assert bool(mask.all())  # all as long, so the mean over steps is that over tokens
    found = tuner.updates.run(tuner.learner.engine, exp, rollouts, iteration=1, kl=0.05, policy=True)
    assert found["value_loss"] == pytest.approx(float(0.5 * ((exp.values_BR - exp.returns_BR)[mask] ** 2).mean()), rel=1e-4)
    assert found["policy_loss"] == pytest.approx(float(((exp.advantages_BR / 2.0)[mask] ** 2).mean()), rel=1e-3)
    assert found["log_ratio"] == pytest.approx(0.0, abs=1e-6)
    scores = torch.zeros(len(rollouts), dtype=torch.float64)
    assert tuner._learn(rollouts, scores, 1)["mismatch_max"] < 1e-4  # the whole way, as an iteration goes


@pytest.mark.parametrize("anchor", ["rollout", "initial"])
def test_the_anchor_of_apa_is_the_policy_that_sampled_or_the_initial_one(
    anchor: Any, backbone: Make, reward_folder: Path, tmp_path: Path
) -> None:
    critic = {"pretrain": 0, "learning_rate": 1e-2}
    rules = settings(algorithm=APA(type="apa", anchor=anchor), epochs=1, minibatches=1, critic=critic)
    tuner = begun(backbone("llama"), reward_folder, tmp_path, rules)
    tuner.learner.reference = Halved(tuner.learner.reference)
    rollouts, exp, _ = experience_of(tuner)
    mask = exp.mask_BR
    centre = exp.logprobs_BR if anchor == "rollout" else exp.reference_BR
    by_hand = float(((exp.logprobs_BR - centre - exp.advantages_BR)[mask] ** 2).mean())
    other = exp.reference_BR if anchor == "rollout" else exp.logprobs_BR
    assert by_hand != pytest.approx(float(((exp.logprobs_BR - other - exp.advantages_BR)[mask] ** 2).mean()), rel=1e-2)
    found = tuner.updates.run(tuner.learner.engine, exp, rollouts, iteration=1, kl=0.05, policy=True)
    assert found["policy_loss"] == pytest.approx(by_hand, rel=1e-3)


def test_the_reference_stays_what_the_policy_was(backbone: Make, reward_folder: Path, tmp_path: Path) -> None:
    tuner = begun(backbone("llama"), reward_folder, tmp_path, settings(critic={"pretrain": 0, "learning_rate": 1e-2}))
    encoded = [tuner.encoder.completion(p.messages, "a cat") for p in PROMPTS[:2]]

    def measured() -> Any:
        return measure(
            tuner.learner.engine, tuner.learner.reference, encoded, tuner.packing, budget=999, temperature=1.0, values=False
        )

    before = measured()
    rollouts, exp, _ = experience_of(tuner)
    tuner.updates.run(tuner.learner.engine, exp, rollouts, iteration=1, kl=0.05, policy=True)
    after = measured()
    assert torch.equal(before.reference_BR, after.reference_BR)
    assert float(kl_k1(after.logprobs_BR, before.logprobs_BR).abs().max()) > 1e-3


def test_settings_that_leave_a_step_without_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="minibatches"):
        PolicySection.model_validate({"rollouts": 8, "samples_per_prompt": 4, "minibatches": 4})
    with pytest.raises(ValueError, match="temperature"):
        PolicySection.model_validate({"sampling": {"temperature": 0.0}})


def test_a_folder_written_is_a_model_with_its_tokenizer(backbone: Make, reward_folder: Path, tmp_path: Path) -> None:
    tune(backbone("llama"), reward_folder, tmp_path, "out", settings(iterations=2))
    again = Models(tmp_path / "out", reward_folder, settings(), 0)
    assert again.tokenizer.get_vocab() == load_tokenizer(backbone("llama")).get_vocab()
    assert count_replies(PROMPTS, ["a"], [True]) == {"gold": 1.0}
