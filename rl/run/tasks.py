"""Questions for boxes and points (env tasks): what does not go with them is refused before anything starts."""

from collections.abc import Sequence

from envs.codecs.base import PlaceCodec
from envs.datasets.base import AsksForms, Env
from envs.example import Example
from policies.processor import Processor
from rl.config.run import RunConfig
from rl.run.parts import RunParts

_LOOKED_AT = 64
"""Examples in which a question of each form is looked for."""


def forms_asked(env: Env) -> tuple[str, ...]:
    """What an env may ask for: "mask", and where it says so "box" and "point"."""
    return env.asked if isinstance(env, AsksForms) else ("mask",)


def refuse_unfit_tasks(config: RunConfig, parts: RunParts, processor: Processor) -> None:
    """Raise ValueError where a form of answer is asked for that the codec, the policy or no reward knows of.

    processor: of the run's policy.
    """
    env: Env = parts.env.build(split="train")
    places = [form for form in forms_asked(env) if form != "mask"]
    if not places:
        return
    refuse_unasked_forms(env, processor)
    if config.sampling.grammar:
        raise ValueError(
            f"sampling.grammar is true, but the codec's grammar knows outlines alone and the env asks for "
            f"{' and '.join(places)} too; set sampling.grammar to false, or take those tasks out."
        )
    for form in places:
        if not any(form in recipe.asks for recipe in parts.rewards.recipes.values()):
            fitting = {"box": "box_iou", "point": "point_in_mask"}[form]
            raise ValueError(
                f"the env asks for a {form}, and no reward applies to it, so that all such answers would be worth "
                f"nothing; add rewards.{fitting}, or take those tasks out."
            )


def refuse_unasked_forms(env: Env, processor: Processor) -> None:
    """Raise ValueError where the codec writes no places, or no question of the policy asks for one of the env's forms.

    A question of each form among the first examples is put to the processor, whose words fail here and not later.
    """
    if not isinstance(processor.codec, PlaceCodec):
        raise ValueError(
            "the env asks for boxes or points, which the codec does not write; choose codec path_tokens, point_text or "
            "json_objects, or take those tasks out."
        )
    for example in _one_of_each(env):
        processor.prompt_tokens(example.question(env.image(example.image)))


def _one_of_each(env: Env) -> Sequence[Example]:
    found: dict[tuple[str, ...], Example] = {}
    for index in range(min(_LOOKED_AT, len(env))):
        example = env[index]
        kinds = (example.prompt.asked, *(type(part).__name__ for part in example.prompt.parts))
        found.setdefault(kinds, example)
    return list(found.values())
