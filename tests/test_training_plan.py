"""The plan of the trainings: sums by hand for tiny shapes, other people's numbers, the real models, and the shipped settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from starling import pipeline, plan, training_plan
from starling.config import Config, FullTraining, LastLayers, LoRA, load_config
from starling.errors import InputError
from starling.records import Message, Prompt
from starling.shapes import KNOWN, shape_of
from starling.training_plan import Needs, Unknown, cost, inputs, stages

ROOT = Path(__file__).parents[1]
FULL = FullTraining(type="full")
MISTRAL = shape_of(KNOWN["mistralai/Mistral-7B-v0.1"], "")
LLAMA = {
    "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 16, "vocab_size": 10, "tie_word_embeddings": False,
}  # fmt: skip
TINY = shape_of(LLAMA, "")
LAYER, WEIGHTS, BODY = 592, 576, 80 + 3 * 592 + 8
"""Of TINY: parameters of a layer, those of its matrices, and of the trunk."""


def settings(folder: Path, policy: str = "", reward: str = "") -> Config:
    """Tiny models, a file of 40 rankings of 3 answers: 40 characters of prompt, 80 of each answer."""
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text(json.dumps(LLAMA), "utf-8")
    answers = [{"answer": "a" * 80, "model": "m", "rank": rank} for rank in (1.0, 2.0, 3.0)]
    (folder / "rows.jsonl").write_text((json.dumps({"prompt": "p" * 40, "answers": answers}) + "\n") * 40, "utf-8")
    (folder / "run.toml").write_text(
        f'[run]\ndir = "{folder}/run"\n[prompts]\nsources = [{{ type = "file", path = "p.jsonl", name = "mine" }}]\n'
        f'[reward]\ndata = "{folder}/rows.jsonl"\nbackbone = "{folder}/model"\n{reward}\n'
        f'[policy]\nbase = "{folder}/model"\n{policy}\n',
        "utf-8",
    )
    return load_config(folder / "run.toml")


def prompts(count: int = 4) -> list[Prompt]:
    """Of 40 characters, 10 tokens."""
    return [Prompt.make((Message(role="user", content=f"{i:04}" + "x" * 36),), ("mine",)) for i in range(count)]


def needs(config: Config, stage: str) -> Needs:
    (found,) = training_plan.plan_trainings(config, [stage], prompts())
    assert isinstance(found, Needs), found
    return found


def facts(found: Needs) -> dict[str, tuple[float, float]]:
    return {fact.what: (fact.expected, fact.most) for fact in found.facts}


def held(found: Needs, processes: int = 1) -> dict[str, float]:
    return {part.what: part.on_each(processes) for part in found.held}


# ── arithmetic ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("layout", "plain", "again"), [("shared_prefix", 111, 148), ("sequences", 238, 317), ("all_pairs", 1428, 1904)]
)
def test_a_ranking_of_seven_costs_what_others_have_counted(layout: str, plain: float, again: float) -> None:
    """TFLOP of forward and backward of Mistral's trunk, 500 tokens of prompt and 300 of each answer; counted apart from this."""
    tokens, pairs = stages.ranking_cost(layout, 7, 500, 300)
    assert tokens == {"shared_prefix": 2600, "sequences": 5600, "all_pairs": 33600}[layout]
    assert cost.pass_flops(MISTRAL, FULL, False, tokens, pairs) / 1e12 == pytest.approx(plain, rel=0.01)
    assert cost.pass_flops(MISTRAL, FULL, True, tokens, pairs) / 1e12 == pytest.approx(again, rel=0.01)


def test_what_is_trained_decides_what_the_backward_pass_costs() -> None:
    forward = cost.pass_flops(TINY, None, False, 10, 50)
    assert forward == 3 * (2 * WEIGHTS * 10 + 4 * 8 * 50)
    by = {"full": FULL, "last": LastLayers(type="last_layers", layers=1), "lora": LoRA(type="lora")}
    plain = {name: cost.pass_flops(TINY, trained, False, 10, 50) / forward for name, trained in by.items()}
    again = {name: cost.pass_flops(TINY, trained, True, 10, 50) / forward for name, trained in by.items()}
    assert plain == pytest.approx({"full": 3, "last": 1 + 2 / 3, "lora": 2})
    assert again == pytest.approx({"full": 4, "last": 2, "lora": 3})


