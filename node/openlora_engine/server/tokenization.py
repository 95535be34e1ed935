"""POST /tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

from aiohttp import web

from .backend import MixOptions
from .call import Call
from .conversion import DEFAULT_METHOD, split_model
from .decoding import decode, field_names
from .reply import json_reply
from .requests import DetokenizeBody, TokenizeChatBody, TokenizeTextBody
from .responses import Detokenized, Tokenized


async def tokenize(call: Call) -> web.StreamResponse:
    """POST /tokenize: a text's token ids, or a conversation's."""
    async with call.raw_body() as raw:
        body: TokenizeTextBody | TokenizeChatBody
        if "messages" in field_names(raw):
            body = decode(raw, TokenizeChatBody)
            await _check_model(call, body.model)
            specials = bool(body.add_special_tokens)
            ids = await call.services.prompts.of_conversation(body, add_special_tokens=specials)
        else:
            body = decode(raw, TokenizeTextBody)
            await _check_model(call, body.model)
            specials = body.add_special_tokens is not False
            ids = await call.services.prompts.of_text(body.prompt, add_special_tokens=specials)
        strings = [call.services.tokens.text_of(token_id) for token_id in ids] if body.return_token_strs else None
    return json_reply(Tokenized(len(ids), call.backend.model.max_model_len, list(ids), strings))


async def detokenize(call: Call) -> web.StreamResponse:
    """POST /detokenize: the text of token ids."""
    async with call.body(DetokenizeBody) as body:
        await _check_model(call, body.model)
        return json_reply(Detokenized(await call.services.prompts.text_of(body.tokens)))


async def _check_model(call: Call, name: str | None) -> None:
    """All models of an engine share one tokenizer; a name that is none of theirs is still an error."""
    if name is not None:
        model = call.backend.model
        base, adapter = split_model(name, model)
        asked = adapter or (name if base is None else model.names[0])
        await call.backend.resolve(asked, (), DEFAULT_METHOD, MixOptions())
