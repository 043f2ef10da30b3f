"""A new tiny model for `polytrace sft` without a checkpoint: its words are those of the env's phrases and the codec."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

from rich.console import Console

from envs.codecs import svg_path
from envs.codecs.base import ChoosingCodec, WordCodec
from envs.datasets.base import Env
from envs.plugin import Plugin
from policies.moondream.tiny_model import write_untrained as write_moondream
from policies.question import PHRASE, check_question
from policies.tiny_model import TinySizes, write_untrained
from rl.config.plugins import policy_plugin
from rl.config.sft import SftConfig


@runtime_checkable
class SignCodec(Protocol):
    """A codec whose texts are made up of pieces, digits among them, spaces included."""

    @property
    def signs(self) -> list[str]:
        """Pieces that make up every text, digits first."""
        ...


def write_new_model(folder: Path, config: SftConfig, env: Env, codec: Plugin, console: Console) -> None:
    """Write an untrained model that can be asked every phrase of `env` and can write every answer of `codec`; one that
    chooses among masks writes nothing.

    Raises ValueError for a codec whose texts are not words, or a question without a phrase. Says where images will be
    shown to it smaller than they are.
    """
    built = codec.build()
    if not isinstance(built, WordCodec | SignCodec | ChoosingCodec):
        raise ValueError(
            f"codec is {codec.name}, and the new model that is made without policy.checkpoint writes words of a list "
            "with spaces between, or pieces of text, and this codec names neither as `words` or `signs`; choose codec "
            "path_tokens or point_text, or give policy.checkpoint a model that writes any text."
        )
    sentences = config.sft.answers or []
    if config.policy.get("thinking", "none") != "none" and config.sft.draft is None:
        raise ValueError(
            f"policy.thinking is {config.policy['thinking']}, but the new model that is made without policy.checkpoint "
            "knows the words of phrases alone, with which nothing is reasoned; set policy.thinking to none, teach "
            "drafts (sft.draft), or give policy.checkpoint a model that writes any text."
        )
    phrases = env.phrase_words()
    asked = set[str]().union(*(asked_words(question, phrases) for question in _questions(config)))
    said = {word for text in sentences for word in text.replace("{draft}", " ").replace("{answer}", " ").split()}
    words = (built.words if isinstance(built, WordCodec) else []) + sorted(asked | said)
    signs = built.signs if isinstance(built, SignCodec) else []
    if smaller := shown_smaller(env, config.tiny):
        console.print(smaller, markup=False, soft_wrap=True)
    if config.policy.get("name") == "moondream":
        _write_moondream(folder, words, config, built)
        return
    begin_from = None
    if config.tiny.begin_from is not None:
        try:
            named = policy_plugin({"checkpoint": config.tiny.begin_from}, codec)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(str(error).replace("policy.checkpoint", "tiny.begin_from")) from None
        begin_from = Path(str(named.settings["checkpoint"]))
    write_untrained(folder, words, config.tiny, config.seed, signs, begin_from)


def _write_moondream(folder: Path, words: list[str], config: SftConfig, codec: object) -> None:
    """A new Moondream, which says boxes by heads of as many bins as the codec has steps."""
    fits = isinstance(codec, svg_path.Codec) and codec.boxes == "centre" and codec.size_steps == codec.box_bins
    if not fits or not isinstance(codec, svg_path.Codec):
        raise ValueError(
            "policy.name is moondream, whose answers are boxes by centre and SVG paths; set codec.name to svg_path, "
            "codec.boxes to centre and codec.size_bins to null."
        )
    if config.tiny.begin_from is not None:
        raise ValueError(
            f"tiny.begin_from is {config.tiny.begin_from}, and a new Moondream begins with random weights; set it to "
            "null."
        )
    write_moondream(folder, words, config.tiny, config.seed, codec.box_bins)


def _questions(config: SftConfig) -> list[str]:
    """The texts that masks, boxes and points are asked by; raises ValueError for one without a phrase."""
    questions = [str(config.policy.get("question", PHRASE))]
    questions += [str(config.policy[key]) for key in ("box_question", "point_question") if config.policy.get(key)]
    for question in questions:
        check_question(question)
    return questions


def asked_words(question: str, words: Iterable[str]) -> set[str]:
    """All words of a question about phrases of `words`, those included that touch the question's own text."""
    # Two words together show what a first and a last one of a phrase touch, one alone what a phrase of one word does.
    phrases = (phrase for word in words for phrase in (word, f"{word} {word}"))
    return {word for phrase in phrases for word in question.replace(PHRASE, phrase).split()}


def shown_smaller(env: Env, sizes: TinySizes) -> str | None:
    """What to say where the first image of `env` has more pixels than the new model is shown; None where it has not."""
    image, side = env[0].image, sizes.image_size
    if image.height * image.width <= side**2:
        return None
    return (
        f"note: images such as {image.key} have {image.height} x {image.width} pixels, and the new model is shown "
        f"about {side**2} of them, as many as {side} x {side}; for finer outlines, raise tiny.image_size."
    )
