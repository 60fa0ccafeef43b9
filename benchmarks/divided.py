"""Models that ranks divide: pipelines and mixtures of experts, beside torch's, deepspeed's, and one process."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from harness import WORKLOADS, Context, Sample, Unavailable, free_port, take_turns
from rows import Row, judge, shown, skipped

RANKS = 2
SIZE = ("--layers", "8", "--dim", "256", "--vocab", "2048", "--seq", "128", "--micro", "2", "--accum", "8")
QUICK_SIZE = ("--layers", "2", "--dim", "64", "--vocab", "128", "--seq", "16", "--micro", "1", "--steps", "2")
PIPELINES = ("ours-1f1b", "ours-gpipe", "ours-zb-h1", "torch-1f1b", "torch-gpipe", "ds-1f1b")
MIXTURES = ("ours-moe", "ds-moe")
LOSS_TOLERANCE = 1e-3


class Job:
    """One engine; each call trains from the start and keeps what it took."""

    def __init__(self, context: Context, engine: str) -> None:
        self.engine = engine
        self.context = context
        # torch's pipelines run in our environment: the same torch, and nothing else of ours takes part.
        self.side = context.side(engine) if engine.startswith("ds") else context.ours
        self.ranks = 1 if engine == "plain" else RANKS
        self.results: list[dict[str, Any]] = []

    def __call__(self) -> float:
        """Seconds of the median step."""
        with tempfile.TemporaryDirectory(dir=self.context.scratch) as folder:
            result = Path(folder) / "result.json"
            environ = {"OMP_NUM_THREADS": "1", "TORCH_EXTENSIONS_DIR": str(self.context.extensions)}
            if self.engine.startswith("ds"):
                environ["DS_ACCELERATOR"] = "cpu"
            meeting = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
            launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(self.ranks), *meeting]
            size = QUICK_SIZE if self.context.quick else SIZE
            script = [str(WORKLOADS / "parallel.py"), self.engine, *size, "--result", str(result)]
            begin = launch if self.ranks > 1 else []
            self.side.run([*begin, *script], timeout_s=900, **environ)
            if not result.exists():
                raise Unavailable(f"{self.engine} left no result")
            self.results.append(json.loads(result.read_text()))
        return float(self.results[-1]["step_s"])

    def sample(self, key: str) -> Sample:
        """One figure of every run."""
        return Sample(tuple(float(result[key]) for result in self.results))


def _measure(context: Context, engines: tuple[str, ...]) -> tuple[dict[str, Job], dict[str, str]]:
    """Jobs that ran, in turns, and why others did not."""
    jobs, why = {}, {}
    for engine in engines:
        try:
            job = Job(context, engine)
            job()  # a first run builds what it builds
        except Unavailable as reason:
            why[engine] = str(reason)
            continue
        job.results.clear()
        jobs[engine] = job
    take_turns(jobs, context.rounds, context.say)
    return jobs, why


def pipelines(context: Context) -> tuple[list[Row], dict[str, Any]]:
    """Tokens per second of a GPT in two stages, by schedule."""
    jobs, why = _measure(context, ("plain", *PIPELINES))
    rows = [skipped("pipe", f"GPT in {RANKS} stages: {engine}", "", reason) for engine, reason in why.items()]
    for name in ("1f1b", "gpipe"):
        ours = jobs[f"ours-{name}"].sample("tokens_s")
        for peer, title in ((f"torch-{name}", "torch.distributed.pipelining"), (f"ds-{name}", "deepspeed")):
            if peer in jobs:
                theirs = jobs[peer].sample("tokens_s")
                note = f"{ours.text('tokens/s')} against {theirs.text('tokens/s')}"
                what = f"GPT in {RANKS} stages, 8 micro-batches, {name}: tokens/s against {title}"
                rows.append(shown("pipe", what, f"{ours.median / theirs.median:.2f} x", note))
    base = jobs["ours-1f1b"].sample("tokens_s")
    for engine in ("ours-zb-h1", "plain"):
        other = jobs[engine].sample("tokens_s")
        title = "of ZB-H1 against 1F1B" if engine != "plain" else f"of one process against 1F1B on {RANKS}"
        note = f"{other.text('tokens/s')} against {base.text('tokens/s')}"
        rows.append(shown("pipe", f"the same: tokens/s {title}", f"{other.median / base.median:.2f} x", note))
    rows.append(_losses("pipe", jobs, "plain"))
    return rows, _measured(jobs)


def mixtures(context: Context) -> tuple[list[Row], dict[str, Any]]:
    """Tokens per second of a GPT with experts on two ranks."""
    jobs, why = _measure(context, MIXTURES)
    rows = [
        skipped("moe", f"GPT with experts on {RANKS} ranks: {engine}", "", reason) for engine, reason in why.items()
    ]
    if all(engine in jobs for engine in MIXTURES):
        ours, theirs = (jobs[engine].sample("tokens_s") for engine in MIXTURES)
        note = f"{ours.text('tokens/s')} against {theirs.text('tokens/s')}"
        what = f"GPT with 8 experts of which 2 a token, on {RANKS} ranks, stage 1: tokens/s a rank against deepspeed"
        rows.append(shown("moe", what, f"{ours.median / theirs.median:.2f} x", note))
        rows.append(_losses("moe", jobs, "ds-moe"))
    return rows, _measured(jobs)


def _losses(id: str, jobs: dict[str, Job], reference: str) -> Row:
    """Whether all engines came to one loss."""
    goal = jobs[reference].results[-1]["loss"]
    far = {engine: abs(job.results[-1]["loss"] - goal) for engine, job in jobs.items() if engine != reference}
    worst = max(far.values(), default=0.0)
    note = ", ".join(f"{engine} {distance:.2g}" for engine, distance in far.items())
    what = f"the same: loss after the last step against {reference}"
    return judge(id, what, f"within {LOSS_TOLERANCE}", f"{worst:.2g}", worst <= LOSS_TOLERANCE, note)


def _measured(jobs: dict[str, Job]) -> dict[str, Any]:
    return {
        engine: {key: job.sample(key).to_json() for key in ("step_s", "tokens_s")} | {"loss": job.results[-1]["loss"]}
        for engine, job in jobs.items()
    }
