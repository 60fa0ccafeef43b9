"""S3 to S7: the reference training workload by every engine and stage, and what a rank holds and sends."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import WORKLOADS, Context, Sample, Side, Unavailable, free_port, take_turns
from rows import Row, absent, judge, shown, skipped

RANKS = 2
STEPS, WARMUP = 7, 2
QUICK_SIZE = ("--layers", "1", "--dim", "64", "--vocab", "128", "--seq", "16", "--micro", "1")
COUNT_SIZE = ("--micro", "1", "--steps", "3")
STAGES = range(4)
TORCH = ("ddp", "fsdp2")
OPTIMIZER_BYTES = 12
"""Bytes a parameter that stage 1 shards: master and two moments in float32."""
FORMULAS = {0: "16", 1: "4 + 12/N", 2: "2 + 14/N", 3: "16/N"}
SENT_MODELS = {0: 2, 1: 2, 2: 2, 3: 3}
"""Times the model's bytes that a stage may send, each times (N-1)/N."""


def stages_built(context: Context) -> list[int]:
    """The stages that the installed ds-zero accepts in a config."""
    return [int(word) for word in context.ours.run(["-c", _STAGES], timeout_s=120).split()]


_STAGES = """
from ds_core.config import Facts, load, resolve
from ds_core.errors import ConfigError
for stage in range(4):
    try:
        resolve(load({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage}}), Facts(world_size=2))
    except ConfigError:
        continue
    print(stage)
"""


class Job:
    """One engine in one precision; each call trains from the start and keeps what it took."""

    def __init__(self, context: Context, engine: str, ranks: int, *options: str) -> None:
        self.side: Side = context.side(engine)
        self.context = context
        self.command = [engine, *options, *(QUICK_SIZE if context.quick else ())]
        self.ranks = ranks
        self.results: list[dict[str, Any]] = []

    def __call__(self) -> float:
        """Seconds of the median step."""
        with tempfile.TemporaryDirectory(dir=self.context.scratch) as folder:
            result = Path(folder) / "result.json"
            environ = {"OMP_NUM_THREADS": "1", "TORCH_EXTENSIONS_DIR": str(self.context.extensions)}
            if self.command[0].startswith("ds"):
                environ["DS_ACCELERATOR"] = "cpu"
            launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(self.ranks)]
            rendezvous = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
            script = [str(WORKLOADS / "train.py"), *self.command, "--result", str(result)]
            self.side.run([*launch, *rendezvous, *script], timeout_s=1800, **environ)
            if not result.exists():
                raise Unavailable(f"{' '.join(self.command)} left no result")
            self.results.append(json.loads(result.read_text()))
        return float(self.results[-1].get("step_s", 0.0))

    def sample(self, key: str) -> Sample:
        """One figure of every run."""
        return Sample(tuple(float(result[key]) for result in self.results))


def speed_and_memory(context: Context) -> tuple[list[Row], dict[str, Any]]:
    """S3, S4, S4b and S5, in bfloat16 and float32."""
    rows: list[Row] = []
    measured: dict[str, Any] = {}
    stages = stages_built(context)
    for precision in ("bf16", "fp32"):
        jobs, why = _train(context, precision, stages)
        rows += _speed_rows(precision, stages, jobs, why)
        rows += _limit_rows(precision, stages, jobs)
        rows += _memory_rows(precision, stages, jobs, why)
        rows += _loss_rows(precision, jobs)
        measured[precision] = {
            name: {
                "ranks": job.ranks,
                "losses": job.sample("loss").values,
                **{key: job.sample(key).to_json() for key in ("step_s", "tokens_s", "peak_MB")},
            }
            for name, job in jobs.items()
        }
    return rows, measured


def _train(context: Context, precision: str, stages: list[int]) -> tuple[dict[str, Job], dict[str, str]]:
    """Finished jobs by engine, and why an engine has none."""
    engines = ["plain", "plain x2", *TORCH, *(f"ds{n}" for n in stages), *(f"ours{n}" for n in stages)]
    if precision == "bf16":
        engines.append("fsdp2m")
    options = ["--bf16"] if precision == "bf16" else []
    options += ["--steps", "3", "--warmup", "1"] if context.quick else ["--steps", str(STEPS), "--warmup", str(WARMUP)]
    jobs: dict[str, Job] = {}
    why: dict[str, str] = {}
    for engine in engines:
        try:
            job = Job(context, engine.split()[0], 1 if engine == "plain" else RANKS, *options)
            if engine.startswith("ds"):
                job()  # builds what deepspeed builds at its first start
                job.results.clear()
            jobs[engine] = job
        except Unavailable as reason:
            if not engine.startswith("ds"):
                raise
            why[engine] = str(reason)
    turns: dict[str, Callable[[], float]] = dict(jobs)
    context.say(f"  {precision}: " + ", ".join(turns))
    take_turns(turns, 1 if context.quick else context.rounds, context.say)
    return jobs, why


