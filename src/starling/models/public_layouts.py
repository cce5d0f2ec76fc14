"""Reward models in the layouts of the public Starling-RM checkpoints, written anew in the standard layout.

Source: the model cards of berkeley-nest/Starling-RM-7B-alpha and Nexusflow/Starling-RM-34B. Both put a linear layer `v_head`
without bias on the last hidden state of a Llama and read it at the last token before the first pad id; texts are cut on the
left to 2,048 tokens.

    7B    a torch state dict (.pt, .bin) of a plain module that holds the language model twice: as `model` (LlamaForCausalLM)
          and, its trunk, as `transformer`; config and tokenizer are those of Llama-2-7b-chat; pad is the unknown token, id 0
    34B   safetensors shards with `transformer.*` and `v_head.weight` beside a config that calls the class
          LlamaForSequenceClassification, which it is not for transformers; ChatML; pad id 0

Written are `model.*` and `score.weight` as *ForSequenceClassification reads them, one shard in memory at a time.

Departures: every weight must be there, once, in the shape that the config says (the 7B's card loads with strict=False, which
keeps random weights in silence); the scored token is the last one, found by lengths, also where a text spells the pad
token; a conversation begins with one BOS (the card's sample text gets two); the language-model head is left out.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from starling.errors import InputError, UsageError
from starling.models.load import (
    PAD_TOKEN,
    declare_reward,
    is_adapter,
    load_config,
    load_reward_tokenizer,
    load_scalar,
    load_tokenizer,
    reward_class,
    save_folder,
)
from starling.progress import SILENT, Progress

LONGEST = 2048
"""Tokens that the public models were used with."""
SHARD_BYTES = 4 * 2**30
TEMPLATES = {
    "llama-2": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) or message['role'] not in ['user', 'assistant'] %}"
        "{{ raise_exception('This template has turns of user and assistant in alternation, and no system turn') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
        "{% if not loop.last or add_generation_prompt %}{{ '\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
}
"""[INST] u [/INST] a</s> for every exchange after one BOS (the 7B), and ChatML (the 34B)."""

_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")  # of DDP and DeepSpeed, torch.compile, FSDP
_TRUNKS = ("transformer.", "model.model.", "model.")
_HEAD = "v_head.weight"
_LM_HEADS = ("model.lm_head.weight", "lm_head.weight")
_NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt")
_PROBE = "\u00e9\u4e16\ue0a0\U0001f9ff\U00010348\x07\u0f00"


@dataclass(frozen=True)
class Weight:
    """One tensor on disk: its shape, its bytes, and how to read it."""

    shape: tuple[int, ...]
    bytes: int
    read: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Exported:
    """What an export did: the names that were left out and why the pad token is the one it is."""

    weights: int
    left_out: tuple[str, ...]
    template: str
    pad_token: str
    dtype: str


def export(
    source: Path,
    out: Path,
    *,
    base: Path | None = None,
    template: str | None = None,
    progress: Progress = SILENT,
    shard_bytes: int = SHARD_BYTES,
) -> Exported:
    """Write a reward model in the standard layout: a public one of the layouts above, or a peft adapter merged into its base.

    Args:
        source: the torch file, or the folder that holds it, safetensors shards or an adapter.
        out: a folder that does not exist yet or is empty.
        base: folder with the config and the tokenizer (of an adapter: the base model), where `source` has none of its own.
        template: one of TEMPLATES; if None, ChatML for a tokenizer that knows <|im_start|>, else Llama-2's.

    Raises:
        UsageError: `out` holds something, or there is no such template.
        InputError: the source is none of these, is damaged, or has a weight too few, too many or of a wrong shape.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("There is something already", where=str(out), cure="name a new folder")
    if template is not None and template not in TEMPLATES:
        raise UsageError(f"There is no template '{template}'", where="--template", cure=f"use one of {', '.join(TEMPLATES)}")
    draft = out.with_name(out.name + ".part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        done = (_export_adapter if is_adapter(source) else _export_public)(source, draft, base, template, progress, shard_bytes)
        if out.exists():
            out.rmdir()
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return done


# ── the public layouts ───────────────────────────────────────────────────────────────────────────────────────────────


def _export_public(
    source: Path, out: Path, base: Path | None, template: str | None, progress: Progress, shard_bytes: int
) -> Exported:
    weights = read_weights(source)
    if "score.weight" in weights and _HEAD not in weights:
        raise InputError(
            "This is a standard reward folder already", where=str(source), cure="use it as it is; there is nothing to export"
        )
    home = base or (source if (source / "config.json").is_file() else None)
    if home is None:
        raise InputError(
            "The checkpoint has weights only, no config and no tokenizer",
            where=str(source),
            cure="name the folder of its base model (for Starling-RM-7B-alpha: Llama-2-7b-chat-hf): --base DIR",
        )
    config, tokenizer = load_config(home), load_tokenizer(home)
    declare_reward(config)
    name, expected = reward_class(config)
    placed, left_out = place(weights, expected, str(source))
    chosen = template or ("chatml" if "<|im_start|>" in tokenizer.get_vocab() else "llama-2")
    pad_token = _prepare(tokenizer, chosen)
    table = next(name for name in placed if name.endswith("embed_tokens.weight"))
    missing_rows = max(0, tokenizer.pad_token_id + 1 - placed[table].shape[0])
    if missing_rows:
        placed[table] = _with_rows(placed[table], missing_rows)
    config.vocab_size = placed[table].shape[0]
    config.pad_token_id = tokenizer.pad_token_id
    config.architectures = [name]
    dtype = next(iter(placed.values())).read().dtype
    config.dtype = dtype
    _write_shards(out, placed, shard_bytes, progress)
    config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    done = Exported(len(placed), tuple(left_out), chosen, pad_token, str(dtype).removeprefix("torch."))
    (out / "README.md").write_text(_card(source, home, done), "utf-8")
    return done


def place(
    weights: Mapping[str, Weight], expected: Mapping[str, tuple[int, ...]], where: str
) -> tuple[dict[str, Weight], list[str]]:
    """Which weight of a public checkpoint belongs where in the standard layout.

    Args:
        weights: by their names in the checkpoint.
        expected: shapes by their names in the standard layout, e.g. {"model.norm.weight": (4096,), "score.weight": (1, 4096)}.
        where: for messages.

    Returns:
        All expected names, in their order, and the names that are left out: the language-model head and rotary tables, which
        follow from the config.

    Raises:
        InputError: a weight is missing, unknown or of another shape, or the two copies of the trunk differ.
    """
    bare = {_without_wrappers(name): weight for name, weight in weights.items()}
    if len(bare) < len(weights):
        raise InputError("Two weights have the same name without their wrappers", where=where, cure="export it again")
    placed: dict[str, Weight] = {}
    left_out: list[str] = []
    unknown: list[str] = []
    for name, weight in bare.items():
        target = _target(name, expected)
        if target is None:
            (left_out if name in _LM_HEADS or name.endswith(".rotary_emb.inv_freq") else unknown).append(name)
        elif target in placed and not _same(placed[target], weight):
            raise InputError(
                f"The trunk is there twice, and {name} differs from its other copy", where=where, cure="keep only transformer.*"
            )
        else:
            placed.setdefault(target, weight)
    missing = [name for name in expected if name not in placed]
    shapes = [
        f"{name} is {list(placed[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in placed and placed[name].shape != shape
    ]
    for said, names in (("lacks", missing), ("has unknown weights:", unknown), ("does not fit the config:", shapes)):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            listed = ", ".join(_HEAD if name == "score.weight" else name for name in names[:4])
            raise InputError(
                f"The checkpoint {said} {listed}{more}",
                where=where,
                cure="give all its files, and with --base the folder of the very model that it was trained from",
            )
    return {name: placed[name] for name in expected}, left_out


def _without_wrappers(name: str) -> str:
    while True:
        bare = name
        for wrapper in _WRAPPERS:
            bare = bare.removeprefix(wrapper).replace("." + wrapper, ".")
        if bare == name:
            return name
        name = bare


def _target(name: str, expected: Mapping[str, Any]) -> str | None:
    """The place of a public name in the standard layout: transformer.norm.weight → model.norm.weight, v_head → score."""
    if name == _HEAD:
        return "score.weight"
    for trunk in _TRUNKS:
        target = "model." + name.removeprefix(trunk)
        if name.startswith(trunk) and target in expected:
            return target
    return None


def _same(a: Weight, b: Weight) -> bool:
    if a.shape != b.shape:
        return False
    one, other = a.read(), b.read()
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other)


