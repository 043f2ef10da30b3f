"""`polytrace check`: what a checkpoint is, how a config asks it, what would ruin a run; no weight is loaded.

All of it is told from the folder's JSON files, the headers of its weights and its tokenizer: it takes seconds for a
model of any size.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from envs.codecs._point_codec import PointCodec
from envs.codecs.base import ChoosingCodec, FittingCodec, LimitedCodec
from envs.example import Prompt, Question
from envs.plugin import Plugin
from policies.checkpoint import Checkpoint
from policies.families._loading import refuse_unfilled
from policies.processor import Processor
from rl.config.learner import LearnerSettings, TrainingSettings
from rl.config.load import read_mapping, settings_from
from rl.config.plugins import codec_plugin, policy_plugin
from rl.config.sft import SftLearner
from rl.planning.states import NUMBER_BYTES, rank_states
from rl.run.parts import processor_of
from rl.run.thinking import refuse_unfit_thinking, refuse_untaught_thinking, thinking_notes
from rl.run.writable import refuse_unfit_grammar, refuse_unwritable_codec
from rollout.settings import Sampling

_PHRASE = "the left apple"
_SIZES = ((480, 640), (2000, 3000))
"""Photos whose tokens are told, (height, width)."""
_VERTICES = 40
"""Corners of the outline by which tokens a vertex are measured."""
_TOWERS = ("visual.", "vision_tower.", "multi_modal_projector.")
"""What the names of a vision tower's weights hold, projector included."""
_MANY_TOKENS = 4096
"""Tokens of one photo above which a row takes tens of GiB of activations at 7B."""
_GIB = 2**30


@dataclass(frozen=True)
class Report:
    """What is known of a checkpoint under a config."""

    checkpoint: str
    """Folder of the model."""
    family: str
    """Family for people; "" where it is none that can be loaded."""
    parameters: dict[str, int]
    """Weights by part: vision tower, language model, head (0 where it is the embedding), and all."""
    stored_dtype: str | None
    """Number format that config.json names."""
    prompt: str
    """The prompt about one image, special tokens shown."""
    image_tokens: dict[str, int]
    """Tokens that stand for a photo, by "HEIGHTxWIDTH"."""
    end_tokens: list[str]
    """Tokens that end an answer."""
    never_sampled: int
    """How many tokens have no probability."""
    coordinates: dict[str, str]
    """Numbers that places are written in: by the codec, and by the family's released models."""
    tokens_per_vertex: float
    """Tokens of an outline of 40 corners, end token and brackets included, by corner."""
    longest_outline: int
    """Vertices that an answer of sampling.max_tokens holds, and the codec writes."""
    memory_gib: dict[str, float]
    """GiB of weights on a worker, and of weights, gradients and optimizer on a learner rank, without activations."""
    engine_class: str
    """Class by which vLLM knows the model."""
    notes: list[str] = field(default_factory=list)
    """What to look at; a run goes on with it."""
    problems: list[str] = field(default_factory=list)
    """What would ruin a run, each with what to do."""


def check(checkpoint: str, config: Path | None, overrides: Sequence[str] = ()) -> Report:
    """Look at a Hugging Face folder, or the embedded one by its name, under a config for `train` or `sft`.

    config: where codec, policy, learner and sampling are read, with overrides; None for point_text and defaults. Raises
    ValueError or FileNotFoundError for a config that cannot be read; what is wrong with the checkpoint is reported.
    """
    if config is None and overrides:
        raise ValueError(f"{overrides[0]} changes a setting of no config; give the config by --config.")
    values = {} if config is None else read_mapping(config, overrides)
    codec = codec_plugin(values.get("codec") or {"name": "point_text"})
    kind: type[TrainingSettings] = SftLearner if "sft" in values else LearnerSettings
    learner = settings_from(kind, values.get("learner", {}), "learner")
    most = values.get("max_tokens", 512)  # as the config of a supervised training says it
    sampling = settings_from(Sampling, values.get("sampling", {"max_tokens": most}), "sampling")
    entry = dict(values.get("policy") or {}) | {"checkpoint": checkpoint}
    if "sft" in values:
        entry.setdefault("dtype", learner.dtype)  # as a supervised training does
    try:
        plugin = policy_plugin(entry, codec)
        held = Checkpoint(Path(plugin.settings["checkpoint"]))
        processor = processor_of(plugin)
    except (ValueError, FileNotFoundError) as error:
        return _unusable(checkpoint, str(error))
    taught = (values.get("sft") or {}).get("answers")
    problems = _problems(held, processor, plugin, codec, (None if "sft" in values else sampling, taught))
    parameters = _parameters(held)
    report = _report(held, processor, str(plugin.settings.get("dtype", "float32")), sampling.max_tokens)
    memory = _memory(parameters, str(plugin.settings.get("dtype", "float32")), learner)
    if "sft" in values:  # where the setting has another name
        report = replace(report, notes=[note.replace("sampling.max_tokens", "max_tokens") for note in report.notes])
    return replace(report, parameters=parameters, memory_gib=memory, problems=problems)