def _speed_rows(precision: str, stages: list[int], jobs: dict[str, Job], why: dict[str, str]) -> list[Row]:
    """Tokens per second against deepspeed at the same stage and FSDP2."""
    id = "S3" if precision == "bf16" else "S4"
    factors = {"ds": 2.5, "fsdp2": 2.0} if precision == "bf16" else {"ds": 1.3, "fsdp2": 1.3}
    rows = []
    for stage in STAGES:
        what = f"GPT of 34 M parameters, {RANKS} ranks, {precision}, stage {stage}: tokens/s"
        peers = [(f"ds{stage}", f"deepspeed stage {stage}", factors["ds"]), ("fsdp2", "FSDP2", factors["fsdp2"])]
        if stage not in stages:
            rows.append(absent(id, what, ", ".join(f">= {factor} x {name}" for _, name, factor in peers)))
            continue
        ours = jobs[f"ours{stage}"].sample("tokens_s")
        for peer, name, factor in peers:
            target = f">= {factor} x {name}" + ("" if stage == 3 else " (set for stage 3)")
            if peer in why:
                rows.append(skipped(id, what, target, why[peer]))
                continue
            theirs = jobs[peer].sample("tokens_s")
            ratio = ours.median / theirs.median
            note = f"{ours.text('tokens/s')} against {theirs.text('tokens/s')}"
            rows.append(judge(id, what, target, f"{ratio:.2f} x", ratio >= factor, note))
        theirs = jobs["ddp"].sample("tokens_s")
        against = f"{ours.text('tokens/s')} against {theirs.text('tokens/s')}"
        rows.append(shown(id, f"{what}, against DDP", f"{ours.median / theirs.median:.2f} x", against))
    return rows


def _limit_rows(precision: str, stages: list[int], jobs: dict[str, Job]) -> list[Row]:
    """Step time against one process that communicates with nobody."""
    rows = []
    limit, crowded = jobs["plain"].sample("step_s"), jobs["plain x2"].sample("step_s")
    for stage in STAGES:
        what = f"step time, {precision}, stage {stage}, against one process without communication"
        if stage not in stages:
            rows.append(absent("S4b", what, "<= 1.15 x"))
            continue
        ours = jobs[f"ours{stage}"].sample("step_s")
        ratio = ours.median / limit.median
        beside = f"against {RANKS} such processes at once {ours.median / crowded.median:.2f} x"
        note = f"{ours.text('s')} against {limit.text('s')}; {beside}"
        rows.append(judge("S4b", what, "<= 1.15 x", f"{ratio:.2f} x", ratio <= 1.15, note))
    return rows


def _memory_rows(precision: str, stages: list[int], jobs: dict[str, Job], why: dict[str, str]) -> list[Row]:
    """Peak memory against deepspeed at the same stage and FSDP2."""
    rows = []
    for stage in STAGES:
        what = f"peak memory of a rank above the interpreter, {precision}, stage {stage}"
        peers = [(f"ds{stage}", f"deepspeed stage {stage}", 0.5), ("fsdp2", "FSDP2", 0.75)]
        if stage not in stages:
            rows.append(absent("S5", what, ", ".join(f"<= {factor} x {name}" for _, name, factor in peers)))
            continue
        for peer, name, factor in peers:
            target = f"<= {factor} x {name}"
            if peer in why:
                rows.append(skipped("S5", what, target, why[peer]))
                continue
            ours, theirs = jobs[f"ours{stage}"].sample("peak_MB"), jobs[peer].sample("peak_MB")
            ratio = ours.median / theirs.median
            note = f"{ours.text('MB')} against {theirs.text('MB')}"
            rows.append(judge("S5", what, target, f"{ratio:.2f} x", ratio <= factor, note))
    return rows


