"""The text to learn: where it comes from, its tokens, and the windows a model is trained and tested on."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import TensorDataset

MIN_CHARACTERS = 5_000
HELD_OUT_EVERY = 20
"""One window of this many is never trained on."""


class TextError(ValueError):
    """A text that cannot be used; the message says why and what to do."""


def read_text(path: Path | None) -> str:
    """The text of a file, or without one the reference that Python's own help() shows.

    Raises:
        TextError: it cannot be read, is not UTF-8, or is too short.
    """
    text = _of_python() if path is None else _of_file(path)
    if len(text) < MIN_CHARACTERS:
        raise TextError(
            f"{path} has {len(text)} characters, too few to learn from; give a text of at least {MIN_CHARACTERS:,}, "
            "better a million"
        )
    return text


def _of_python() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise TextError(f"this Python lacks its reference text ({error}); give one of your own: --data FILE") from None
    text = "\n\n".join(topics[name] for name in sorted(topics))
    text = re.sub(r"\n[*=~^-]{4,}\n", "\n", text)  # lines under headings
    return re.sub(r"(?<=\S)\n(?=[^\s*])", " ", text)  # a paragraph as one line; indented examples stay as they are


def _of_file(path: Path) -> str:
    if path.is_dir():
        raise TextError(f"{path} is a folder; --data needs a file of text")
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        raise TextError(f"there is no file {path}") from None
    except UnicodeDecodeError as error:
        raise TextError(
            f"{path} is not UTF-8 text (byte {error.start}: {error.reason}); convert it first, for example: "
            f"iconv -f latin1 -t utf-8 {path} > utf8.txt"
        ) from None
    except OSError as error:
        raise TextError(f"{path} cannot be read: {error.strerror}") from None


def fingerprint(text: str, vocabulary: int) -> str:
    """A short name of the text and vocabulary size; equal inputs, equal name."""
    return hashlib.blake2b(f"{vocabulary}\n{text}".encode(), digest_size=8).hexdigest()


def tokenizer_path(folder: Path, text: str, vocabulary: int) -> Path:
    """Where the tokenizer of this text is kept."""
    return folder / f"tokenizer-{fingerprint(text, vocabulary)}.json"


def train_tokenizer(path: Path, text: str, vocabulary: int) -> None:
    """Writes a byte-pair tokenizer of `text`, unless it is there. The file is whole or absent, also after a crash."""
    if path.exists():
        return
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    tokenizer.save(str(temporary))
    temporary.replace(path)


class Windows(NamedTuple):
    """Pairs (tokens, the tokens that follow each), both ``context`` long."""

    training: TensorDataset
    held_out: TensorDataset
    tokens: int


def windows(tokenizer: Tokenizer, text: str, context: int) -> Windows:
    """The text cut into windows, one of every `HELD_OUT_EVERY` held out.

    Raises:
        TextError: there are too few windows to hold one out.
    """
    tokens = torch.tensor(tokenizer.encode(text).ids)
    count = (len(tokens) - 1) // context
    if count < HELD_OUT_EVERY:
        raise TextError(
            f"the text is {len(tokens)} tokens long, which makes {count} windows of {context}; it takes at least "
            f"{HELD_OUT_EVERY}. Give a longer text, or a smaller --context"
        )
    inputs = tokens[: count * context].view(count, context)
    targets = tokens[1 : count * context + 1].view(count, context)
    is_held_out = torch.arange(count) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    return Windows(
        TensorDataset(inputs[~is_held_out], targets[~is_held_out]),
        TensorDataset(inputs[is_held_out], targets[is_held_out]),
        len(tokens),
    )
