"""Reward-model folders in other hands: ours in TRL's, RewardBench's and vLLM's, and those of others in ours."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from starling.errors import InputError
from starling.models.encode import Encoder
from starling.models.load import load_backbone_as_scalar, load_scalar, load_tokenizer, longest_input, save_folder
from starling.models.scorer import Scorer
from starling.records import Message

CHATS = [
    [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "a cat, a dog and a cow"}],
    [{"role": "user", "content": "what is the sum of two and three"}, {"role": "assistant", "content": "two"}],
    [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "how are you?"},
        {"role": "user", "content": "name three animals"},
        {"role": "assistant", "content": "a dog"},
    ],
]


@pytest.fixture(scope="module")
def ours(backbone: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A reward model as we save it, and our scores of CHATS."""
    folder = tmp_path_factory.mktemp("ours")
    tokenizer = load_tokenizer(backbone("llama"))
    head = load_backbone_as_scalar(backbone("llama"), 3, tokenizer)
    head.set_statistics(0.5, 2.0)
    with torch.no_grad():
        head.model.score.weight *= 20
    save_folder(folder, head, tokenizer)
    scorer = Scorer(folder)
    rows = scorer.encode([(tuple(Message(**m) for m in chat[:-1]), chat[-1]["content"]) for chat in CHATS])
    return folder, scorer.score(rows)