def _prepare(tokenizer: Any, template: str) -> str:
    """Template, cut and pad token of the tokenizer; returns the pad token.

    The original pads with the unknown token. It stays where the tokenizer falls back to bytes, so that no text turns into it;
    else a token of its own is added.
    """
    tokenizer.chat_template = TEMPLATES[template]
    for side, value in (("truncation_side", "left"), ("padding_side", "right")):
        setattr(tokenizer, side, value)
        tokenizer.init_kwargs[side] = value  # what save_pretrained writes; it does not look at the attributes
    tokenizer.model_max_length = LONGEST
    unknown = tokenizer.unk_token_id
    safe = unknown is not None and unknown != tokenizer.eos_token_id and unknown not in tokenizer(_PROBE)["input_ids"]
    if safe:
        tokenizer.pad_token = tokenizer.unk_token
    else:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    return str(tokenizer.pad_token)


def _with_rows(table: Weight, rows: int) -> Weight:
    """An embedding table with rows of zeros at its end, for tokens that no text holds."""
    width = table.shape[1]

    def read() -> torch.Tensor:
        old = table.read()
        return torch.cat([old, torch.zeros(rows, width, dtype=old.dtype)])

    return Weight((table.shape[0] + rows, width), table.bytes * (table.shape[0] + rows) // table.shape[0], read)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_weights(source: Path) -> dict[str, Weight]:
    """The weights of a torch file, or of all torch files or all safetensors files of a folder; nothing is in memory yet.

    Raises:
        InputError: there is none, one is damaged, holds more than tensors, or two hold the same name.
    """
    if source.is_dir():
        files = sorted(source.glob("*.safetensors")) or [
            path
            for path in sorted(source.iterdir())
            if path.suffix in (".pt", ".bin", ".pth") and path.name not in _NO_WEIGHTS and not path.name.startswith("rng_state")
        ]
    else:
        files = [source] if source.is_file() else []
    if not files:
        raise InputError(
            "There are no weights here", where=str(source), cure="name a .pt or .bin file, or a folder of those or of safetensors"
        )
    found: dict[str, Weight] = {}
    for path in files:
        for name, weight in (_safetensors(path) if path.suffix == ".safetensors" else _torch_file(path)).items():
            if name in found:
                raise InputError(f"The weight {name} is in two files", where=str(path), cure="keep the files of one checkpoint")
            found[name] = weight
    return found


def _safetensors(path: Path) -> dict[str, Weight]:
    def reader(name: str) -> Callable[[], torch.Tensor]:
        def read() -> torch.Tensor:
            with safe_open(str(path), framework="pt") as file:
                return cast(torch.Tensor, file.get_tensor(name))

        return read

    try:
        with safe_open(str(path), framework="pt") as file:
            header = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: (tuple(part.get_shape()), str(part.get_dtype())) for name, part in header.items()}
    except Exception as error:  # safetensors raises a class of its own for a bad header
        raise InputError(f"The safetensors file is damaged: {error}", where=str(path), cure="download it again") from None
    width = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
    odd = [name for name, (_, kind) in shapes.items() if kind not in width]
    if odd:
        raise InputError(
            f"The weight {odd[0]} is {shapes[odd[0]][1]}, no floating-point type of 16 to 64 bits",
            where=str(path),
            cure="export the original, not a quantised copy",
        )
    return {
        name: Weight(shape, width[kind] * int(torch.Size(shape).numel()), reader(name)) for name, (shape, kind) in shapes.items()
    }


