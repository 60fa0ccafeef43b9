"""Writes a folder that examples/hf_trainer.py takes: a Llama of random weights, a tokenizer of words, a text.

python benchmarks/workloads/small_llama.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [first + last for first in "bdfgklmnprst" for last in "aeiou"]
LENGTH = 2000


def write(folder: Path) -> None:
    """The same on every machine, given one torch."""
    vocabulary = {word: index for index, word in enumerate(["[UNK]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(5)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=64, num_key_value_heads=2, max_position_embeddings=64, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    words = (WORDS[(place * place // 7 + 3 * place) % len(WORDS)] for place in range(LENGTH))
    (folder / "text.txt").write_text(" ".join(words), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
