"""The public layouts: random checkpoints score here as under the cards' own procedure, which is written anew below."""

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from starling.errors import InputError, UsageError
from starling.models.load import load_scalar, load_tokenizer, save_folder
from starling.models.public_layouts import TEMPLATES, export, place, read_weights
from starling.models.scorer import Scorer, score_conversations
from starling.records import Message

WORDS = ["hello", "there", "what", "is", "two", "and", "three", "a", "cat", "dog", "five"]


def llama_tokenizer(byte_fallback: bool = True, chatml: bool = False) -> Any:
    """As Llama-2's: <unk> 0, <s> 1, </s> 2, blanks as ▁, one <s> added in front. As Yi's: without it, with <|im_…|>."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted({c for word in WORDS for c in word} | set("[]INST/"))
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *letters]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        left = "▁"
        for c in word:
            if left + c not in pieces:
                pieces.append(left + c)
                merges.append((left, c))
            left += c
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=byte_fallback))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    if not chatml:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    if chatml:
        fast.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})
    return fast


class CardModel(torch.nn.Module):
    """The 7B card's module: a causal model, its trunk a second time, a head; read at the last token before the first pad."""

    def __init__(self, causal: Any, pad_id: int) -> None:
        super().__init__()
        self.model = causal
        self.transformer = causal.model
        self.v_head = torch.nn.Linear(causal.config.hidden_size, 1, bias=False)
        self.pad_id = pad_id

    def forward(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> list[float]:
        rewards_BT = self.v_head(self.transformer(ids_BT, attention_mask=mask_BT)[0]).squeeze(-1)
        scores = []
        for ids_T, rewards_T in zip(ids_BT, rewards_BT, strict=True):
            pads = (ids_T == self.pad_id).nonzero()
            scores.append(float(rewards_T[(int(pads[0]) if len(pads) else len(ids_T)) - 1]))
        return scores


def card_scores(model: CardModel, tokenizer: Any, texts: list[str], longest: int = 2048) -> list[float]:
    """The card's get_reward: pad is unk, cut on the left, padded to the full length (here to the longest, to save time)."""
    tokenizer.pad_token, tokenizer.truncation_side, tokenizer.padding_side = "<unk>", "left", "right"
    batch = tokenizer(texts, truncation=True, max_length=longest, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(batch["input_ids"], batch["attention_mask"])


def random_model(tokenizer: Any, positions: int = 4096) -> CardModel:
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=positions, pad_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = CardModel(transformers.LlamaForCausalLM(config), 0).eval()
        for weight in model.parameters():
            if weight.ndim == 2:
                torch.nn.init.normal_(weight, std=0.3)
    return model


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> tuple[CardModel, Any, Path, Path]:
    """The model, its tokenizer, the checkpoint as published (a folder with one .pt) and the base folder."""
    folder = tmp_path_factory.mktemp("seven")
    tokenizer = llama_tokenizer()
    model = random_model(tokenizer)
    save_folder(folder / "base", model.model, tokenizer)
    (folder / "public").mkdir()
    torch.save(model.state_dict(), folder / "public" / "starling-rm.pt")
    return model, tokenizer, folder / "public", folder / "base"


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


THREE = (*user("hello there"), Message(role="assistant", content="what is two"), Message(role="user", content="five"))
CONVERSATIONS = [
    (user("what is two and three"), "five", True),
    (user("hello é 世"), "a cat and a dog", True),
    (THREE, "three", True),
    (user("a cat " * 900), "a dog " * 300, True),  # over 2,048 tokens
]
TEXTS = [
    "[INST] what is two and three [/INST] five</s>",
    "[INST] hello é 世 [/INST] a cat and a dog</s>",
    "[INST] hello there [/INST] what is two</s>[INST] five [/INST] three</s>",
    "[INST] " + "a cat " * 900 + " [/INST] " + "a dog " * 300 + "</s>",
]


def test_a_checkpoint_in_the_7b_layout_scores_as_its_card_does(seven: tuple[Any, ...], tmp_path: Path) -> None:
    model, tokenizer, public, base = seven
    expected = card_scores(model, tokenizer, TEXTS)
    assert len(tokenizer(TEXTS[3])["input_ids"]) > 2048
    assert expected[3] != pytest.approx(card_scores(model, tokenizer, TEXTS[3:], 4096)[0], abs=1e-3), "the cut must matter"

    done = export(public, tmp_path / "rm", base=base)
    assert (done.template, done.pad_token, done.dtype) == ("llama-2", "<unk>", "float32")
    assert set(done.left_out) == {"model.lm_head.weight"}
    assert score_conversations(tmp_path / "rm", CONVERSATIONS) == pytest.approx(expected, abs=2e-5)

    # and with transformers alone: the class, the pipeline, the template
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    own = transformers.AutoTokenizer.from_pretrained(tmp_path / "rm")
    assert (theirs.config.num_labels, theirs.config.problem_type, theirs.config.architectures) == (
        1, "regression", ["LlamaForSequenceClassification"],
    )  # fmt: skip
    batch = own(TEXTS, truncation=True, padding=True, return_tensors="pt")  # the tokenizer knows 2,048 and the left side
    with torch.no_grad():
        assert theirs(**batch).logits[:, 0].tolist() == pytest.approx(expected, abs=2e-5)
    turns = [{"role": m.role, "content": m.content} for m in CONVERSATIONS[2][0]] + [{"role": "assistant", "content": "three"}]
    assert own.apply_chat_template(turns, tokenize=False) == "<s>" + TEXTS[2]
    assert own.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True) == "<s>[INST] hello there [/INST]"
    pipe = transformers.pipeline("text-classification", model=str(tmp_path / "rm"), device="cpu")
    assert [r["score"] for r in pipe(TEXTS[:3], batch_size=3)] == pytest.approx(expected[:3], abs=2e-5)


@pytest.mark.parametrize("form", ["prefixed", "trunk_only", "nested", "file", "half", "rotary"])
def test_other_spellings_of_the_7b_layout(form: str, seven: tuple[Any, ...], tmp_path: Path) -> None:
    model, tokenizer, _, base = seven
    expected = card_scores(model, tokenizer, TEXTS[:3])
    state: dict[str, Any] = dict(model.state_dict())
    source = tmp_path / "rm.bin"
    if form == "prefixed":
        state = {f"module._orig_mod.{name}": weight for name, weight in state.items()}
    elif form in ("trunk_only", "half"):
        state = {name: weight for name, weight in state.items() if name.startswith(("transformer.", "v_head."))}
    elif form == "nested":
        state = {"state_dict": state}
    elif form == "rotary":
        state["transformer.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    if form == "half":
        state = {name: weight.to(torch.float16) for name, weight in state.items()}
    torch.save(state, source)
    done = export(source, tmp_path / "rm", base=base)
    tolerance = 2e-5
    if form == "half":
        assert done.dtype == "float16"
        tolerance = 0.2
    assert score_conversations(tmp_path / "rm", CONVERSATIONS[:3]) == pytest.approx(expected, abs=tolerance)


def test_shards_hold_the_same_and_no_more_than_asked(seven: tuple[Any, ...], tmp_path: Path) -> None:
    _, _, public, base = seven
    export(public, tmp_path / "whole", base=base)
    export(public, tmp_path / "parts", base=base, shard_bytes=20_000)
    files = sorted((tmp_path / "parts").glob("*.safetensors"))
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    assert len(files) > 2
    assert all(sum(t.numel() * 4 for t in load_file(f).values()) <= 20_000 or len(load_file(f)) == 1 for f in files)
    parts = {name: tensor for f in files for name, tensor in load_file(f).items()}
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in whole.values())
    two = CONVERSATIONS[:2]
    assert score_conversations(tmp_path / "parts", two) == score_conversations(tmp_path / "whole", two)
    assert load_scalar(tmp_path / "parts").statistics == {}
    assert "Mean and standard deviation of its scores: unknown" in (tmp_path / "parts" / "README.md").read_text()


def test_the_34b_layout(tmp_path: Path) -> None:
    tokenizer = llama_tokenizer(chatml=True)
    model = random_model(tokenizer)
    source = tmp_path / "public"
    model.model.config.pad_token_id = 0
    save_folder(source, model.model, tokenizer)  # config and tokenizer; the weights are replaced
    (source / "model.safetensors").unlink()
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForSequenceClassification"]}))
    state = {name: w.clone() for name, w in model.state_dict().items() if name.startswith(("transformer.", "v_head."))}
    names = sorted(state)
    for number, part in enumerate((names[:5], names[5:])):
        save_file({name: state[name] for name in part}, source / f"model-0000{number + 1}-of-00002.safetensors")
    places = {name: f"model-0000{1 + (name in names[5:])}-of-00002.safetensors" for name in names}
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))

    with pytest.raises(InputError, match="export-reward"):
        load_scalar(source)
    done = export(source, tmp_path / "rm")
    assert (done.template, done.pad_token, done.left_out) == ("chatml", "<unk>", ())
    texts = [
        "<|im_start|>user\nwhat is two and three<|im_end|>\n<|im_start|>assistant\nfive<|im_end|>",
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\na cat and a dog<|im_end|>",
    ]
    expected = card_scores(model, tokenizer, texts)
    conversations = [(user("what is two and three"), "five", True), (user("hello"), "a cat and a dog", True)]
    assert score_conversations(tmp_path / "rm", conversations) == pytest.approx(expected, abs=2e-5)


