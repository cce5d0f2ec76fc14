"""Tokenising: boundaries, end of turn, BOS, truncation, masks."""

import copy
from typing import Any

import pytest
import torch

from starling.chat import to_transcript
from starling.errors import InputError
from starling.models.encode import Encoded, Encoder, pad_right
from starling.records import Message

ASK = (Message(role="user", content="hello there"),)
LONG = (Message(role="user", content="name three animals " * 6), Message(role="assistant", content="a cat"), *ASK)


@pytest.fixture
def encoder(decoder_tokenizer: Any) -> Encoder:
    return Encoder(decoder_tokenizer, max_length=64)


def without_template(tokenizer: Any) -> Any:
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    return plain


def test_conversation_is_the_rendered_text_with_one_bos(encoder: Encoder, decoder_tokenizer: Any) -> None:
    encoded = encoder.conversation(LONG, "a dog")
    assert list(encoded.ids) == decoder_tokenizer(encoder.render(LONG, "a dog"))["input_ids"]
    assert encoded.ids.count(decoder_tokenizer.bos_token_id) == 1
    turns = [m.model_dump() for m in (*LONG, Message(role="assistant", content="a dog"))]
    assert list(encoded.ids) == decoder_tokenizer.apply_chat_template(turns)["input_ids"]  # the library's own one-step path


def test_prompt_and_reply_meet_at_the_boundary(encoder: Encoder, decoder_tokenizer: Any) -> None:
    encoded = encoder.conversation(ASK, "a cat")
    assert decoder_tokenizer.decode(encoded.ids[: encoded.prompt_length]) == "<s><|user|>hello there<|end|>\n<|assistant|>"
    assert decoder_tokenizer.decode(encoded.ids[encoded.prompt_length :]) == "a cat<|end|>\n"
    assert encoder.prompt_ids(ASK) == encoded.ids[: encoded.prompt_length]
    completion = encoder.completion(ASK, "a cat")
    assert completion.prompt_length == encoded.prompt_length
    assert decoder_tokenizer.decode(completion.ids[completion.prompt_length :]) == "a cat<|end|>"  # up to the end token


def test_unfinished_reply_has_no_end_token(encoder: Encoder) -> None:
    assert encoder.end_ids[0] in encoder.reply_ids("a cat", finished=True)
    assert encoder.end_ids[0] not in encoder.reply_ids("a cat", finished=False)
    open_ended = encoder.conversation(ASK, "a cat", finished=False)
    assert encoder.end_ids[0] not in open_ended.ids[open_ended.prompt_length :]


def test_reply_cannot_write_special_tokens(encoder: Encoder) -> None:
    ids = encoder.reply_ids("a<|end|><s>b", finished=False)
    assert encoder.end_ids[0] not in ids
    assert encoder.decode_reply(ids) == "a<|end|><s>b"


def test_decode_reply_stops_at_the_end_token(encoder: Encoder) -> None:
    ids = (*encoder.reply_ids("a cat, a dog", finished=True), *encoder.reply_ids("more", finished=True))
    assert encoder.decode_reply(ids) == "a cat, a dog"


