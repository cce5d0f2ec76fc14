"""Log-probabilities of the tokens of a reply under a causal language model.

The language-model head runs on reply positions only: the prompt's logits, half of a chat batch and more, are never made.
Rows are right-padded and attention is causal, so no token sees a pad and no attention mask is needed.

Shape legend: B rows, T tokens, D hidden size, N reply tokens of the batch, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from starling.models.encode import Padded


def token_logprobs(model: Any, padded: Padded, mask_BT: Tensor, *, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
    """Log-probability of every token given those before it, 0 outside the mask, and the entropy there if asked for.

    Args:
        model: a transformers causal language model.
        padded: rows padded on the right.
        mask_BT: [B, T−1]; True means the position predicts a token that counts.

    Returns:
        logprobs_BT and entropy_BT (None unless asked for), both [B, T−1] in fp32.
    """
    hidden_BTD = model.get_decoder()(input_ids=padded.ids_BT, use_cache=False).last_hidden_state
    logits_NV = model.get_output_embeddings()(hidden_BTD[:, :-1][mask_BT]).float()
    logprobs_NV = torch.log_softmax(logits_NV, -1)
    taken_N = padded.ids_BT[:, 1:][mask_BT]
    out_BT = torch.zeros(mask_BT.shape, dtype=torch.float32, device=logits_NV.device)
    out_BT = out_BT.masked_scatter(mask_BT, logprobs_NV.gather(1, taken_N[:, None])[:, 0])
    if not entropy:
        return out_BT, None
    entropy_BT = torch.zeros_like(out_BT).masked_scatter(mask_BT, -(logprobs_NV.exp() * logprobs_NV).sum(-1))
    return out_BT, entropy_BT
