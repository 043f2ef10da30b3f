"""`polytrace benchmark`: checkpoints over data sets by their protocols, in the tables that papers print.

Every answer is kept, so a benchmark that was stopped goes on, and another protocol, or another checkpoint beside the
first, costs no answer twice. Under OUT:

    answers/MODEL/DATA/*.parquet    a row an answer (rl/benchmarks/answers.py)
    oracle/DATA/*.parquet           of data with candidates, the best choice from them
    results/MODEL/DATA.json         masks as COCO results, run lengths, which other tools score
    tables.md  tables.tex           measured rows and published ones
    summary.json                    all scores with intervals, by kind of object, and where errors come from
    benchmark.html                  the same to look at, with pictures
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from envs.datasets.shards import Env
from envs.geometry.contours import mask_from_rings
from envs.polygons import AnswerStatus
from policies.refiner.mask_refiner import MaskRefiner
from policies.refiner.refining import refine_masks
from rl.benchmarks.answers import CHUNK, AnswerFiles, answer_row, oracle_row
from rl.benchmarks.judge import OUTLINE, REFINED, SetScores, judge_rows
from rl.benchmarks.models import BenchmarkModel
from rl.benchmarks.page import write_benchmark_page
from rl.benchmarks.published import Published
from rl.benchmarks.sets import BenchmarkSet
from rl.benchmarks.tables import difference_table, latex, markdown, score_tables, terminal
from rl.config.run import RunConfig
from rl.evaluation.answers import greedy_units
from rl.evaluation.protocols.base import protocol_named
from rl.evaluation.scores import Interval
from rl.pages.json_text import json_text
from rl.pages.progress import StepProgress
from rl.refiner.errors import OutlineBudget
from rl.run.parts import RunParts, run_parts
from rl.run.workers import answering
from rl.sources.leaks import coco_number
from rollout.disk import replace_text
from rollout.pool.pool import WorkerPool
from rollout.records import Group

ORACLE = "best choice of the pool"
"""What the best choice from the candidates is called in tables."""


@dataclass(frozen=True)
class Benchmark:
    """What is benchmarked, and how."""

    out: Path
    models: Sequence[BenchmarkModel]
    sets: Sequence[BenchmarkSet]
    protocols: Sequence[str] = ()
    """Names of protocols or of variants, for every data set; none: the one that each data set is for."""
    limit: int | None = None
    """Most examples of a data set, its first ones; None for all."""
    own: Sequence[Published] = ()
    """Published rows of one's own, beside those that are shipped."""

    def protocols_of(self, data: BenchmarkSet) -> Sequence[str]:
        """Names of the protocols that a data set is judged by."""
        return self.protocols or (data.protocol,)


def benchmark(asked: Benchmark, console: Console) -> list[SetScores]:
    """Ask what has not been asked yet, judge everything, and write all files of `asked.out`.

    Raises ValueError or FileNotFoundError, before the first answer, for what does not fit together.
    """
    for name in {name for data in asked.sets for name in asked.protocols_of(data)}:
        protocol_named(name)
    tell_unused_rows(asked, console)
    for data in asked.sets:
        _refuse_other_forms(asked, data)
        if data.shown_side is not None:
            console.print(
                f"note: {data.folder} was prepared at {data.shown_side} px a side, and is scored there, not at the "
                "photo's size as papers do; prepare it without --image-side for that.",
                soft_wrap=True,
            )
    for model in asked.models:
        refined = "" if model.refiner is None else f", refined by {model.refiner}"
        console.print(f"{model.name}: {model.checkpoint}{refined}", markup=False, highlight=False, soft_wrap=True)
        for data in asked.sets:
            answer_all(asked, model, data, console)
    for data in asked.sets:
        keep_oracle(asked, data, console)
    found = judged(asked)
    write_files(asked, found, console)
    return found


def tell_unused_rows(asked: Benchmark, console: Console) -> None:
    """Print which of one's own rows no table will show, since their data set or protocol is not asked."""
    shown = {(data.name, name.partition("/")[0]) for data in asked.sets for name in asked.protocols_of(data)}
    there = ", ".join(f"{data} under {protocol}" for data, protocol in sorted(shown))
    for file in asked.own:
        base = file.protocol.partition("/")[0]
        unused = sorted({data for model in file.models for data in model.scores if (data, base) not in shown})
        if unused:
            told = f"{file.title}: rows of {', '.join(unused)} under {base} are not shown; tables are of {there}."
            console.print(f"note: {told}", markup=False, highlight=False, soft_wrap=True)


def _refuse_other_forms(asked: Benchmark, data: BenchmarkSet) -> None:
    """Raise ValueError where a protocol of masks would judge boxes or points that a data set asks for."""
    places = set(data.env().asked) - {"mask"}
    names = [name for name in asked.protocols_of(data) if name.partition("/")[0] != "tasks"]
    if places and names:
        raise ValueError(
            f"{data.name} asks for {' and '.join(sorted(places))} too, and the protocol {names[0]} judges masks alone; "
            "give --protocol tasks."
        )


