"""Data before training: any env's examples written once as shards, and what is seen of them without training anything.

`show` measures on a seeded sample: tokens of prompts and answers under the config's policy and codec, and the IoU that
the codec's own text of a true mask reaches, which no policy can be expected to pass.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray
from rich.console import Console
from rich.table import Table

from envs.codecs.base import AnswerCodec, ChoosingCodec, FittingCodec, LimitedCodec
from envs.datasets.base import Env, NamesSplits
from envs.example import Example
from envs.geometry.contours import largest_rings, outline, rings_from_mask
from envs.geometry.pools import oracle
from envs.plugin import Plugin
from envs.polygons import Ring
from envs.pool_files import Pools
from envs.reading import told
from envs.shards.files import Card, read_card
from policies.processor import Processor
from policies.thinking import Thinking
from rl.config.load import load_settings, read_mapping
from rl.config.plugins import codec_plugin, env_plugin, policy_plugin
from rl.config.run import RunConfig
from rl.config.sft import SftConfig, SftSettings
from rl.evaluation.scores import score_answer
from rl.pages.page import render_page, write_page
from rl.pages.pictures import COLOURS, svg_overlay
from rl.pages.progress import bar
from rl.run.data import RunData
from rl.run.parts import processor_of
from rl.sources.pooled_env import PooledEnv
from rl.supervised.answers import answer_text
from rollout.archive.shards import polytrace_version
from rollout.example_shards import SplitWriter


@dataclass(frozen=True)
class DataConfig:
    """What the config of a run or of a supervised training says of its data."""

    env: dict[str, Any]
    """The entry `env`."""
    codec: dict[str, Any]
    """The entry `codec`."""
    policy: dict[str, Any]
    """The entry `policy`."""
    splits: tuple[str, ...]
    """Splits that a training by this config asks for."""
    sft: SftSettings | None
    """How supervised answers are drawn; None for a run that learns by rewards alone."""

    @property
    def plugin(self) -> Plugin:
        """The env's recipe; ValueError for a wrong one."""
        return env_plugin(self.env)


def data_config(path: Path, overrides: Sequence[str]) -> DataConfig:
    """The data of a config for `train` or for `sft`, checked as these do.

    Raises ValueError or FileNotFoundError for a config that cannot be used.
    """
    if "sft" in read_mapping(path):
        sft = load_settings(SftConfig, path, overrides)
        return DataConfig(sft.env, sft.codec, sft.policy, ("train", "validation"), sft.sft)
    # Data is looked at before there is a run.
    run = load_settings(RunConfig, path, overrides if "run" in read_mapping(path) else ["run=none", *overrides])
    asked = dict.fromkeys(("train", "validation", run.evaluation.final_split))
    return DataConfig(run.env, run.codec, run.policy, tuple(asked), None)


def all_splits(config: DataConfig) -> tuple[str, ...]:
    """The splits that the env says it has, else those that the config asks for."""
    env = config.plugin.build(split=config.splits[0])
    return env.splits() if isinstance(env, NamesSplits) else config.splits


def prepare(
    config: DataConfig, splits: Sequence[str], out: Path, embed: bool, console: Console, pools: Pools | None = None
) -> dict[str, Card]:
    """Write the examples of `splits` to `out`, a folder for each; goes on where it was stopped. Returns their cards.

    embed: write images into the shards also where they are files. pools: candidates of the images; questions about an
    image that has none are left out. Raises ValueError where the folder holds other data,
    and what the env raises.
    """
    RunData.of(config.plugin, splits)
    provenance = {"env": config.env, "polytrace": polytrace_version()}
    if pools is not None:
        provenance["pools_sha256"] = pools.sha256
    cards: dict[str, Card] = {}
    for split in splits:
        env: Env = config.plugin.build(split=split)
        if pools is not None:
            env = PooledEnv(env, pools, console)
            for line in told(env.left_out):
                console.print(f"{split}: left out {line}", markup=False, highlight=False, soft_wrap=True)
        writer = SplitWriter(out / split, env, provenance, embed)
        if writer.is_whole:
            cards[split] = read_card(out, split)
            continue
        for index in bar(range(writer.next_index, len(env)), f"preparing {split}", console):
            writer.add(index)
        cards[split] = writer.finish()
    return cards