def test_a_pad_token_that_no_text_can_turn_into(tmp_path: Path) -> None:
    tokenizer = llama_tokenizer(byte_fallback=False)  # here every unknown letter is <unk>
    model = random_model(tokenizer)
    save_folder(tmp_path / "base", model.model, tokenizer)
    torch.save(model.state_dict(), tmp_path / "rm.pt")
    done = export(tmp_path / "rm.pt", tmp_path / "rm", base=tmp_path / "base")
    assert done.pad_token == "<|pad|>"
    own = load_tokenizer(tmp_path / "rm")
    assert own.pad_token_id == len(tokenizer) == own.vocab_size
    assert load_scalar(tmp_path / "rm").model.get_input_embeddings().num_embeddings == len(tokenizer) + 1
    known = [(user("what is two and three"), "five", True)]
    assert score_conversations(tmp_path / "rm", known) == pytest.approx(card_scores(model, tokenizer, TEXTS[:1]), abs=2e-5)
    # the departure: the card reads the score before the first unknown letter, we read it at the end
    ours = score_conversations(tmp_path / "rm", [(user("hello ξ"), "five", True)])[0]
    card = card_scores(model, tokenizer, ["[INST] hello ξ [/INST] five</s>"])[0]
    assert card == pytest.approx(card_scores(model, tokenizer, ["[INST] hello "])[0], abs=2e-5)
    assert ours != pytest.approx(card, abs=1e-3)