def _loss_rows(precision: str, jobs: dict[str, Job]) -> list[Row]:
    """Whether this project's loss is torch's, with a float32 master where it keeps one; and who else is far from it."""
    name, reference, allowed = (
        ("FSDP2 with fp32 master", "fsdp2m", 0.01) if precision == "bf16" else ("DDP", "ddp", 1e-3)
    )
    goal = jobs[reference].results[-1]["loss"]
    far = {
        engine: abs(job.results[-1]["loss"] - goal) for engine, job in jobs.items() if not engine.startswith("plain")
    }
    worst = max((engine for engine in far if engine.startswith("ours")), key=lambda engine: far[engine])
    others = [
        f"{engine} {far[engine]:.2g}" for engine in far if far[engine] > allowed and not engine.startswith("ours")
    ]
    what = f"loss after {STEPS} steps, {precision}, all stages: distance to {name}"
    note = f"{name} reaches {goal:.4f}" + (f"; farther than that: {', '.join(others)}" if others else "")
    id = "S3" if precision == "bf16" else "S4"
    return [judge(id, what, f"<= {allowed}", f"{far[worst]:.2g}", far[worst] <= allowed, note)]


def counts(context: Context) -> tuple[list[Row], dict[str, Any]]:
    """S6 and S7 with 2 and 4 ranks, bfloat16 with float32 master and Adam."""
    rows: list[Row] = []
    measured: dict[str, Any] = {}
    stages = stages_built(context)
    for stage in STAGES:
        held, sent = (
            f"bytes of model state per parameter and rank, stage {stage}",
            f"bytes sent per step, stage {stage}",
        )
        volume = f"{'at most ' if stage == 3 else ''}{SENT_MODELS[stage]} M x (N-1)/N, nothing else above 1%"
        if stage not in stages:
            rows += [absent("S6", held, f"exactly {FORMULAS[stage]}"), absent("S7", sent, volume)]
            continue
        for ranks in (2, 4):
            job = Job(context, f"ours{stage}", ranks, "--bf16", "--count", *COUNT_SIZE)
            job()
            result = job.results[0]
            measured[f"stage {stage}, {ranks} ranks"] = result
            goal = _state_bytes(stage, ranks)
            rows.append(_held_row(f"{held}, N = {ranks}", f"exactly {FORMULAS[stage]} = {goal:g}", goal, result))
            rows.append(_sent_row(f"{sent}, N = {ranks}", volume, SENT_MODELS[stage], result))
    return rows, measured


def _state_bytes(stage: int, ranks: int) -> float:
    """bfloat16 weights and gradients, float32 master and moments; the stage says which of them are sharded."""
    return (
        (2 / ranks if stage >= 3 else 2)
        + (2 / ranks if stage >= 2 else 2)
        + OPTIMIZER_BYTES / (ranks if stage >= 1 else 1)
    )


def _held_row(what: str, target: str, goal: float, result: dict[str, Any]) -> Row:
    """Exactly the formula over the flat buffers; what rounds them up is stated."""
    padding = result["padded"] - result["params"]
    whole = 2 * result["whole"] * (result["ranks"] - 1) // result["ranks"]
    expected = goal * result["padded"] + whole
    most = max(result["state_bytes"])
    value = f"{(most - whole) / result['padded']:.6g}"
    over = f"over {result['params']:,} parameters and {padding:,} elements of padding"
    if whole:
        over += f", and {whole:,} bytes of small parameters kept whole"
    note = f"{over}; {result['small_bytes']} bytes of scalars beside it"
    return judge("S6", what, target, value, most == expected, note)


def _sent_row(what: str, target: str, models: int, result: dict[str, Any]) -> Row:
    """The volume of the gradients and parameters, and what else was sent."""
    unit = 2 * result["padded"] * (result["ranks"] - 1) / result["ranks"]
    big = [row for row in result["sent"] if row["bytes_sent"] > 0.01 * unit]
    rest = sum(row["bytes_sent"] for row in result["sent"]) - sum(row["bytes_sent"] for row in big)
    total = sum(row["bytes_sent"] for row in big)
    parts = ", ".join(f"{row['op']} of {row['scope']} {row['bytes_sent'] / unit:.4g}" for row in big)
    value = f"{total / unit:.4g} M x (N-1)/N"
    is_planned = total + rest == result["estimated_sent"]
    within = total <= models * unit + len(big) if models == 3 else abs(total - models * unit) <= len(big)
    is_met = is_planned and within and rest <= 0.01 * unit
    planned = "exactly as" if is_planned else f"not as ({result['estimated_sent']:,} bytes)"
    note = f"{parts}; all else: {rest} bytes; {planned} ds plan says"
    if models == 3:
        note += "; backward does not read the embedding's weights, so it does not gather them"
    return judge("S7", what, target, value, is_met, note)