def _problems(
    held: Checkpoint,
    processor: Processor,
    plugin: Plugin,
    codec: Plugin,
    answering: tuple[Sampling | None, list[str] | None],
) -> list[str]:
    """answering: how answers are sampled, None for a supervised training; and the sentences that one teaches."""
    sampling, taught = answering
    found = []
    for look in (
        lambda: refuse_unfilled(held, processor.family),
        lambda: refuse_unwritable_codec(processor, plugin, codec),
        lambda: refuse_unfit_grammar(processor, sampling is not None and sampling.grammar),
        lambda: (
            refuse_untaught_thinking(processor, taught)
            if sampling is None
            else refuse_unfit_thinking(processor, sampling)
        ),
    ):
        try:
            look()
        except (ValueError, FileNotFoundError) as error:
            found.append(str(error))
    return found


def _parameters(held: Checkpoint) -> dict[str, int]:
    """Weights by part; {} where they are not all there, or cannot be read, which is among the problems."""
    try:
        stored = held.stored_shapes() if held.whole else {}
    except ValueError:
        stored = {}
    if not stored:
        return {}
    sizes = {name: int(np.prod(shape, dtype=np.int64)) for name, shape in stored.items()}
    tower = sum(size for name, size in sizes.items() if any(part in name for part in _TOWERS))
    head = sum(size for name, size in sizes.items() if name.endswith("lm_head.weight"))
    whole = sum(sizes.values())
    return {"vision tower": tower, "language model": whole - tower - head, "head": head, "all": whole}


def _report(held: Checkpoint, processor: Processor, dtype: str, max_tokens: int) -> Report:
    """All but what needs the weights' names and the learner's settings."""
    question = Question(np.zeros((*_SIZES[0], 3), np.uint8), Prompt.of_text(_PHRASE))
    per_vertex = _tokens_per_vertex(processor)
    coordinates = {"codec": _coordinates(processor), "family": processor.family.coordinates}
    held_by_codec = processor.codec.max_vertices if isinstance(processor.codec, LimitedCodec) else max_tokens
    longest = min(int(max_tokens / per_vertex), held_by_codec)
    ordinary = min(_VERTICES, held_by_codec)
    tokenizer = processor.tokenizer
    return Report(
        checkpoint=str(held.folder),
        family=processor.family.title,
        parameters={},
        stored_dtype=held.dtype,
        prompt=processor.prompt_text(question),
        image_tokens={f"{h}x{w}": processor.image_tokens(h, w) for h, w in _SIZES},
        end_tokens=[str(token) for token in tokenizer.convert_ids_to_tokens(processor.end_tokens)],
        never_sampled=len(processor.unsampled_tokens),
        coordinates=coordinates,
        tokens_per_vertex=per_vertex,
        longest_outline=longest,
        memory_gib={},
        engine_class=str((held.config.get("architectures") or ["unnamed"])[0]),
        notes=[
            *notes_of(processor, held.dtype, dtype),
            *_length_notes(longest, ordinary, max_tokens),
            *thinking_notes(processor, round(per_vertex * ordinary), max_tokens),
        ],
    )