def test_no_system_turns_under_the_llama_2_template(seven: tuple[Any, ...], tmp_path: Path) -> None:
    export(seven[2], tmp_path / "rm", base=seven[3])
    system = Message(role="system", content="be short")
    with pytest.raises(InputError, match="no system turn"):
        score_conversations(tmp_path / "rm", [((system, *user("hello")), "five", True)])
    assert set(TEMPLATES) == {"llama-2", "chatml"}


def test_the_command(seven: tuple[Any, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from starling.cli import call

    arguments = ["export-reward", str(seven[2]), str(tmp_path / "rm"), "--base", str(seven[3])]
    assert call([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "out": str(tmp_path / "rm"), "weights": 21, "left_out": ["model.lm_head.weight"], "template": "llama-2",
        "pad_token": "<unk>", "dtype": "float32",
    }  # fmt: skip
    assert call(arguments) == 2
    assert "something already" in capsys.readouterr().err
    assert call([*arguments[:2], str(tmp_path / "b"), *arguments[3:], "--template", "chatml"]) == 0
    assert "template chatml, pad token <unk>; left out: model.lm_head.weight" in capsys.readouterr().out


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


def changed(model: CardModel, name: str) -> dict[str, Any]:
    state: dict[str, Any] = {n: w for n, w in model.state_dict().items() if n.startswith(("transformer.", "v_head."))}
    match name:
        case "no head":
            del state["v_head.weight"]
        case "a layer is missing":
            del state["transformer.layers.1.mlp.up_proj.weight"]
        case "unknown":
            state["transformer.layers.2.mlp.up_proj.weight"] = torch.zeros(48, 32)
        case "shape":
            state["v_head.weight"] = torch.zeros(2, 32)
        case "vocabulary":
            state["transformer.embed_tokens.weight"] = torch.zeros(7, 32)
        case "two trunks":
            state["model.model.norm.weight"] = state["transformer.norm.weight"] + 1
        case "no tensor":
            state["step"] = 7
        case "standard":
            state["score.weight"] = state.pop("v_head.weight")
    return state


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no head", "lacks v_head.weight"),
        ("a layer is missing", "lacks model.layers.1.mlp.up_proj.weight"),
        ("unknown", "unknown weights: transformer.layers.2.mlp.up_proj.weight"),
        ("shape", r"v_head.weight|score.weight is \[2, 32\], not \[1, 32\]"),
        ("vocabulary", r"model.embed_tokens.weight is \[7, 32\]"),
        ("two trunks", "model.model.norm.weight differs from its other copy"),
        ("no tensor", "no state dict: step is no tensor"),
        ("standard", "a standard reward folder already"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(name: str, said: str, seven: tuple[Any, ...], tmp_path: Path) -> None:
    torch.save(changed(seven[0], name), tmp_path / "rm.pt")
    with pytest.raises(InputError, match=said):
        export(tmp_path / "rm.pt", tmp_path / "out", base=seven[3])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rm.pt"], "nothing half-written stays"


class _Opens:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"v_head.weight": torch.zeros(1, 4), "x": _Opens(tmp_path / "pwned")}, tmp_path / "rm.pt")
    with pytest.raises(InputError, match="would run code"):
        read_weights(tmp_path / "rm.pt")
    (tmp_path / "old.bin").write_bytes(pickle.dumps({"x": _Opens(tmp_path / "pwned")}, protocol=2))
    with pytest.raises(InputError):
        read_weights(tmp_path / "old.bin")
    assert not (tmp_path / "pwned").exists()


def test_files_that_are_no_weights(seven: tuple[Any, ...], tmp_path: Path) -> None:
    _, _, public, base = seven
    with pytest.raises(InputError, match="no weights here"):
        read_weights(tmp_path)
    half = (public / "starling-rm.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(half[: len(half) // 2])
    with pytest.raises(InputError, match="damaged"):
        read_weights(tmp_path / "half.pt")
    (tmp_path / "a.safetensors").write_bytes(b"\x10")
    with pytest.raises(InputError, match="safetensors file is damaged"):
        read_weights(tmp_path / "a.safetensors")
    save_file({"v_head.weight": torch.zeros(1, 4, dtype=torch.int8)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="I8"):
        read_weights(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="--base DIR"):
        export(public, tmp_path / "out")
    with pytest.raises(UsageError, match="no template 'vicuna'"):
        export(public, tmp_path / "out", base=base, template="vicuna")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UsageError, match="something already"):
        export(public, tmp_path / "out", base=base)


def test_equal_names_under_different_wrappers(seven: tuple[Any, ...], tmp_path: Path) -> None:
    torch.save({"module.v_head.weight": torch.zeros(1, 2), "v_head.weight": torch.ones(1, 2)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="same name"):
        place(read_weights(tmp_path / "a.pt"), {}, "a.pt")


# ── adapters ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def adapter(backbone: Callable[..., Path], tmp_path: Path) -> Iterator[tuple[Path, list[float]]]:
    """A LoRA reward model on a tiny llama with random weights, and its own scores."""
    import peft

    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(backbone("llama"), num_labels=1)
        adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "v_proj"]))
        for name, weight in adapted.named_parameters():
            if "lora_" in name or "score" in name:
                torch.nn.init.normal_(weight, std=0.3)
    adapted.eval().save_pretrained(tmp_path / "adapter")
    tokenizer = load_tokenizer(backbone("llama"))
    from starling.models.encode import Encoder

    rows = Encoder(tokenizer, 128).conversations([(user("hello"), "a cat", True), (user("hello"), "a dog and a cow", True)])
    with torch.no_grad():
        yield tmp_path / "adapter", [float(adapted(input_ids=torch.tensor([row.ids])).logits[0, 0]) for row in rows]


def test_an_adapter_is_merged_and_exported(
    adapter: tuple[Path, list[float]], backbone: Callable[..., Path], tmp_path: Path
) -> None:
    folder, expected = adapter
    export(folder, tmp_path / "rm", base=backbone("llama"))
    found = score_conversations(tmp_path / "rm", [(user("hello"), "a cat", True), (user("hello"), "a dog and a cow", True)])
    assert found == pytest.approx(expected, abs=2e-5)
    scorer = Scorer(folder)  # its own settings name the base, which has the tokenizer
    assert scorer.score(scorer.encode([(user("hello"), "a cat")])) == pytest.approx(expected[:1], abs=2e-5)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "someone/llama"}))
    with pytest.raises(InputError, match=r"'someone/llama' is no folder here.*--base DIR"):
        load_scalar(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        load_scalar(folder)


@pytest.mark.parametrize(("left", "said"), [("no head", "no reward head"), ("foreign", "its base has not")])
def test_an_adapter_without_its_head_or_of_another_model(
    left: str, said: str, adapter: tuple[Path, list[float]], backbone: Callable[..., Path]
) -> None:
    folder = adapter[0]
    weights = load_file(folder / "adapter_model.safetensors")
    if left == "no head":
        weights = {name: w for name, w in weights.items() if "score" not in name}
    else:
        weights["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.zeros(2, 32)
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match=said):
        load_scalar(folder, backbone("llama"))
