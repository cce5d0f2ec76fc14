"""One number per conversation (a reward) or per token (a value), from a transformers `*ForSequenceClassification`.

Source: Starling-RM puts Linear(hidden, 1, bias=False) on the last hidden state of the last token and finds that token by
searching the first pad id. Here the index comes from the lengths; for a text that does not contain the pad id it is the
same token, and the same number as transformers' own forward. Only the gathered rows go through the head, in fp32.

A pass takes one batch object: rows padded on the right (`Padded`) or conversations that share their beginnings (`Forest`).

A *decoder* is any classifier whose class pools the last token through a linear layer `score` (llama, mistral, qwen, gemma,
gpt2, opt …). Anything else (bert, modernbert, distilbert …) is an *encoder* and pools in its own way.

Shapes: B rows, T tokens, D hidden size.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from starling.errors import InputError
from starling.models import tree_attention
from starling.models.encode import Padded
from starling.models.tree import Forest


def _no_warning(*_: Any) -> None:
    return None


class ScalarHead(nn.Module):
    """A reward model or a critic.

    Args:
        model: a transformers model for sequence classification with one label.

    Raises:
        InputError: the model has not exactly one output.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        if model.config.num_labels != 1:
            raise InputError(
                f"A reward model has one output, this one has {model.config.num_labels}",
                where=str(model.config.name_or_path or type(model).__name__),
                cure="name a folder saved by `starling train-reward`, or another *ForSequenceClassification with num_labels = 1",
            )
        self.model = model
        self.is_decoder: bool = isinstance(getattr(model, "score", None), nn.Linear)
        if self.is_decoder:  # some classes warn about padding without a mask; `_hidden` says why none is needed
            getattr(model, model.base_model_prefix).warn_if_padding_and_no_attention_mask = _no_warning

    def forward(self, batch: Padded | Forest) -> torch.Tensor:
        """scores in fp32, one per conversation of the batch; the way in for every pass, so that DDP and FSDP see it.

        Raises:
            InputError: a forest for a model that cannot share prefixes, or one longer than the model's learned positions.
        """
        if isinstance(batch, Forest):
            return self._score(self._forest_hidden(batch).index_select(0, batch.last_N))
        if not self.is_decoder:
            logits_B1 = self.model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT.long()).logits
            return cast(torch.Tensor, logits_B1[:, 0].float())
        hidden_BTD = self._hidden(batch.ids_BT)
        row_B = torch.arange(len(batch.last_B), device=hidden_BTD.device)
        return self._score(hidden_BTD[row_B, batch.last_B])

    def rewards(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor, last_B: torch.Tensor) -> torch.Tensor:
        """scores_B in fp32 of right-padded rows (`encode.pad_right`); mask_BT True means the position holds a token."""
        return cast(torch.Tensor, self(Padded(ids_BT, mask_BT, mask_BT, last_B)))

    def values(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """values_BT in fp32: the head after every token; 0 where mask_BT is False.

        Raises:
            InputError: the model is an encoder; its state at a token has seen the tokens after it.
        """
        self._want_decoder()
        return self._score(self._hidden(ids_BT)).masked_fill(~mask_BT.bool(), 0.0)

    def values_at(self, batch: Padded | Forest, places_N: torch.Tensor) -> torch.Tensor:
        """values_N in fp32: the head at these places of the flattened rows only.

        Raises:
            InputError: the model is an encoder, or a forest for a model that cannot share prefixes.
        """
        self._want_decoder()
        hidden = self._forest_hidden(batch) if isinstance(batch, Forest) else self._hidden(batch.ids_BT).flatten(0, 1)
        return self._score(hidden.index_select(0, places_N))

    def _want_decoder(self) -> None:
        if not self.is_decoder:
            raise InputError(
                "An encoder has no per-token values",
                where=type(self.model).__name__,
                cure="use a reward model with a decoder backbone to start the critic from",
            )

    def _hidden(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Hidden states of a decoder. Rows are right-padded and attention is causal, so no row sees a pad: no mask needed."""
        backbone = getattr(self.model, self.model.base_model_prefix)
        return cast(torch.Tensor, backbone(input_ids=ids_BT, use_cache=False).last_hidden_state)

    def _forest_hidden(self, forest: Forest) -> torch.Tensor:
        """hidden_TD of a decoder for all tokens of the row."""
        if not self.is_decoder:
            raise InputError(
                "An encoder cannot share prefixes: its tokens see those after them",
                where=type(self.model).__name__,
                cure='set the stage\'s layout to "sequences"',
            )
        tree_attention.enable(self.model)
        return tree_attention.hidden_states(getattr(self.model, self.model.base_model_prefix), forest)

    def _score(self, hidden_D: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden_D.device.type, enabled=False):
            weight = self.model.score.weight.float()
            # a copy: FSDP2 hangs its backward hook on what forward returns, and warns that a view could lose it
            return nn.functional.linear(hidden_D.float(), weight, self.model.score.bias)[..., 0].clone()

    # ── statistics kept with the model ───────────────────────────────────────────────────────────────────────────────

    @property
    def statistics(self) -> dict[str, float]:
        """Mean and standard deviation of the scores on validation data, {"mean", "std"}; empty if none are stored."""
        stored = getattr(self.model.config, "starling", None) or {}
        return {k: float(stored[k]) for k in ("mean", "std") if k in stored}

    def set_statistics(self, mean: float, std: float) -> None:
        """Store the score statistics in the model's config, under the key `starling`."""
        self.model.config.starling = {"mean": float(mean), "std": float(std)}
