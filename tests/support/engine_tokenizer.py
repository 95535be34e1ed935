"""Two small tokenizers for tests: byte-level as those of GPT-2 and Llama 3, and byte fallback as that of Llama 2."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS, TURN, END = "<|begin|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCAB_SIZE = 512

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TEXT = (
    "The quick brown fox jumps over the lazy dog, and then the dog thinks about the fox.",
    "A node serves thousands of adapters over one base model; each answer is paid for and signed.",
    '{"name": "Ada", "age": 36, "tags": ["mathematics", "engines"], "active": true, "score": 9.75, "note": null}',
    "Question: what is the capital of France? Answer: the capital of France is Paris.",
    "0 1 2 3 4 5 6 7 8 9 10 11 12 20 100 1000 1815 1852",
    "def add(first, second):\n    return first + second\n",
    "Grüße aus Köln; ça va déjà; привет, мир; 你好，世界; こんにちは; 👋🏽 🎉 🚀",
)


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, 512 tokens: four special ones, all 256 bytes, 252 merges; a chat template in ChatML.

    Treat it as read-only: tests share it.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[EOS, BOS, TURN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS, chat_template=CHAT_TEMPLATE
    )


@cache
def fallback_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece-like BPE: `▁` for the space, and `<0x00>` … `<0xFF>` for what has no piece of its own."""
    specials = ["<unk>", "<s>", "</s>"]
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + [
        "▁",
        *"abcdefghijklmnopqrstuvwxyzé你.,",
        "▁a",
        "th",
        "▁th",
        "he",
    ]
    vocab = {piece: token_id for token_id, piece in enumerate(specials + pieces)}
    merges = [("▁", "a"), ("t", "h"), ("▁", "th"), ("h", "e")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