def prepared_table(cards: Mapping[str, Card]) -> Table:
    """What was written of each split."""
    table = Table("split", "examples", "rows", "shards", "MB", "images", title="Prepared examples")
    for column in table.columns[1:5]:
        column.justify = "right"
    for split, card in cards.items():
        size = sum(file.num_bytes for file in (*card.shards, *card.others)) / 1e6
        rows, images = sum(shard.rows for shard in card.shards), card.image_folder or "embedded"
        table.add_row(split, f"{card.num_examples:,}", f"{rows:,}", f"{len(card.shards):,}", f"{size:,.1f}", images)
    return table


@dataclass(frozen=True)
class Spread:
    """How a number is spread over examples."""

    median: float
    """Half of the examples have less."""
    low: float
    """10th percentile."""
    high: float
    """90th percentile."""
    most: float
    """The largest."""


@dataclass(frozen=True)
class Seen:
    """One example that was looked at."""

    example: Example
    """What is asked, and what is true."""
    image: NDArray[np.uint8]
    """[H, W, 3] RGB."""
    text: str
    """The codec's text of the truth; "" where it cannot write it."""
    reached: Sequence[Ring]
    """Rings, px, that this text reads as."""
    iou: float
    """IoU of these rings with the truth; 0 where the codec cannot write it."""
    taught_iou: float | None
    """IoU of the answer that `sft` teaches; None for a run without supervision."""
    tokens: tuple[int, int] | None
    """Tokens of the prompt and of the answer, the taught one where there is one; None without a policy."""
    oracle: float | None
    """IoU of the best choice from its candidates (envs/geometry/pools.py); None without."""


@dataclass(frozen=True)
class SplitSummary:
    """What is known of a split without training."""

    examples: int
    """All of the split."""
    looked_at: int
    """Examples that the other numbers are of."""
    images: int
    """Different images among these: few where the same ones are asked about again and again."""
    instances: dict[str, int]
    """How many examples have so many true instances; "0" asks for what is not there."""
    unwritable: int
    """Examples whose truth the codec cannot write within its limits, each an IoU of 0."""
    codec_iou: Spread
    """IoU of the codec's text of the truth, as well drawn as its limits allow; examples that show nothing left out."""
    taught_iou: Spread | None
    """IoU of the answers that `sft` teaches; None for a run without supervision."""
    prompt_tokens: Spread | None
    """Tokens of a prompt, those of the image included; None without a policy."""
    answer_tokens: Spread | None
    """Tokens of the codec's text, or of the answer that `sft` teaches, end token included; None without a policy."""
    candidates: Spread | None
    """Masks that a question lets be chosen from; None where none does."""
    oracle: Spread | None
    """IoU of the best choice from them; examples that show nothing left out. None where no question has candidates."""


def spread(values: ArrayLike) -> Spread:
    """Median, 10th and 90th percentile and the largest of one or more numbers."""
    numbers = np.asarray(values, np.float64)
    low, median, high = np.quantile(numbers, [0.1, 0.5, 0.9]).tolist()
    return Spread(median, low, high, float(numbers.max()))