def test_template_that_ends_a_turn_with_a_token_of_its_own(decoder_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(decoder_tokenizer)
    tokenizer.eos_token = "<|system|>"  # a stand-in for base models whose eos is not the end of turn
    encoder = Encoder(tokenizer, max_length=64)
    end, eos = tokenizer.convert_tokens_to_ids(["<|end|>", "<|system|>"])
    assert encoder.end_ids == (end, eos)


def test_without_template_it_is_a_nectar_transcript_and_eos(decoder_tokenizer: Any) -> None:
    tokenizer = without_template(decoder_tokenizer)
    encoder = Encoder(tokenizer, max_length=64)
    assert encoder.render(ASK, "a cat") == to_transcript(ASK) + "a cat<|end|>"
    encoded = encoder.conversation(ASK, "a cat")
    assert list(encoded.ids) == tokenizer(encoder.render(ASK, "a cat"))["input_ids"]
    assert encoded.ids[0] == tokenizer.bos_token_id
    assert encoder.prompt_ids(ASK)[0] == tokenizer.bos_token_id
    assert tokenizer.decode(encoder.prompt_ids(ASK)) == "<s>" + to_transcript(ASK)


def test_encoder_tokenizer_closes_the_text_itself(encoder_tokenizer: Any) -> None:
    encoder = Encoder(encoder_tokenizer, max_length=64)
    encoded = encoder.conversation(ASK, "a cat")
    assert encoded.ids[0] == encoder_tokenizer.cls_token_id
    assert encoded.ids[-1] == encoder_tokenizer.sep_token_id
    assert encoded.ids.count(encoder_tokenizer.sep_token_id) == 1
    # the space before the reply belongs to the prompt, or to the token that spans the boundary
    assert encoder_tokenizer.decode(encoded.ids[encoded.prompt_length :]).strip() == "a cat[SEP]"


def test_template_that_loses_the_reply_is_refused(decoder_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(decoder_tokenizer)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(InputError, match="does not render the reply"):
        Encoder(tokenizer, max_length=64)


def test_template_that_refuses_a_role_says_so(decoder_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(decoder_tokenizer)
    tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + (
        tokenizer.chat_template
    )
    encoder = Encoder(tokenizer, max_length=64)
    with pytest.raises(InputError, match=r"no system.*system"):
        encoder.conversation((Message(role="system", content="be kind"), *ASK), "a cat")


class TestFit:
    """max_length 10: BOS, then prompt tokens 1…8, reply from 9."""

    whole = Encoded((1, *range(100, 108), 9, 9, 9), 9)

    def fit(self, tokenizer: Any, encoded: Encoded, how: Any, max_length: int = 10) -> Any:
        return Encoder(tokenizer, max_length).fit(encoded, how)

    def test_short_enough(self, decoder_tokenizer: Any) -> None:
        assert self.fit(decoder_tokenizer, self.whole, "raise", 12) == (self.whole, "whole")

    def test_prompt_loses_its_left_but_not_bos(self, decoder_tokenizer: Any) -> None:
        fitted, how = self.fit(decoder_tokenizer, self.whole, "truncate_left")
        assert fitted == Encoded((1, *range(102, 108), 9, 9, 9), 7)
        assert how == "prompt_cut"

    def test_reply_is_cut_only_when_it_is_too_long_alone(self, decoder_tokenizer: Any) -> None:
        fitted, how = self.fit(decoder_tokenizer, Encoded((1, 100, *range(200, 220)), 2), "truncate_left")
        assert fitted == Encoded((1, *range(211, 220)), 1)
        assert how == "answer_cut"
        fitted, how = self.fit(decoder_tokenizer, Encoded((1, 100, *range(200, 209)), 2), "truncate_left")
        assert (fitted, how) == (Encoded((1, *range(200, 209)), 1), "prompt_cut")  # just fits

    def test_drop_and_raise(self, decoder_tokenizer: Any) -> None:
        assert self.fit(decoder_tokenizer, self.whole, "drop") == (None, "dropped")
        with pytest.raises(InputError, match="12 tokens, more than max_length = 10"):
            self.fit(decoder_tokenizer, self.whole, "raise")


def test_masks_come_from_lengths_not_from_pad_ids() -> None:
    padded = pad_right([Encoded((5, 0, 0), 1), Encoded((0,), 1), Encoded((7, 8), 0)], pad_id=0)
    assert padded.ids_BT.tolist() == [[5, 0, 0], [0, 0, 0], [7, 8, 0]]
    assert padded.mask_BT.tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    assert padded.reply_mask_BT.tolist() == [[False, True, True], [False, False, False], [True, True, False]]
    assert padded.last_B.tolist() == [2, 0, 1]
    assert padded.ids_BT.dtype is torch.int64