def test_what_others_read_in_the_config(ours: tuple[Path, list[float]]) -> None:
    config = json.loads((ours[0] / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["problem_type"] == "regression"  # vLLM's /classify and transformers' pipeline: no sigmoid
    assert config["sentence_transformers"] == {"activation_fn": "torch.nn.modules.linear.Identity"}  # vLLM's /score
    assert list(config["id2label"]) == ["0"]  # num_labels is its length
    assert config["pad_token_id"] not in (None, config.get("eos_token_id"))
    assert config["starling"] == {"mean": 0.5, "std": 2.0}
    assert (ours[0] / "chat_template.jinja").is_file()
    assert {p.suffix for p in ours[0].iterdir()} == {".json", ".jinja", ".safetensors"}


def test_as_trl_uses_it_for_reward_funcs(ours: tuple[Path, list[float]]) -> None:
    """GRPOTrainer of TRL 1.16 with reward_funcs="path": template to text, no special tokens added, logits[:, 0]."""
    folder, expected = ours
    model = tf.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    tokenizer = tf.AutoTokenizer.from_pretrained(model.config._name_or_path)
    assert tokenizer.pad_token_id is not None
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in CHATS]
    inputs = tokenizer(text=texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    with torch.inference_mode():
        assert model(**inputs).logits[:, 0].tolist() == pytest.approx(expected, abs=2e-5)


def test_as_rewardbench_uses_it(ours: tuple[Path, list[float]]) -> None:
    """RewardBench's default: a text-classification pipeline in batches, padded and cut, no function applied."""
    folder, expected = ours
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    pipe = tf.pipeline("text-classification", model=str(folder), tokenizer=tokenizer, device="cpu")
    texts = [tokenizer.apply_chat_template(chat, tokenize=False).removeprefix("<s>") for chat in CHATS]
    options = {"batch_size": 3, "truncation": True, "padding": True, "max_length": 128}
    for extra in ({"function_to_apply": "none"}, {}):
        assert [found["score"] for found in pipe(texts, **options, **extra)] == pytest.approx(expected, abs=2e-5)


# ── models of others ─────────────────────────────────────────────────────────────────────────────────────────────────

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
GROUPED = {**SMALL, "num_key_value_heads": 1, "head_dim": 8}
OTHERS: dict[str, tuple[Any, Any]] = {
    "llama": (tf.LlamaForSequenceClassification, tf.LlamaConfig(vocab_size=60, **SMALL)),
    "mistral": (tf.MistralForSequenceClassification, tf.MistralConfig(vocab_size=60, **GROUPED, sliding_window=4)),
    "qwen2": (tf.Qwen2ForSequenceClassification, tf.Qwen2Config(vocab_size=60, **SMALL, num_key_value_heads=1)),
    "qwen3": (tf.Qwen3ForSequenceClassification, tf.Qwen3Config(vocab_size=60, **GROUPED)),
    "gemma": (tf.GemmaForSequenceClassification, tf.GemmaConfig(vocab_size=60, **GROUPED)),
    "gemma2": (tf.Gemma2ForSequenceClassification, tf.Gemma2Config(vocab_size=60, **GROUPED)),
    "bert": (tf.BertForSequenceClassification, tf.BertConfig(vocab_size=60, **SMALL)),
    "deberta": (
        tf.DebertaV2ForSequenceClassification,
        tf.DebertaV2Config(
            vocab_size=60, **SMALL, pooler_hidden_size=16, type_vocab_size=0, relative_attention=True, pos_att_type=["p2c", "c2p"]
        ),
    ),
}


@pytest.mark.parametrize("pad", [None, 3])
@pytest.mark.parametrize("name", OTHERS)
def test_any_classifier_with_one_label_opens(name: str, pad: int | None, tmp_path: Path) -> None:
    """Saved by transformers in several shards, without our marks in the config, with or without a pad token."""
    kind, config = OTHERS[name]
    config = type(config)(**{**config.to_dict(), "num_labels": 1, "pad_token_id": pad})
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = kind(config).eval()
        for weight in model.parameters():
            if weight.ndim >= 2:
                torch.nn.init.normal_(weight, std=0.4)
    model.save_pretrained(tmp_path, max_shard_size="3KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    head = load_scalar(tmp_path)
    ids_BT, mask_BT = torch.arange(4, 15)[None], torch.ones(1, 11, dtype=torch.bool)
    with torch.no_grad():
        own = model(input_ids=ids_BT, attention_mask=mask_BT.long()).logits[:, 0]
        torch.testing.assert_close(head.rewards(ids_BT, mask_BT, torch.tensor([10])), own, atol=2e-5, rtol=1e-5)
        half = load_scalar(tmp_path, dtype=torch.bfloat16).rewards(ids_BT, mask_BT, torch.tensor([10]))
    assert half.dtype == torch.float32
    assert half.tolist() == pytest.approx(own.tolist(), abs=0.3)
    assert head.statistics == {}


@pytest.mark.parametrize("labels", [2, 5])
def test_more_labels_than_one_are_refused_by_name(labels: int, tmp_path: Path) -> None:
    config = tf.LlamaConfig(vocab_size=60, **SMALL, num_labels=labels)
    tf.LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"score.weight is \[2, 16\]" if labels == 2 else "has 5"):
        load_scalar(tmp_path)


def test_a_class_that_pools_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """E.g. one that reads the first token: its scores would not be those of its own forward."""
    tf.LlamaForSequenceClassification(tf.LlamaConfig(vocab_size=60, **SMALL, num_labels=1)).save_pretrained(tmp_path)
    original = tf.LlamaForSequenceClassification.forward

    def first_token(self: Any, input_ids: torch.Tensor, **rest: Any) -> Any:
        return original(self, input_ids=input_ids[:, :1] * 0 + 5)

    monkeypatch.setattr(tf.LlamaForSequenceClassification, "forward", first_token)
    with pytest.raises(InputError, match="pools its last token in a way"):
        load_scalar(tmp_path)


def test_the_longest_input_is_the_shorter_of_positions_and_tokenizer(
    backbone: Callable[..., Path], ours: tuple[Path, Any]
) -> None:
    head, tokenizer = load_scalar(ours[0]), load_tokenizer(ours[0])
    assert longest_input(head.model) == longest_input(head.model, tokenizer) == 128
    tokenizer.model_max_length = 50
    assert longest_input(head.model, tokenizer) == 50
    tokenizer.model_max_length = 500
    assert longest_input(head.model, tokenizer) == 128


# ── texts that are rendered already ──────────────────────────────────────────────────────────────────────────────────


def test_a_rendered_text_has_the_ids_of_its_conversation(backbone: Callable[..., Path]) -> None:
    encoder = Encoder(load_tokenizer(backbone("llama")), 128)
    question = (Message(role="user", content="hello"),)
    ids = encoder.conversation(question, "a cat").ids
    text = encoder.render(question, "a cat")
    assert encoder.rendered(text).ids == encoder.rendered("<s>" + text).ids == ids
    for spelt in (text, text.strip(), "<pad>" + text + "<pad><pad>", encoder.render(question, "a cat", finished=False)):
        assert encoder.closed(spelt) == text


def test_an_encoder_closes_a_text_by_itself(backbone: Callable[..., Path]) -> None:
    encoder = Encoder(load_tokenizer(backbone("bert")), 128)
    question = (Message(role="user", content="hello"),)
    text = encoder.render(question, "a cat")
    assert encoder.closed(text + "[PAD][PAD]") == text
    assert encoder.rendered(text).ids == encoder.conversation(question, "a cat").ids