def test_replies_to_one_prompt_share_it() -> None:
    shared, apart = stages.reply_batch(8, 4, True, 10, 3), stages.reply_batch(8, 4, False, 10, 3)
    assert (shared.tokens, apart.tokens) == (2 * 10 + 8 * 3, 8 * 13)
    assert shared.pairs == 2 * 50 + 8 * (30 + 4.5)
    assert stages.reply_batch(8, 1, True, 10, 3) == stages.reply_batch(8, 1, False, 10, 3)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_layer_keeps_what_autograd_keeps(bf16: bool) -> None:
    """Bytes that a real Llama saves for its backward pass: the difference of two depths, shared tensors once, no weights."""
    import torch
    import transformers as tf

    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50}
    saved = []
    for depth in (1, 3):
        model = tf.LlamaModel(tf.LlamaConfig(num_hidden_layers=depth, **sizes))
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        numbers = {p.numel() for p in model.parameters() if p.ndim == 2}
        seen: dict[int, tuple[int, Any]] = {}

        def keep(tensor: Any, weights: set[int] = weights, numbers: set[int] = numbers, seen: dict[int, Any] = seen) -> Any:
            storage = tensor.untyped_storage()
            is_cast = tensor.dtype == torch.bfloat16 and tensor.numel() in numbers and 256 not in tensor.shape
            if storage.data_ptr() not in weights and not is_cast:
                seen[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor, so that its place is not used again
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            model(input_ids=torch.randint(0, 50, (1, 256)), use_cache=False)
        saved.append(sum(size for size, _ in seen.values()))
    shape = shape_of({**sizes, "model_type": "llama", "num_hidden_layers": 1}, "")
    assert cost.layer_bytes(shape, bf16) * 256 == pytest.approx((saved[1] - saved[0]) / 2, rel=0.02)


def test_activations_with_and_without_checkpointing() -> None:
    inside = 26 * 8 + 4 * 8 + 4 * 4 + 8 * 16
    assert cost.layer_bytes(TINY, True) == inside
    last = LastLayers(type="last_layers", layers=2)
    assert cost.activation_bytes(TINY, FULL, 5, bf16=True, again=False) == 5 * 3 * inside
    assert cost.activation_bytes(TINY, FULL, 5, bf16=True, again=True) == 5 * (3 * 4 * 8 + inside)
    assert cost.activation_bytes(TINY, last, 5, bf16=True, again=False) == 5 * 2 * inside
    assert cost.activation_bytes(TINY, LastLayers(type="last_layers", layers=0), 5, bf16=True, again=True) == 0


@pytest.mark.parametrize("trained", [FULL, LastLayers(type="last_layers", layers=1), LoRA(type="lora", rank=2)])
def test_trained_parameters_are_those_that_the_training_trains(trained: Any, backbone: Callable[..., Path]) -> None:
    from starling.models.load import load_backbone_as_scalar
    from starling.shapes import find_shape
    from starling.training.trained import TrainedPart
    from starling.training.trained import trained_parameters as really

    folder = backbone("llama")
    model = load_backbone_as_scalar(folder, 0).model
    TrainedPart(model, trained, 0)
    shape = find_shape(folder)
    assert cost.trained_parameters(shape, trained, shape.hidden) == sum(p.numel() for _, p in really(model))


def test_decoding_waits_for_bandwidth_arithmetic_or_the_host() -> None:
    device = cost.Device("d", 80, tflops=100, bandwidth=1000)
    drawn = cost.Decoding(rounds=2, replies=16, rows=4, prompt=10, reply=5, longest=8, shape=MISTRAL)
    steps = 2 * (16 * 5 / 4 + 3)  # refilled rows, then the longest reply alone
    read = (2 * 7_241_732_096 + 4 * 12.5 * 131_072) / 500e9
    assert drawn.seconds(device, 1) == pytest.approx(steps * read)
    assert drawn.seconds(device, 4) == pytest.approx(2 * (5 + 3) * read)
    slow = cost.Device("d", 80, tflops=0.1, bandwidth=1000)
    flops = 4 * 2 * (32 * (218_112_000 - 8192) + 131_072_000) + 4 * 4096 * 32 * 4 * 12.5
    assert drawn.seconds(slow, 1) == pytest.approx(steps * flops / 0.04e12)
    fast = cost.Device("d", 80, tflops=1e6, bandwidth=1e6)
    assert drawn.seconds(fast, 1) == pytest.approx(steps * 32 * 5e-4)


# ── the reward model ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_reward_stage_by_hand(tmp_path: Path) -> None:
    found = needs(settings(tmp_path, reward="rankings_per_step = 10\nepochs = 2\nvalidation_fraction = 0.1"), "reward")
    tokens = 10 + 3 * 20
    assert facts(found) == {
        "parameters": (BODY + 8,) * 2, "trained": (BODY + 8,) * 2, "rankings": (36, 36), "answers per ranking": (3, 3),
        "optimiser steps": (8, 8), "prompt tokens on average": (10, 10), "answer tokens on average": (20, 20),
        "tokens trained on": (36 * 2 * tokens,) * 2,
    }  # fmt: skip
    pairs = 50 + 3 * (200 + 200)
    forward = 3 * (2 * WEIGHTS * tokens + 4 * 8 * pairs)
    assert found.flops[0] == pytest.approx(forward * (36 * 2 * 4 + 4))  # with checkpointing; 4 held out, looked at once
    assert "first 40" in found.basis


def test_memory_of_the_reward_stage_on_one_process_and_on_two(tmp_path: Path) -> None:
    found = needs(settings(tmp_path, reward="micro_tokens = 100"), "reward")
    whole = BODY + 8
    act = 100 * (3 * 4 * 8 + cost.layer_bytes(TINY, True))
    one = {"weights": 4 * whole, "gradients": 4 * whole, "optimiser": 8 * whole, "bf16 copies of trained weights": 2 * whole,
           "two gathered layers": 0, "activations": act}  # fmt: skip
    assert held(found) == one
    assert found.bytes(1) == 18 * whole + act
    assert found.bytes(2) == 16 * whole / 2 + 4 * LAYER + act
    frozen = needs(settings(tmp_path, reward='precision = "fp32"\ntrained = { type = "last_layers", layers = 1 }'), "reward")
    assert held(frozen) | {"activations": 0} == {
        "weights": 4 * whole, "gradients": 4 * (LAYER + 8), "optimiser": 8 * (LAYER + 8), "two gathered layers": 0,
        "activations": 0,
    }  # fmt: skip


def test_a_guard_takes_its_share_of_the_rankings(tmp_path: Path) -> None:
    alone = needs(settings(tmp_path, reward="validation_fraction = 0"), "reward")
    shared = needs(settings(tmp_path, reward="validation_fraction = 0\nguard_fraction = 0.25\nrankings_per_step = 8"), "reward")
    assert facts(shared)["rankings"] == (30, 30)
    assert facts(shared)["rankings of the guard's model"] == (10, 10)
    assert facts(shared)["its optimiser steps"] == (2, 2)
    assert shared.flops == alone.flops


# ── the policy ───────────────────────────────────────────────────────────────────────────────────────────────────────

SMALL = (
    "rollouts = 8\nminibatches = 2\nepochs = 3\niterations = 10\neval_every = 4\neval_prompts = 5\nmicro_tokens = 100\n"
    "sample_batch = 6\nsampling = { max_tokens = 20 }\nguard = { best_of = 0 }\n"
)


def test_the_policy_stage_by_hand(tmp_path: Path) -> None:
    """Full training, APA, a critic of its own that has the first two iterations for itself."""
    found = needs(settings(tmp_path, SMALL + 'algorithm = "apa"'), "policy")
    whole = BODY + 80
    counted = facts(found)
    assert counted["parameters of the policy"] == (whole, whole)
    assert counted["trained of the policy"] == (whole, whole)
    assert counted["trained of the critic"] == (BODY + 8, BODY + 8)
    assert counted["of them for the critic alone"] == (2, 2)
    assert counted["optimiser steps of the policy"] == (8 * 6, 10 * 6)
    assert counted["replies per step"] == (4, 4)
    assert counted["replies sampled to evaluate"] == (4 * 2 * 5,) * 2  # before, after 4, after 8, at the end
    assert counted["tokens sampled"] == (120 * 20, 120 * 20)
    trunk = 3 * (2 * WEIGHTS * 8 * 30 + 4 * 8 * 8 * 450)
    head = 2 * 80 * 8 * 20
    first = 3 * (2 * WEIGHTS * 8 * 10 + 4 * 8 * 8 * 50)
    made = first + 2 * (trunk + head) + 2 * trunk  # policy and reference, reward model and critic
    iterations = 10 * (made + 3 * 4 * trunk) + 8 * 3 * (4 * trunk + 4 * head)  # with checkpointing, the head tiled
    look = first * 10 / 8 + (2 * (trunk + head) + trunk) * 10 / 8
    assert found.flops[0] == pytest.approx(iterations + 4 * look)
    assert found.flops[0] == found.flops[1]


def test_memory_of_the_policy_stage(tmp_path: Path) -> None:
    found = needs(settings(tmp_path, SMALL + 'algorithm = "apa"'), "policy")
    whole, scalar = BODY + 80, BODY + 8
    inside = 100 * (3 * 4 * 8 + cost.layer_bytes(TINY, True))
    row = 30 * TINY.cache_bytes(2)
    parts = held(found)
    assert parts["reference"] == 2 * whole
    assert parts["reward models"] == 4 * scalar
    assert parts["critic: optimiser"] == 8 * scalar
    assert parts["keys and values"] == 6 * row
    assert held(found, 2)["keys and values"] == 4 * row  # eight replies on two
    assert parts["logits"] == 100 * 10 * 12
    always = 18 * whole + 18 * scalar + 2 * whole + 4 * scalar + 2 * whole
    assert found.bytes(1) == always + max(6 * row, 2 * inside + 12_000)
    spread = (16 * whole + 16 * scalar) / 2 + 8 * LAYER + 2 * whole + 4 * scalar + 2 * whole
    assert found.bytes(2) == spread + max(4 * row, 2 * inside + 12_000)
    exact = needs(settings(tmp_path, SMALL + 'algorithm = "rloo"\nsamples_per_prompt = 2\nprecision = "fp32"'), "policy")
    assert "policy in bf16 to sample with" not in held(exact)
    assert [held(exact, n)["whole policy to sample with"] for n in (1, 2)] == [0, 4 * whole]


def test_adapters_need_no_reference_and_rloo_no_critic(tmp_path: Path) -> None:
    chosen = SMALL + 'samples_per_prompt = 4\nalgorithm = "rloo"\ntrained = { type = "lora", rank = 2 }'
    found = needs(settings(tmp_path, chosen), "policy")
    adapters = TINY.lora(2)
    parts = held(found)
    assert parts["weights"] == 4 * (BODY + 80 + adapters)
    assert parts["gradients"] == 4 * adapters
    assert parts["reference"] == 0
    assert not any(name.startswith("critic") for name in parts)
    assert not any("critic" in name for name in facts(found))
    assert facts(found)["prompts drawn"] == (20, 20)


def test_last_layers_keep_a_copy_of_what_is_trained(tmp_path: Path) -> None:
    chosen = SMALL + 'algorithm = "ppo"\ncritic = { trunk = "shared" }\ntrained = { type = "last_layers", layers = 1 }'
    found = needs(settings(tmp_path, chosen), "policy")
    critic = 8 * 16 + 16 + 16 + 1
    assert facts(found)["trained of the policy"] == (LAYER + 8 + 80 + critic,) * 2  # final norm and head too
    assert held(found)["weights"] == 4 * (BODY + 80 + critic)
    assert held(found)["reference"] == 2 * (LAYER + 8 + 80)
    own = needs(settings(tmp_path, chosen.replace("shared", "own")), "policy")
    assert facts(own)["trained of the critic"] == (LAYER + 8 + 8,) * 2


def test_a_shared_critic_learns_on_the_policys_passes_and_a_gate_takes_one_more(tmp_path: Path) -> None:
    """Per epoch of 8 replies; two iterations of the critic alone."""
    shared = SMALL + 'algorithm = "apa"\ncritic = { trunk = "shared"%s }'
    plain, gated, at_once = (
        needs(settings(tmp_path, shared % more), "policy").flops[0] for more in ("", ", gate = 1.0", ", pretrain = 0")
    )
    trunk = 3 * (2 * WEIGHTS * 8 * 30 + 4 * 8 * 8 * 450)
    head = 2 * 80 * 8 * 20
    assert gated - plain == pytest.approx(8 * 3 * trunk)
    assert at_once - plain == pytest.approx(2 * 3 * (3 * trunk + 4 * head))


def test_servers_that_sample_take_no_memory_here(tmp_path: Path) -> None:
    engine = 'engine = { type = "vllm", urls = ["http://127.0.0.1:8000"], weights = "w" }'
    found = needs(settings(tmp_path, SMALL + engine), "policy")
    assert found.decoding == ((), ())
    assert "keys and values" not in held(found)


def test_further_reward_models_and_a_guard_are_held_and_asked(tmp_path: Path) -> None:
    one = needs(settings(tmp_path, SMALL), "policy")
    watched = SMALL.replace("best_of = 0", 'model = "y", best_of = 0')
    three = needs(settings(tmp_path, watched + 'shaping = { models = ["x"] }'), "policy")
    assert held(three)["reward models"] == 3 * held(one)["reward models"]
    assert three.flops[0] > one.flops[0]


@pytest.mark.parametrize("trunk", ["own", "shared"])
@pytest.mark.parametrize("trained", ['"full"', '"last_layers", layers = 1', '"lora", rank = 2'])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_the_trained_parameters_of_an_actor(
    name: str, trained: str, trunk: str, backbone: Callable[..., Path], tmp_path: Path
) -> None:
    """Counted on the real policy and critic, with tied embeddings and without."""
    from starling.models.actor import build_actor
    from starling.models.load import load_causal, load_tokenizer
    from starling.training.trained import TrainedPart

    chosen = f'algorithm = "ppo"\ntrained = {{ type = {trained} }}\ncritic = {{ trunk = "{trunk}", start = "policy" }}'
    config = settings(tmp_path, SMALL + chosen)
    config = config.model_copy(update={"policy": config.policy.model_copy(update={"base": str(backbone(name))})})
    folder = backbone(name)
    actor = build_actor(load_causal(folder), config.policy.critic, folder, folder, 0, load_tokenizer(folder))
    TrainedPart(actor, config.policy.trained, 0)
    counted = facts(needs(config, "policy"))
    planned = counted["trained of the policy"][0] + counted.get("trained of the critic", (0, 0))[0]
    assert planned == sum(p.numel() for p in actor.parameters() if p.requires_grad)


def test_logits_are_tiled_as_the_head_does() -> None:
    from starling.models import lm_head

    assert cost.LOGITS_AT_ONCE == lm_head.TILE_LOGITS


def test_the_curve_of_best_of_n_is_drawn_once(tmp_path: Path) -> None:
    none = needs(settings(tmp_path, SMALL), "policy")
    three = needs(settings(tmp_path, SMALL.replace("best_of = 0", "best_of = 3")), "policy")
    assert facts(three)["replies sampled to evaluate"][0] - facts(none)["replies sampled to evaluate"][0] == 15
    prompts_once = 3 * (2 * WEIGHTS * 5 * 10 + 4 * 8 * 5 * 50)
    read = 3 * (2 * WEIGHTS * (5 * 10 + 15 * 20) + 4 * 8 * (5 * 50 + 15 * (200 + 200)))
    assert three.flops[0] - none.flops[0] == pytest.approx(prompts_once + read)
    assert [one.replies for one in three.decoding[0]] == [8, 5, 15]


# ── what is not known ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "stage", "why"),
    [
        ({"reward": {"backbone": "models/mine"}}, "reward", "reward.backbone = models/mine"),
        ({"policy": {"base": "models/mine"}}, "policy", "policy.base = models/mine"),
        ({"reward": {"data": "no/rows.parquet"}}, "reward", "reward.data = no/rows.parquet"),
        ({"reward": {"data": None}}, "reward", "without the prompts"),
    ],
)
def test_what_cannot_be_told_says_why(tmp_path: Path, change: dict[str, Any], stage: str, why: str) -> None:
    config = settings(tmp_path)
    for section, values in change.items():
        config = config.model_copy(update={section: getattr(config, section).model_copy(update=values)})
    if change.get("reward", {}).get("data"):
        config = config.model_copy(update={"reward": config.reward.model_copy(update={"data": Path("no/rows.parquet")})})
    (found,) = training_plan.plan_trainings(config, [stage], [])
    assert isinstance(found, Unknown)
    assert why in found.why
    assert training_plan.as_json([found]) == {stage: {"unknown": found.why}}