class Looker:
    """Looks at examples with the codec and the policy of a config; the policy's weights are not needed."""

    def __init__(self, config: DataConfig) -> None:
        """Build both; raises what their settings are refused with."""
        recipe = codec_plugin(config.codec)
        self._codec: AnswerCodec = recipe.build()
        self._sft = config.sft
        self._processor: Processor | None = None
        if config.sft is None or config.policy.get("checkpoint") is not None:
            self._processor = processor_of(policy_plugin(config.policy, recipe))
            self._codec = self._processor.codec
        marks = config.policy.get("thinking_marks") or ("<think>", "</think>")
        without = Thinking(str(config.policy.get("thinking", "none")), (str(marks[0]), str(marks[1])))
        self._thinking = without if self._processor is None else self._processor.thinking

    def look(self, env: Env, index: int) -> Seen:
        """The example at `index`; raises ValueError, naming it, where `sft` could not teach its answer."""
        example = env[index]
        image = env.image(example.image)
        iou, text, rings = max((self._read_back(text, example) for text in self._best_texts(example)), key=_first)
        taught_text, taught_iou = text, None
        if self._sft is not None:
            taught_text = answer_text(example, self._codec, self._sft)
            taught_iou = self._read_back(taught_text, example, self._thinking)[0]
        tokens = None
        if self._processor is not None:
            prompt = self._processor.prompt_tokens(example.question(image))
            tokens = len(prompt), len(self._processor.answer_tokens(taught_text))
        best = None if example.candidates is None else oracle(example.candidates, example.truth.union)
        return Seen(example, image, text, rings, iou, taught_iou, tokens, best)

    def _best_texts(self, example: Example) -> list[str]:
        """Texts of the truth with 1, 2, 4, ... rings in each instance and all vertices that the codec allows; of
        candidates, those that stand for it."""
        masks, limits = example.truth.masks, SftSettings()
        if isinstance(self._codec, ChoosingCodec):
            return [self._codec.chosen_text(example.candidates, masks)]
        most_rings, most_vertices = limits.max_rings, limits.max_vertices
        if isinstance(self._codec, LimitedCodec):
            most_rings, most_vertices = self._codec.max_rings, self._codec.max_vertices
        share = max(1, len(masks))
        vertices = max(3, most_vertices // share)
        tried = [2**k for k in range(10) if 2**k <= min(most_rings // share, vertices // 3)] or [1]
        texts = []
        for rings in tried:
            outlines = [
                largest_rings(rings_from_mask(mask), rings, 0.0)
                if isinstance(self._codec, FittingCodec)
                else outline(mask, vertices, rings, min_share=0.0)
                for mask in masks
            ]
            try:
                texts.append(self._codec.encode(outlines, example.image.height, example.image.width))
            except ValueError:  # beyond its limits: `Seen` tells
                texts.append("")
        return texts

    def _read_back(
        self, text: str, example: Example, thinking: Thinking | None = None
    ) -> tuple[float, str, Sequence[Ring]]:
        """IoU that a text reaches, the text, and the rings that it reads as; thinking: what may stand before it."""
        if not text:
            return 0.0, text, ()
        height, width = example.image.height, example.image.width
        bare = Thinking("none", ("", ""))
        if isinstance(self._codec, ChoosingCodec):
            answer = self._codec.read_chosen(text, example.candidates)
            return score_answer(answer, example.truth, example.id).iou, text, answer.rings_px
        answer = (thinking or bare).read(lambda rest: self._codec.read(rest, height, width), text, truncated=False)
        return score_answer(answer, example.truth, example.id).iou, text, answer.rings_px


def _first(found: tuple[float, str, Sequence[Ring]]) -> float:
    return found[0]


def look_at(config: DataConfig, split: str, limit: int, seed: int, console: Console) -> tuple[list[Seen], int]:
    """Up to `limit` examples of a split, drawn by `seed`, in the order of the env; and how many it has.

    Raises ValueError where the split has none, and as the env and `Looker` do.
    """
    env: Env = config.plugin.build(split=split)
    if not len(env):
        raise ValueError(f"env has no example in the split {split}; name others by --split, or change its settings.")
    drawn = np.sort(np.random.default_rng(seed).permutation(len(env))[:limit]).tolist()
    looker = Looker(config)
    return [looker.look(env, index) for index in bar(drawn, f"looking at {split}", console)], len(env)


def summary_of(seen: Sequence[Seen], num_examples: int) -> SplitSummary:
    """The numbers of a split from one or more examples of it."""
    instances = Counter(len(one.example.truth.masks) for one in seen)
    drawn = [one for one in seen if len(one.example.truth.masks)] or seen  # that nothing is there, any codec can say
    taught = [one.taught_iou for one in drawn if one.taught_iou is not None]
    tokens = [one.tokens for one in seen if one.tokens is not None]
    pools = [len(one.example.candidates) for one in seen if one.example.candidates is not None]
    best = [one.oracle for one in drawn if one.oracle is not None]
    return SplitSummary(
        examples=num_examples,
        looked_at=len(seen),
        images=len({one.example.image.sha256 for one in seen}),
        instances={str(number): count for number, count in sorted(instances.items())},
        unwritable=sum(not one.text for one in seen),
        codec_iou=spread([one.iou for one in drawn]),
        taught_iou=spread(taught) if taught else None,
        prompt_tokens=spread([prompt for prompt, _ in tokens]) if tokens else None,
        answer_tokens=spread([answer for _, answer in tokens]) if tokens else None,
        candidates=spread(pools) if pools else None,
        oracle=spread(best) if best else None,
    )


def summary_table(summaries: Mapping[str, SplitSummary]) -> Table:
    """A column for each split."""
    table = Table("", *summaries, title="Data under the config's policy and codec")
    for column in table.columns[1:]:
        column.justify = "right"
    for title, cells in summary_rows(summaries):
        table.add_row(title, *cells)
    return table


def summary_rows(summaries: Mapping[str, SplitSummary]) -> list[tuple[str, list[str]]]:
    """Titles of the numbers, and each number of every split as text."""
    splits = summaries.values()
    rows = [
        ("examples", [f"{one.examples:,}" for one in splits]),
        ("looked at", [f"{one.looked_at:,}" for one in splits]),
        ("images among them", [f"{one.images:,}" for one in splits]),
        ("nothing true among them", [f"{one.instances.get('0', 0):,}" for one in splits]),
        ("prompt tokens: median, p90, max", [_lengths(one.prompt_tokens) for one in splits]),
        ("answer tokens: median, p90, max", [_lengths(one.answer_tokens) for one in splits]),
        ("best IoU of the codec: median, p10", [_ious(one.codec_iou) for one in splits]),
        ("IoU of what sft teaches: median, p10", [_ious(one.taught_iou) for one in splits]),
        ("beyond the codec's limits", [f"{one.unwritable:,}" for one in splits]),
    ]
    if any(one.candidates is not None for one in splits):
        rows.append(("candidates: median, p90, max", [_lengths(one.candidates) for one in splits]))
        rows.append(("best choice of candidates: median, p10", [_ious(one.oracle) for one in splits]))
    return rows


def _lengths(tokens: Spread | None) -> str:
    return "-" if tokens is None else f"{tokens.median:.0f}, {tokens.high:.0f}, {tokens.most:.0f}"


def _ious(iou: Spread | None) -> str:
    return "-" if iou is None else f"{iou.median:.3f}, {iou.low:.3f}"


def as_json(summaries: Mapping[str, SplitSummary]) -> dict[str, Any]:
    """Splits by name, in terms of JSON."""
    return {"splits": {split: asdict(summary) for split, summary in summaries.items()}}


def write_data_page(
    out: Path, title: str, shown: Mapping[str, Sequence[Seen]], summaries: Mapping[str, SplitSummary]
) -> None:
    """Write numbers and pictures as a page."""
    page = render_page(
        "data.html.j2",
        title=title,
        shown=shown,
        summaries=summaries,
        rows=summary_rows(summaries),
        svg=_svg,
        colours=COLOURS,
    )
    write_page(out, page)


def _svg(one: Seen) -> Markup:
    truth = [ring for mask in one.example.truth.masks for ring in rings_from_mask(mask)]
    title = f"“{one.example.prompt.told}”, IoU of the codec {one.iou:.3f}"
    return Markup(svg_overlay(one.image, truth, COLOURS["truth"], title, outline=one.reached))
