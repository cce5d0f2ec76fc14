"""Policy tuning on tiny models: hand values of the shaping, laws of the plan, exact resume, errors."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from starling.config import APA, PPO, OptimizerSection, PolicySection
from starling.errors import InputError
from starling.models.load import load_backbone_as_scalar, load_causal, load_tokenizer, save_folder
from starling.policy import train as tuning
from starling.policy.rollout import Rollout, choose_prompts, make_experience, sample_rollouts, score_rollouts, shape_rewards
from starling.records import Message, Prompt, Sampling

PROMPTS = [Prompt.make((Message(role="user", content=f"name {n} animals"),), ("test",)) for n in "abcdefgh"]


def settings(**changes: object) -> PolicySection:
    plain: dict[str, object] = {
        "iterations": 4, "rollouts": 8, "epochs": 2, "minibatches": 2, "sampling": Sampling(max_tokens=6), "sample_batch": 8,
        "critic": {"pretrain": 1, "learning_rate": 1e-2},
        "optimizer": OptimizerSection(learning_rate=1e-2, schedule="linear", warmup_fraction=0),
        "eval_every": 2, "eval_prompts": 4, "checkpoint_every": 1, "kl": 0.05,
    }  # fmt: skip
    return PolicySection.model_validate(plain | changes)


@pytest.fixture(scope="session")
def reward_folder(backbone: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    head = load_backbone_as_scalar(backbone("llama"), 0)
    head.set_statistics(0.5, 2.0)
    save_folder(folder, head, load_tokenizer(backbone("llama")))
    return folder


def test_rewards_are_standardised_shifted_clipped_and_cut_replies_capped() -> None:
    rules = settings(shaping={"shift": 0.1, "clip": 3.0, "unfinished": -2.0})
    scores, finished = torch.tensor([2.5, 20.0, 2.5, -30.0]), torch.tensor([True, True, False, False])
    # (2.5 − 0.5)/2 + 0.1 = 1.1; 9.85 clipped to 3; a cut reply at most −2; −15.15 clipped to −3
    assert torch.allclose(shape_rewards(scores, finished, rules, 0.5, 2.0), torch.tensor([1.1, 3.0, -2.0, -3.0]))


def test_prompts_come_once_per_epoch_and_depend_on_the_iteration_only() -> None:
    seen = [p.id for i in range(4) for p in choose_prompts(PROMPTS, 6, i, seed=1)]
    assert len(seen) == 24
    for epoch in range(3):
        assert sorted(seen[8 * epoch : 8 * epoch + 8]) == sorted(p.id for p in PROMPTS)
    assert seen[:8] != seen[8:16]
    assert [p.id for p in choose_prompts(PROMPTS, 6, 2, seed=1)] == seen[12:18]


def test_experience_puts_the_score_on_the_last_token_and_the_kl_on_all(
    backbone: Callable[..., Path], reward_folder: Path
) -> None:
    models = tuning._load(backbone("llama"), reward_folder)
    rules = settings(gae_lambda=1.0, gamma=1.0)
    rollouts = sample_rollouts(models.policy, models.encoder, PROMPTS[:5], rules.sampling, 8, stream="x", seed=0)
    scores = score_rollouts(models.reward, models.reward_encoder, rollouts)
    with torch.no_grad():  # the reference is another model, so that there is a KL
        for p in models.reference.parameters():
            p.mul_(0.9)
    exp = make_experience(
        rollouts, scores, policy=models.policy, reference=models.reference, critic=models.critic, pad_id=0, settings=rules,
        reward_mean=0.5, reward_std=2.0,
    )  # fmt: skip
    shaped = shape_rewards(scores, torch.tensor([r.finished for r in rollouts]), rules, 0.5, 2.0)
    kl = torch.where(exp.mask_BT, exp.logprobs_BT - exp.reference_BT, 0.0)
    for i, r in enumerate(rollouts):
        first = r.encoded.prompt_length - 1  # the position that predicts the first token of the reply
        assert exp.mask_BT[i].nonzero()[0] == first
        assert exp.mask_BT[i].sum() == len(r.encoded.ids) - r.encoded.prompt_length
        # with γ = λ = 1 the return of the first token is the whole reward: score − 0.05 · Σ KL
        assert float(exp.returns_BT[i, first]) == pytest.approx(float(shaped[i] - 0.05 * kl[i].sum()), abs=1e-4)
        last = len(r.encoded.ids) - 2  # the position that predicts the last token: only the score and its own KL are left
        assert float(exp.returns_BT[i, last]) == pytest.approx(float(shaped[i] - 0.05 * kl[i, last]), abs=1e-4)
    assert float(kl.abs().sum()) > 0.1


def test_the_reward_model_sees_whether_a_reply_is_finished(backbone: Callable[..., Path], reward_folder: Path) -> None:
    models = tuning._load(backbone("llama"), reward_folder)
    encoded = models.encoder.completion(PROMPTS[0].messages, "a cat")
    rows = [Rollout(prompt=PROMPTS[0], encoded=encoded, text="a cat", finished=f) for f in (True, False)]
    done, cut = score_rollouts(models.reward, models.reward_encoder, rows).tolist()
    assert done != cut


@pytest.mark.parametrize(
    "algorithm", [APA(type="apa"), APA(type="apa", anchor="initial", lam=0.1, whiten=True), PPO(type="ppo", entropy=0.01)]
)
def test_a_killed_run_goes_on_to_the_same_weights(
    algorithm: APA | PPO, backbone: Callable[..., Path], reward_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str) -> dict[str, float]:
        return tuning.train(
            PROMPTS, PROMPTS[:4], base=backbone("llama"), reward=reward_folder, out=tmp_path / name,
            work=tmp_path / f"{name}-work", settings=settings(algorithm=algorithm), seed=3,
            monitor=lambda prompts, texts, finished: {"count": float(len(texts))},
        )  # fmt: skip

    metrics = run("whole")
    assert metrics["count"] == 4
    assert metrics["prompts/too_long"] == 0
    real = tuning._Tuner.iterate

    def dies(self: tuning._Tuner, prompts: list[Prompt], iteration: int) -> dict[str, float]:
        if iteration == 3:
            raise KeyboardInterrupt
        return real(self, prompts, iteration)

    monkeypatch.setattr(tuning._Tuner, "iterate", dies)
    with pytest.raises(KeyboardInterrupt):
        run("halves")
    monkeypatch.setattr(tuning._Tuner, "iterate", real)
    torch.manual_seed(99)
    run("halves")
    for file in ("model.safetensors", "log.jsonl"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "halves" / file).read_bytes()
    before = load_causal(backbone("llama")).state_dict()
    after = load_causal(tmp_path / "whole").state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before)


def test_the_critic_warms_up_before_the_policy_moves(backbone: Callable[..., Path], reward_folder: Path, tmp_path: Path) -> None:
    tuning.train(
        PROMPTS, PROMPTS[:4], base=backbone("llama"), reward=reward_folder, out=tmp_path / "out", work=tmp_path / "work",
        settings=settings(iterations=2, critic={"pretrain": 2, "learning_rate": 1e-2}), seed=0,
    )  # fmt: skip
    before, after = load_causal(backbone("llama")).state_dict(), load_causal(tmp_path / "out").state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_what_cannot_work_is_refused(backbone: Callable[..., Path], reward_folder: Path, tmp_path: Path) -> None:
    common = {"out": tmp_path / "o", "work": tmp_path / "w", "settings": settings(), "seed": 0}
    with pytest.raises(InputError, match="no prompts"):
        tuning.train([], [], base=backbone("llama"), reward=reward_folder, **common)  # type: ignore[arg-type]
    bare = tmp_path / "bare"
    save_folder(bare, load_backbone_as_scalar(backbone("llama"), 0), load_tokenizer(backbone("llama")))
    with pytest.raises(InputError, match="no score statistics"):
        tuning.train(PROMPTS, [], base=backbone("llama"), reward=bare, **common)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="No prompt leaves room"):
        tuning.train(
            PROMPTS,
            [],
            base=backbone("llama"),
            reward=reward_folder,
            **{**common, "settings": settings(sampling=Sampling(max_tokens=127))},
        )  # type: ignore[arg-type]
    with pytest.raises(InputError, match="does not exist"):
        tuning.train(PROMPTS, [], base=tmp_path / "none", reward=reward_folder, **common)  # type: ignore[arg-type]
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("algorithm", [APA(type="apa"), PPO(type="ppo")])
def test_a_step_does_not_depend_on_how_it_is_split_into_passes(
    algorithm: APA | PPO, backbone: Callable[..., Path], reward_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights() -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        models = tuning._load(backbone("llama"), reward_folder)
        tuner = tuning._Tuner(models, settings(algorithm=algorithm, critic={"pretrain": 0}, epochs=1), 0, tmp_path)
        metrics = tuner.iterate(PROMPTS, 1)
        return {**models.policy.state_dict(), **{f"critic.{k}": v for k, v in models.critic.state_dict().items()}}, metrics

    by_length, metrics_a = weights()
    monkeypatch.setattr(tuning, "similar_lengths", lambda lengths: [[i] for i in range(len(lengths))])
    one_by_one, metrics_b = weights()
    for name, value in by_length.items():
        # Adam's first steps turn gradients near 0 into full steps of lr 1e-2: compare to a small share of that
        assert torch.allclose(value, one_by_one[name], atol=1e-4), name
    assert metrics_a == pytest.approx(metrics_b, abs=1e-4)


def test_prompts_without_room_for_a_reply_are_left_out_and_counted(
    backbone: Callable[..., Path], reward_folder: Path, tmp_path: Path
) -> None:
    long = Prompt.make((Message(role="user", content="animals " * 200),), ("test",))
    metrics = tuning.train(
        [*PROMPTS, long], [*PROMPTS[:2], long], base=backbone("llama"), reward=reward_folder, out=tmp_path / "out",
        work=tmp_path / "work", settings=settings(iterations=1, critic={"pretrain": 0, "learning_rate": 1e-2}), seed=0,
        monitor=lambda prompts, texts, finished: {"count": float(len(texts))},
    )  # fmt: skip
    assert metrics["prompts/too_long"] == 1
    assert metrics["count"] == 2


def test_losses_of_the_first_update_by_hand(backbone: Callable[..., Path], reward_folder: Path, tmp_path: Path) -> None:
    """One pass, one step: new values and log-probabilities are still the old ones, so the means are known."""
    apa = APA(type="apa", lam=2.0)
    rules = settings(algorithm=apa, epochs=1, minibatches=1, critic={"pretrain": 0, "learning_rate": 1e-2})
    models = tuning._load(backbone("llama"), reward_folder)
    tuner = tuning._Tuner(models, rules, 0, tmp_path)
    rollouts = tuner._sample(PROMPTS, "x", 1.0)
    scores = score_rollouts(models.reward, models.reward_encoder, rollouts)
    exp = make_experience(
        rollouts, scores, policy=models.policy, reference=models.reference, critic=models.critic, pad_id=0, settings=rules,
        reward_mean=0.5, reward_std=2.0,
    )  # fmt: skip
    mask = exp.mask_BT
    # values move before the policy loss is computed only through the optimiser, which steps after both
    found = tuner._update(exp, torch.arange(len(rollouts)), True, rollouts, 1)
    assert found["value_loss"] == pytest.approx(float(0.5 * ((exp.values_BT - exp.returns_BT)[mask] ** 2).mean()), rel=1e-4)
    assert found["policy_loss"] == pytest.approx(float(((exp.advantages_BT / 2.0)[mask] ** 2).mean()), rel=1e-3)


def test_the_anchor_of_apa_is_the_policy_that_sampled_or_the_initial_one(
    backbone: Callable[..., Path], reward_folder: Path, tmp_path: Path
) -> None:
    losses = {}
    for anchor in ("rollout", "initial"):
        models = tuning._load(backbone("llama"), reward_folder)
        tuner = tuning._Tuner(models, settings(algorithm=APA(type="apa", anchor=anchor)), 0, tmp_path)  # type: ignore[arg-type]
        with torch.no_grad():  # the policy has moved away from where it began
            for p in models.policy.parameters():
                p.mul_(0.9)
        rollouts = tuner._sample(PROMPTS, "x", 1.0)
        exp = make_experience(
            rollouts, torch.zeros(len(rollouts)), policy=models.policy, reference=models.reference, critic=models.critic,
            pad_id=0, settings=tuner.settings, reward_mean=0.0, reward_std=1.0,
        )  # fmt: skip
        mask = exp.mask_BT
        centre = exp.logprobs_BT if anchor == "rollout" else exp.reference_BT
        by_hand = ((exp.logprobs_BT - centre - exp.advantages_BT)[mask] ** 2).mean()
        losses[anchor] = float(tuner._policy_loss(exp, int(mask.sum())).loss.detach())
        assert losses[anchor] == pytest.approx(float(by_hand), rel=1e-3)
    assert losses["rollout"] != pytest.approx(losses["initial"], rel=1e-2)