def test_a_public_dataset_has_its_size_before_it_is_there() -> None:
    assert inputs._of_data(Path("data/berkeley-nest/Nectar/data/rlaif.parquet"))[:2] == (182_954, 7)
    with pytest.raises(InputError, match="not named after"):
        inputs._of_data(Path("data/Nectar/rlaif.parquet"))


def test_rows_that_are_no_rankings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\nnot json\n', "utf-8")
    with pytest.raises(InputError, match="no answers"):
        inputs._of_data(tmp_path / "rows.jsonl")


def test_the_microworlds_base_has_the_shape_that_is_planned() -> None:
    from starling.microworld.speakers import _model_config

    config = load_config(ROOT / "configs" / "tiny.toml", ("run.dir=nowhere",))
    assert config.microworld is not None

    class Tokens:
        pad_token_id, eos_token_id = 0, 1

        def __len__(self) -> int:
            assert config.microworld is not None
            return config.microworld.vocab

    real = shape_of(json.loads(_model_config(config.microworld, Tokens()).to_json_string(use_diff=False)), "")
    planned = inputs.shape_named(config, "microworld:base", "policy.base")
    assert (planned.causal, planned.scalar, planned.linears) == (real.causal, real.scalar, real.linears)


# ── the shipped settings ─────────────────────────────────────────────────────────────────────────────────────────────