def _tokens_per_vertex(processor: Processor) -> float:
    if isinstance(processor.codec, ChoosingCodec):
        return 1.0  # a choice a candidate
    height, width = _SIZES[0]
    angles = np.linspace(0, 2 * np.pi, _VERTICES, endpoint=False)
    ring = np.stack([0.5 + 0.37 * np.cos(angles), 0.5 + 0.41 * np.sin(angles)], 1) * [width, height]
    try:
        text = processor.codec.encode([[ring]], height, width)
    except ValueError:  # more vertices than the codec's limits allow
        ring = ring[:: _VERTICES // 8]
        text = processor.codec.encode([[ring]], height, width)
    written = len(ring)
    if isinstance(processor.codec, FittingCodec):  # it chose its own points, which stand behind the box
        written = max(1, (sum(word.isdigit() for word in text.split()) - 4) // 2)
    return len(processor.answer_tokens(text)) / written


def _coordinates(processor: Processor) -> str:
    """Coordinates of the processor's codec; "its own" for a codec that has none of COORDINATES."""
    return processor.codec.coordinates if isinstance(processor.codec, PointCodec) else "its own"


def _memory(parameters: dict[str, int], dtype: str, learner: TrainingSettings) -> dict[str, float]:
    """Memory as a plan has it (rl/planning/states.py), without what passes take. Adapters count for nothing."""
    held = parameters.get("all", 0)
    trained = held - parameters.get("vision tower", 0) * learner.freeze_vision if learner.lora is None else 0
    number = NUMBER_BYTES.get(dtype, 4)
    return {
        "worker": held * number / _GIB,
        "learner rank": rank_states(held, trained, number, learner).on_card / _GIB,
    }


def notes_of(processor: Processor, stored: str | None, dtype: str) -> list[str]:
    """What to look at before a run; stored, dtype: number formats of the checkpoint and of the policy."""
    notes = []
    if stored == "bfloat16" and dtype == "float32":
        notes.append(
            "the checkpoint is stored in bfloat16 and policy.dtype is float32: twice the memory; set policy.dtype and "
            "learner.dtype to bfloat16 for a large model."
        )
    written, known = _coordinates(processor), processor.family.coordinates
    if written not in (known, "its own"):
        notes.append(
            f"the codec writes places as {written}, released models of this family as {known}: right for a checkpoint "
            "that was fine-tuned so, else set codec.coordinates to family."
        )
    large = processor.image_tokens(*_SIZES[1])
    if large > _MANY_TOKENS:
        notes.append(
            f"a photo of 3000x2000 takes {large} tokens; policy.max_pixels bounds it (1003520 is 1,280 tokens of "
            "28x28)."
        )
    return notes


def _length_notes(longest: int, ordinary: int, max_tokens: int) -> list[str]:
    if longest >= ordinary:
        return []
    return [
        f"sampling.max_tokens {max_tokens} holds outlines of {longest} vertices; longer ones are cut and earn nothing: "
        "raise it, or teach fewer vertices."
    ]


def _unusable(checkpoint: str, problem: str) -> Report:
    return Report(checkpoint, "", {}, None, "", {}, [], 0, {}, 0.0, 0, {}, "", problems=[problem])


def as_json(report: Report) -> dict[str, Any]:
    """The report for a program."""
    return asdict(report)


def table_of(report: Report) -> Table:
    """The report for a person."""
    table = Table("", report.checkpoint, show_header=True, header_style="")
    rows: list[tuple[str, str]] = []
    if report.family:
        sizes = ", ".join(f"{name} {_millions(size)}" for name, size in report.parameters.items())
        tied = "" if report.parameters.get("head", 1) else " (the head is the embedding)"
        rows += [
            ("family", f"{report.family}, {report.engine_class}, stored in {report.stored_dtype or 'no named format'}"),
            ("parameters", sizes + tied),
            ("prompt", report.prompt),
            ("tokens of a photo", ", ".join(f"{size}: {num}" for size, num in report.image_tokens.items())),
            ("answers end at", " ".join(report.end_tokens)),
            ("never sampled", f"{report.never_sampled} tokens"),
            ("places are written as", " / ".join(f"{who}: {kind}" for who, kind in report.coordinates.items())),
            ("tokens a vertex", f"{report.tokens_per_vertex:.1f}; an answer holds {report.longest_outline} of them"),
            ("memory", ", ".join(f"{who} {size:.1f} GiB" for who, size in report.memory_gib.items())),
        ]
    rows += [("note", note) for note in report.notes] + [("PROBLEM", problem) for problem in report.problems]
    for name, text in rows or [("", "nothing to say")]:
        table.add_row(name, text.replace("[", r"\["))
    return table


def _millions(size: int) -> str:
    return f"{size / 1e9:.2f} B" if size >= 1e9 else f"{size / 1e6:.1f} M"