def _torch_file(path: Path) -> dict[str, Weight]:
    """The state dict of a torch file, its tensors still on disk; only tensors are unpickled, never code."""
    try:
        try:
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            held = torch.load(path, map_location="cpu", weights_only=True)  # torch before 1.6: whole in memory
    except pickle.UnpicklingError as error:
        raise InputError(
            f"The torch file holds more than tensors and would run code: {str(error).splitlines()[0]}",
            where=str(path),
            cure="do not load it; ask its author for safetensors",
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise InputError(
            f"The torch file is damaged or none: {str(error).splitlines()[0]}", where=str(path), cure="download it again"
        ) from None
    for inner in ("state_dict", "model_state_dict", "module"):
        if isinstance(held, dict) and isinstance(held.get(inner), dict):
            held = held[inner]
    odd = [name for name, value in held.items() if not isinstance(value, torch.Tensor)] if isinstance(held, dict) else ["it"]
    if odd:
        raise InputError(f"The torch file is no state dict: {odd[0]} is no tensor", where=str(path), cure="name the right file")
    return {name: Weight(tuple(t.shape), t.numel() * t.element_size(), partial(_itself, t)) for name, t in held.items()}


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _shards(weights: Mapping[str, Weight], shard_bytes: int) -> Iterator[list[str]]:
    """Names in their order, split where a shard would become larger than `shard_bytes`."""
    shard: list[str] = []
    size = 0
    for name, weight in weights.items():
        if shard and size + weight.bytes > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += weight.bytes
    yield shard


def _write_shards(out: Path, weights: Mapping[str, Weight], shard_bytes: int, progress: Progress) -> None:
    shards = list(_shards(weights, shard_bytes))
    progress.start("writing weights", len(weights))
    places: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: weights[name].read().contiguous() for name in names}
        save_file(tensors, str(out / file), metadata={"format": "pt"})
        places.update(dict.fromkeys(names, file))
        progress.advance(len(names))
    progress.finish()
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(w.bytes for w in weights.values())}, "weight_map": places}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _export_adapter(
    source: Path, out: Path, base: Path | None, template: str | None, progress: Progress, shard_bytes: int
) -> Exported:
    """Merge an adapter; the whole model is in memory, in fp32."""
    head = load_scalar(source, base)
    tokenizer = load_reward_tokenizer(source, base)
    if template is not None:
        tokenizer.chat_template = TEMPLATES[template]
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise InputError(
            "The tokenizer has no pad token beside its end token", where=str(source), cure="set pad_token in its config"
        )
    head.model.config.get_text_config().pad_token_id = head.model.config.pad_token_id = tokenizer.pad_token_id
    progress.start("writing weights", 1)
    save_folder(out, head, tokenizer)
    progress.finish()
    done = Exported(len(head.model.state_dict()), (), template or "its tokenizer's own", str(tokenizer.pad_token), "float32")
    (out / "README.md").write_text(_card(source, base, done), "utf-8")
    return done


def _card(source: Path, base: Path | None, done: Exported) -> str:
    left_out = f" Left out: {', '.join(done.left_out[:4])}{' …' if len(done.left_out) > 4 else ''}." if done.left_out else ""
    return f"""---
library_name: transformers
pipeline_tag: text-classification
tags: [reward-model, starling]
---

# Reward model, exported from {source.name}

One number per conversation; only differences between replies to the same prompt mean something.

- Origin: `{source.name}`{f", config and tokenizer from `{base.name}`" if base else ""}; {done.weights} weights in {done.dtype}, \
unchanged, written by `starling export-reward`.{left_out}
- Chat template: {done.template}. Pad token: `{done.pad_token}`. Conversations are cut on the left to the tokenizer's \
`model_max_length`.
- Mean and standard deviation of its scores: unknown. Measure them on your prompts before a policy uses them.
- Licence and terms: those of the original and of its base model; see their cards.

```python
from transformers import pipeline

score = pipeline("text-classification", "path/to/this/folder", function_to_apply="none")
print(score("the whole conversation, reply and end token included, as the chat template renders it"))
```
"""
