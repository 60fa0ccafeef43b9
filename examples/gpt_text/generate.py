"""Lets the newest checkpoint of a run go on with a text.

    python examples/gpt_text/generate.py runs/gpt --prompt "A function is"

One process reads what any number of ranks wrote; no engine is needed for that.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from model import Gpt
from run_folder import RunFolder, Saved
from tokenizers import Tokenizer

from ds_core.checkpoint import CheckpointReader
from ds_core.errors import DsError

FAULT = 2


def load(folder: RunFolder) -> tuple[Gpt, Tokenizer]:
    """Model and tokenizer of a run's newest checkpoint.

    Raises:
        FileNotFoundError: there is none, or its tokenizer is gone.
        CheckpointError: the checkpoint is damaged.
    """
    path = folder.checkpoint()
    if path is None:
        raise FileNotFoundError(f"there is no checkpoint in {folder.path}")
    reader = CheckpointReader(path)
    saved = Saved.from_json(reader.client_state)
    tokenizer_file = folder.cache / saved.tokenizer
    if not tokenizer_file.exists():
        raise FileNotFoundError(f"the tokenizer {tokenizer_file} of the run is gone")
    model = Gpt(saved.shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(reader.full(f"model/{name}"))
    return model.eval(), Tokenizer.from_file(str(tokenizer_file))


@torch.no_grad()
def continue_text(
    model: Gpt, tokenizer: Tokenizer, prompt: str, tokens: int, temperature: float = 0.7, top: int = 40, seed: int = 0
) -> str:
    """`prompt` and what the model adds to it.

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
        prompt: at least one token.
        tokens: how many to add.
        temperature: 0 always takes the likeliest token; higher is more varied.
        top: only so many of the likeliest tokens are drawn from.
        seed: equal seed, equal text.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor(tokenizer.encode(prompt).ids)
    for _ in range(tokens):
        logits = model(ids[-model.shape.context :].unsqueeze(0))[0, -1]
        if temperature > 0:
            likeliest = logits.topk(min(top, len(logits)))
            chances = (likeliest.values / temperature).softmax(-1)
            token = likeliest.indices[torch.multinomial(chances, 1, generator=generator)]
        else:
            token = logits.argmax(-1, keepdim=True)
        ids = torch.cat([ids, token])
    return str(tokenizer.decode(ids.tolist()))


def main() -> int:
    """Prints the text."""
    parser = argparse.ArgumentParser(description="Go on with a text.")
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--prompt", default="The", help="the text to go on with; default: The")
    parser.add_argument("--tokens", type=int, default=120, help="how many to add; default 120")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest; default 0.7")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another text")
    options = parser.parse_args()
    if not options.prompt:
        parser.error("--prompt must not be empty")
    if options.temperature < 0:
        parser.error(f"--temperature must not be negative, got {options.temperature}")
    try:
        model, tokenizer = load(RunFolder(options.run))
    except (DsError, FileNotFoundError) as error:
        print(f"generate.py: error: {error}", file=sys.stderr)
        return FAULT
    print(continue_text(model, tokenizer, options.prompt, options.tokens, options.temperature, seed=options.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