def files_of(asked: Benchmark, model: BenchmarkModel, data: BenchmarkSet) -> AnswerFiles:
    """Where the answers of a model to a data set are kept."""
    return AnswerFiles(asked.out / "answers" / model.name / data.name)


def answer_all(asked: Benchmark, model: BenchmarkModel, data: BenchmarkSet, console: Console) -> None:
    """Have a model answer every example of a data set that it has not answered yet."""
    env, files = data.env(), files_of(asked, model, data)
    total = len(env) if asked.limit is None else min(asked.limit, len(env))
    files.begin(_how(model, data, env))
    done = files.num_kept(total)
    if done >= total:
        return
    config = model.asked_about(data)
    parts = run_parts(config)
    told = f"starting workers for {model.name} on {data.name}"
    with answering(config, parts, console, told) as pool:
        refining = _Refining.of(model, parts)
        with StepProgress(console, f"{model.name} on {data.name}", total, done) as progress:
            for groups in _chunks(pool, config, done, total):
                files.add(refining.rows(env, groups), done)
                done += len(groups)
                progress.update(done, f"mean IoU {np.mean([group.rollouts[0].iou for group in groups]):.3f}")


def keep_oracle(asked: Benchmark, data: BenchmarkSet, console: Console) -> None:
    """Keep the best choice from the candidates of every example of a data set that has candidates."""
    if not has_candidates(data):
        return
    env, files = data.env(), oracle_files(asked, data)
    total = len(env) if asked.limit is None else min(asked.limit, len(env))
    files.begin({"data": env.fingerprint})
    done = files.num_kept(total)
    with StepProgress(console, f"{ORACLE} on {data.name}", total, done) as progress:
        for first in range(done, total, CHUNK):
            places = range(first, min(first + CHUNK, total))
            files.add([oracle_row(env[place]) for place in places], first)
            progress.update(places.stop)


def has_candidates(data: BenchmarkSet) -> bool:
    """Whether questions of a data set come with masks to choose from, by its first ones."""
    env = data.env()
    return set(env.asked) == {"mask"} and any(env[k].candidates is not None for k in range(min(len(env), CHUNK)))


def oracle_files(asked: Benchmark, data: BenchmarkSet) -> AnswerFiles:
    """Where the best choices from the candidates of a data set are kept."""
    return AnswerFiles(asked.out / "oracle" / data.name)


def _how(model: BenchmarkModel, data: BenchmarkSet, env: Env) -> dict[str, Any]:
    """What answers depend on, in terms of JSON."""
    return {
        "checkpoint": model.checkpoint,
        "refiner": None if model.refiner is None else str(model.refiner.resolve()),
        "codec": model.config.codec,
        "policy": {key: value for key, value in model.config.policy.items() if key != "checkpoint"},
        "max_tokens": model.config.sampling.max_tokens,
        "grammar": model.config.sampling.grammar,
        "weights": weight_files(model.checkpoint),
        "data": env.fingerprint,
    }


def weight_files(checkpoint: str) -> dict[str, list[int]]:
    """Size and time of change of a checkpoint's weight files, by which other weights in its place show."""
    files = sorted(Path(checkpoint).glob("*.safetensors")) + sorted(Path(checkpoint).glob("*.bin"))
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


def _chunks(pool: WorkerPool, config: RunConfig, first: int, total: int) -> Iterator[list[Group]]:
    """Groups of CHUNK examples each, in order; one chunk is asked for while another is worked on."""
    pool.ask(greedy_units(config, "test", min(first + CHUNK, total), first))
    for following in range(first + CHUNK, total + CHUNK, CHUNK):
        if following < total:
            pool.ask(greedy_units(config, "test", min(following + CHUNK, total), following))
        yield pool.collect()


class _Refining:
    """Makes rows of answers, refined where the model has a refiner."""

    def __init__(self, policy: Any, refiner: MaskRefiner | None, budget: OutlineBudget | None) -> None:
        self._policy, self._refiner, self._budget = policy, refiner, budget

    @classmethod
    def of(cls, model: BenchmarkModel, parts: RunParts) -> "_Refining":
        """With the tower of the policy, on a GPU where there is one; the policy is built only for a refiner."""
        codec = parts.policy.settings["codec"]
        budget = OutlineBudget.of(codec)
        if model.refiner is None:
            return cls(None, None, budget)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        policy: Any = parts.policy.build().eval().to(device)
        return cls(policy, MaskRefiner.load(model.refiner, policy.vision_checksum()).to(device), budget)

    def rows(self, env: Env, groups: Sequence[Group]) -> list[dict[str, Any]]:
        """A row for each greedy answer."""
        return [answer_row(group, self._refined(env, group), self._budget, _text(group)) for group in groups]

    def _refined(self, env: Env, group: Group) -> NDArray[np.bool_] | None:
        answer, example = group.rollouts[0].answer, group.example
        if self._refiner is None or self._policy is None:
            return None
        if answer.status is not AnswerStatus.OK or example.prompt.asked != "mask":
            return None
        coarse = mask_from_rings(answer.rings_px, example.image.height, example.image.width)
        [[refined]] = refine_masks(self._refiner, self._policy, [env.image(example.image)], [[coarse]])
        return refined.mask