def test_starling_7b_is_the_original() -> None:
    config = load_config(ROOT / "configs" / "starling-7b.toml")
    reward, policy = training_plan.plan_trainings(config, ["reward", "policy"], [])
    assert isinstance(reward, Needs)
    assert isinstance(policy, Needs)
    assert facts(policy)["parameters of the policy"] == (7_241_748_480,) * 2
    assert facts(policy)["trained of the policy"] == (4 * 218_112_000 + 4096 + 32_002 * 4096 + 33_570_817,) * 2
    assert facts(policy)["optimiser steps of the policy"] == (10_016, 10_016)
    assert facts(policy)["replies per step"] == (28, 28)
    assert facts(policy)["replies sampled to train"] == (140_224, 140_224)
    assert facts(reward)["optimiser steps"] == (1_414, 1_414)
    fits = {device.name: (reward.fits_on(device), policy.fits_on(device)) for device in cost.DEVICES}
    assert fits["A100 SXM"] == (2, 4)
    assert fits["L40S"][1] is None


def test_small_gpu_fits_on_one_of_24_gigabytes() -> None:
    config = load_config(ROOT / "configs" / "small-gpu.toml")
    for found in training_plan.plan_trainings(config, ["reward", "policy"], []):
        assert isinstance(found, Needs)
        assert {found.fits_on(device) for device in cost.DEVICES} == {1}


