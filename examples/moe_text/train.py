"""A small language model on real text, dense or with experts: equal work for a token, more to know it with.

    ds run --nproc 1 examples/moe_text/train.py --experts 0
    ds run --nproc 1 examples/moe_text/train.py --experts 8
    ds run --nproc 2 examples/moe_text/train.py --experts 8 --ep 2

The text is the source of Python's standard library, byte by byte. With experts, the feed-forward layer of every second
block is eight of its size, of which each byte passes one. The line at the end says what work a byte costs and the loss
on files that were not trained on. With the defaults, in nats a byte:

    seed       0      1      2
    dense      1.989  1.921  1.961
    experts    1.897  1.883  1.874
"""

from __future__ import annotations

import argparse
import sysconfig
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import ds_core
from ds_core import comm
from ds_moe import MlpExperts, MoE

BYTES = 256
HELD_OUT_EVERY = 20
"""One file of the text of this many is never trained on."""

Tokens = torch.Tensor


def read_text(folder: Path, most_bytes: int) -> tuple[Tokens, Tokens]:
    """Bytes to train on and bytes held out, of the Python files directly in `folder`, in the order of their names."""
    files = sorted(folder.glob("*.py"))
    held_out = [path for place, path in enumerate(files) if place % HELD_OUT_EVERY == 0]
    trained = [path for path in files if path not in held_out]
    return tuple(_joined(paths)[:most_bytes] for paths in (trained, held_out))  # type: ignore[return-value]


def _joined(paths: list[Path]) -> Tokens:
    return torch.frombuffer(bytearray(b"\n".join(path.read_bytes() for path in paths)), dtype=torch.uint8).long()


class Block(nn.Module):
    """Attention to what came before, then a feed-forward layer: dense, or one of many."""

    def __init__(self, width: int, heads: int, experts: int, args: argparse.Namespace) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.mixed = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.dense: nn.Module | None = None
        self.moe: MoE | None = None
        if experts:
            self.moe = MoE(
                width,
                MlpExperts(experts, width, 4 * width),
                num_experts=experts,
                ep_size=args.ep,
                k=args.k,
                drop_tokens=False,
                balancing=args.balancing,
            )
        else:
            self.dense = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch, length, width = x.shape
        q, k, v = self.mixed(self.norms[0](x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        if self.dense is not None:
            return x + self.dense(self.norms[1](x)), x.new_zeros(())
        made, l_aux, _ = self.moe(self.norms[1](x))
        return x + made, l_aux


class Model(nn.Module):
    """Bytes in, a loss out."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.aux = args.aux
        self.bytes = nn.Embedding(BYTES, args.width)
        self.places = nn.Embedding(args.context, args.width)
        self.blocks = nn.ModuleList(
            [Block(args.width, args.heads, args.experts if place % 2 else 0, args) for place in range(args.layers)]
        )
        self.norm = nn.LayerNorm(args.width)
        for module in (self.bytes, self.places):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tokens) -> torch.Tensor:
        """Mean loss in nats a byte, in training with a share of the balancing loss, of [batch, context + 1]."""
        x = self.bytes(tokens[:, :-1]) + self.places.weight
        l_aux = x.new_zeros(())
        for block in self.blocks:
            x, one = block(x)
            l_aux = l_aux + one
        logits = F.linear(self.norm(x), self.bytes.weight)
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        return loss + self.aux * l_aux if self.training else loss


def draw(text: Tokens, batch: int, context: int, generator: torch.Generator) -> Tokens:
    """[batch, context + 1] windows at random places."""
    starts = torch.randint(len(text) - context, (batch,), generator=generator)
    return text[starts.unsqueeze(1) + torch.arange(context + 1)]


@torch.no_grad()
def held_out_loss(engine: ds_core.Engine, text: Tokens, args: argparse.Namespace) -> float:
    """Mean over windows that the ranks share."""
    engine.eval()
    windows = text[: len(text) // (args.context + 1) * (args.context + 1)].view(-1, args.context + 1)
    windows = windows[: args.held_out // args.context // comm.get_world_size() * comm.get_world_size()]
    pieces = windows[comm.get_rank() :: comm.get_world_size()].split(args.batch)
    total = torch.stack([engine(piece) * len(piece) for piece in pieces]).sum()
    comm.all_reduce(total)
    engine.train()
    return total.item() / len(windows)


def work_of_a_byte(model: Model, context: int) -> float:
    """Floating-point operations of training on a byte: forward and backward."""
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, context + 1, dtype=torch.int64)).backward()
    model.zero_grad()
    return counter.get_total_flops() / context


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    train, held_out = read_text(args.text, args.most_bytes)
    model = Model(args)
    work, numel = work_of_a_byte(model, args.context), sum(p.numel() for p in model.parameters())
    config = {
        "train_batch_size": args.batch,
        "optimizer": {"type": "AdamW", "params": {"lr": args.lr, "betas": [0.9, 0.98], "weight_decay": 0.01}},
        "scheduler": {
            "type": "WarmupCosineLR",
            "params": {"total_num_steps": args.steps, "warmup_num_steps": args.steps // 10, "cos_min_ratio": 0.05},
        },
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": args.stage},
        "jsonl_monitor": {"enabled": args.metrics is not None, "output_path": str(args.metrics or ".")},
    }
    engine, *_ = ds_core.initialize(model=model, config=config)
    engine.train()
    generator = torch.Generator().manual_seed(args.seed)
    since = time.monotonic()
    for step in range(1, args.steps + 1):
        tokens = draw(train, args.batch, args.context, generator)  # the same on all ranks, each takes its piece
        loss = engine(tokens.chunk(comm.get_world_size())[comm.get_rank()])
        engine.backward(loss)
        engine.step()
        if step % args.log_every == 0 and comm.get_rank() == 0:
            print(f"step {step}  loss {loss.item():.3f}", flush=True)
    per_s = args.steps * args.batch * args.context / (time.monotonic() - since)
    loss = held_out_loss(engine, held_out, args)
    if comm.get_rank() == 0:
        print(
            f"experts {args.experts}, seed {args.seed}: {numel:,} parameters, {work:,.0f} operations a byte, "
            f"{per_s:,.0f} bytes/s, loss {loss:.4f} nats a byte on held-out files"
        )
    engine.destroy()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a small language model, dense or with experts.")
    parser.add_argument("--experts", type=int, default=8, help="experts in every second block; 0 for none")
    parser.add_argument("--k", type=int, default=1, help="experts a byte")
    parser.add_argument("--ep", type=int, default=1, help="processes that share the experts")
    parser.add_argument("--balancing", default="aux", choices=("aux", "bias", "none"))
    parser.add_argument("--aux", type=float, default=0.01, help="share of the balancing loss")
    parser.add_argument("--stage", type=int, default=1, help="stage of ZeRO")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=32, help="windows a step, over all processes")
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--text", type=Path, default=Path(sysconfig.get_paths()["stdlib"]), help="folder of .py files")
    parser.add_argument("--most-bytes", type=int, default=8_000_000)
    parser.add_argument("--held-out", type=int, default=131_072, help="bytes to measure the loss on")
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--metrics", type=Path, default=None, help="folder for metrics, loads of experts among them")
    return parser.parse_args()


if __name__ == "__main__":
    main()