def _text(group: Group) -> str:
    return group.rollouts[0].text


def judged(asked: Benchmark) -> list[SetScores]:
    """Every kept answer, judged under every protocol of its data set; refined masks as a model of their own, and so the
    best choice from the candidates, where there are some."""
    found = []
    for data in asked.sets:
        for name in asked.protocols_of(data):
            protocol = protocol_named(name)
            for model in asked.models:
                rows = list(files_of(asked, model, data).rows())[: asked.limit]
                found.append(judge_rows(model.name, data.name, name, protocol, rows, refined=False))
                if any(row["refined"] is not None for row in rows):
                    called = f"{model.name} + refiner"
                    found.append(judge_rows(called, data.name, name, protocol, rows, refined=True))
            best = list(oracle_files(asked, data).rows())[: asked.limit]
            if best:
                found.append(judge_rows(ORACLE, data.name, name, protocol, best, refined=False))
    return found


def differences(found: Sequence[SetScores]) -> dict[tuple[str, str], dict[str, dict[str, Interval]]]:
    """By data set and protocol, every later model less the first, on the same examples: scores by title."""
    made: dict[tuple[str, str], dict[str, dict[str, Interval]]] = {}
    first: dict[tuple[str, str], SetScores] = {}
    for one in found:
        key = (one.data, one.protocol)
        before = first.setdefault(key, one)
        if before is not one and one.model != ORACLE:
            of = protocol_named(one.protocol).differences(before.judged, one.judged)
            made.setdefault(key, {})[f"{one.model} - {before.model}"] = of
    return made


def write_files(asked: Benchmark, found: Sequence[SetScores], console: Console) -> None:
    """Print the tables, and write all that is made of the answers."""
    tables, paired = score_tables(found, asked.own), differences(found)
    for table in tables:
        console.print(*terminal(table))
    for (data, protocol), pairs in paired.items():
        console.print(difference_table(pairs, data, protocol))
    for one in found:
        if one.unreadable:
            told = f"{one.unreadable:,} of {len(one.judged):,} answers could not be read and count as empty masks"
            line = f"{one.model} on {one.data} ({one.protocol}): {told}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    out = asked.out
    replace_text(out / "tables.md", markdown(tables))
    replace_text(out / "tables.tex", latex(tables))
    replace_text(out / "summary.json", json_text(summary(found, paired), indent=2) + "\n")
    for model in asked.models:
        for each in asked.sets:
            rows = list(files_of(asked, model, each).rows())
            for kind in (OUTLINE, REFINED):
                _write_results(out, model.name, each.name, kind, rows)
    shown = {model.name: files_of(asked, model, asked.sets[0]) for model in asked.models}
    write_benchmark_page(out / "benchmark.html", found, tables, asked.sets[0].env(), shown)
    for name in ("benchmark.html", "tables.md", "tables.tex", "summary.json", "results", "answers"):
        console.print(f"wrote {out / name}", markup=False, soft_wrap=True)


def _write_results(out: Path, model: str, data: str, kind: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Masks as COCO results: [{image_id, category_id, segmentation, score, example_id}], of what has such masks."""
    column = "mask" if kind == OUTLINE else "refined"
    if all(row[column] is None for row in rows):
        return
    results = [
        {
            "image_id": int(coco_number(Path(row["image"])) or k),
            "category_id": 1,
            "segmentation": {"size": [row["height"], row["width"]], "counts": row[column] or row["mask"]},
            "score": 1.0,
            "example_id": row["example_id"],
        }
        for k, row in enumerate(rows)
    ]
    name = data if kind == OUTLINE else f"{data}_{kind}"
    replace_text(out / "results" / model / f"{name}.json", json.dumps(results))


def summary(
    found: Sequence[SetScores], paired: Mapping[tuple[str, str], Mapping[str, Mapping[str, Interval]]]
) -> dict[str, Any]:
    """All numbers, JSON-ready: fractions, each as {value, low, high}."""
    return {
        "scores": [
            {
                "model": one.model,
                "data": one.data,
                "protocol": one.protocol,
                "examples": len(one.judged),
                "unreadable": one.unreadable,
                "scores": {title: _numbers(interval) for title, interval in one.scores.items()},
                "kinds": [
                    {"title": kind.title, "name": kind.name, "examples": kind.count, "iou": _numbers(kind.iou)}
                    for kind in one.kinds
                ],
                "errors": None if one.errors is None else {k: _numbers(each) for k, each in one.errors.items()},
            }
            for one in found
        ],
        "differences": [
            {
                "data": data,
                "protocol": protocol,
                "pair": pair,
                "scores": {title: _numbers(interval) for title, interval in of.items()},
            }
            for (data, protocol), pairs in paired.items()
            for pair, of in pairs.items()
        ],
    }


def _numbers(interval: Interval) -> dict[str, float]:
    value, low, high = interval.numbers
    return {"value": value, "low": low, "high": high}