@pytest.mark.parametrize("name", ["starling-7b.toml", "small-gpu.toml"])
def test_the_hours_in_the_headers_are_the_plans(name: str) -> None:
    text = (ROOT / "configs" / name).read_text("utf-8")
    config = load_config(ROOT / "configs" / name)
    header = text[: text.index("[run]")]
    for found in training_plan.plan_trainings(config, ["reward", "policy"], []):
        assert isinstance(found, Needs)
        count = 8 if name == "starling-7b.toml" else 1
        rows = [r for r in training_plan.time_rows(found) if r["device"].startswith((f"{count} x A100", f"{count} x H100"))]
        assert len(rows) == 2
        for row in rows:
            assert f"{row['hours']} h" in header, row
            assert f"{row['GB per GPU']:.0f} GB" in header, row


def test_a_plan_is_made_without_models_and_data_and_a_run_is_not() -> None:
    config = load_config(ROOT / "configs" / "starling-7b.toml")
    todo = [stage.name for stage in pipeline.needed(config)]
    missing = plan.absent(config, todo)
    assert [gone.where for gone in missing] == ["prompts.sources[0].path", "reward.data", "reward.backbone", "policy.base"]
    plan.check(config, todo, missing)
    with pytest.raises(InputError):
        plan.check(config, todo)


def test_only_what_is_missing_is_excused(tmp_path: Path) -> None:
    """A folder that is there and is no model is an error in the plan too."""
    config = settings(tmp_path)
    todo = ["reward", "policy"]
    assert plan.absent(config, todo) == []
    config = config.model_copy(update={"reward": config.reward.model_copy(update={"backbone": "gone"})})
    plan.check(config, todo, plan.absent(config, todo))
    (tmp_path / "model" / "config.json").unlink()
    assert [gone.where for gone in plan.absent(config, todo)] == ["reward.backbone"]
    with pytest.raises(InputError, match="no transformers model"):
        plan.check(config, todo, plan.absent(config, todo))
