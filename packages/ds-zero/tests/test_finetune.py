"""Fine-tuning at stage 3 in bf16 gives the losses of a plain loop with float32 masters, bit for bit."""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ds_core.testing import run_ranks

ROOT = Path(__file__).resolve().parents[3]
STEPS = 4
CONTEXT = 32
LR = 1e-3
NATIVE_ULPS = 2
"""Losses of another AdamW may be this many bf16 units in the last place away: its masters differ in their last bits."""


def load_file(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TinyGpt(nn.Module):
    """A decoder of two blocks with tied embeddings that answers as models of transformers do."""

    def __init__(self, vocabulary: int = 61, width: int = 24) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {"qkv": nn.Linear(width, 3 * width), "out": nn.Linear(width, width), "norm": nn.LayerNorm(width)}
            )
            for _ in range(2)
        )
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        x = self.embed(input_ids)
        for block in self.blocks:
            q, k, v = block["qkv"](block["norm"](x)).chunk(3, dim=-1)
            x = x + block["out"](F.scaled_dot_product_attention(q, k, v, is_causal=True))
        logits = self.head(x).float()
        return SimpleNamespace(loss=F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()))


def samples(rank: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randint(61, (2, CONTEXT), generator=generator) for _ in range(STEPS)]


def by_engine(native: bool) -> list[float]:
    import torch.distributed as dist

    import ds_core

    params = {"lr": LR, "weight_decay": 0.1, **({} if native else {"torch_adam": True})}
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": 0.0,
        "optimizer": {"type": "AdamW", "params": params},
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3, "param_persistence_threshold": 100},
    }
    engine = ds_core.initialize(model=TinyGpt(), config=config)[0]
    losses = []
    for ids in samples(dist.get_rank()):
        loss = engine(ids, ids).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    engine.destroy()
    return losses


def by_hand() -> list[list[float]]:
    """One process that takes both ranks' samples one after the other."""
    model = TinyGpt().bfloat16()
    masters = [nn.Parameter(p.detach().float()) for p in model.parameters()]
    optimizer = torch.optim.AdamW(masters, lr=LR, weight_decay=0.1, fused=True)
    losses: list[list[float]] = [[], []]
    for step in range(STEPS):
        for rank in range(2):
            ids = samples(rank)[step]
            loss = model(ids, ids).loss
            (loss / 2).backward()
            losses[rank].append(loss.item())
        for master, parameter in zip(masters, model.parameters(), strict=True):
            master.grad, parameter.grad = parameter.grad.float(), None
        optimizer.step()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            parameter.data.copy_(master.data)
    return losses


def test_a_small_gpt_learns_as_in_a_plain_loop():
    (expected,) = run_ranks(by_hand, 1)
    assert run_ranks(by_engine, 2, native=False) == expected
    for got, wanted in zip(run_ranks(by_engine, 2, native=True), expected, strict=True):
        assert got == pytest.approx(wanted, rel=NATIVE_ULPS * torch.finfo(torch.bfloat16).eps)


# --- the example ----------------------------------------------------------------------------------------------------


def options(folder: str, **changes) -> Namespace:
    base = {
        "model": Path(folder),
        "data": Path(folder) / "text.txt",
        "steps": STEPS,
        "context": CONTEXT,
        "micro_batch": 2,
    }
    return Namespace(**{**base, "lr": LR, "stage": 3, "torch_adam": True, "save": None, **changes})


def example(folder: str, **changes) -> list[float]:
    return load_file("examples/finetune_smollm/train.py").train(options(folder, **changes))["losses"]


def example_by_hand(folder: str) -> list[float]:
    return load_file("benchmarks/finetune.py").plain(options(folder))["losses"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> str:
    """A folder with a random Llama of 10 k parameters, its tokenizer, and a text."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    folder = tmp_path_factory.mktemp("llama")
    (folder / "text.txt").write_text("the model learns from this text with every step " * 60, encoding="utf-8")
    words = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    words.train([str(folder / "text.txt")], tokenizers.trainers.BpeTrainer(vocab_size=80, special_tokens=["?"]))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    config = transformers.LlamaConfig(vocab_size=len(words.get_vocab()), **sizes, **heads)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.ranks
def test_the_example_learns_as_a_plain_loop_does(llama):
    (expected,) = run_ranks(example_by_hand, 1, llama, timeout_s=150)
    for got in run_ranks(example, 2, llama, timeout_s=150):
        assert got == expected
    assert expected[-1] < expected[0]
    for got in run_ranks(example, 2, llama, torch_adam=False, timeout_s=150):
        assert got == pytest.approx(expected, rel=NATIVE_ULPS * torch.finfo(torch.bfloat16).eps)
