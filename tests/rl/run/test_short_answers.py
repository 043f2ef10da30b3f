"""A limit on tokens that cuts good outlines is told before a run unlearns them."""

from pathlib import Path

from ellipses import Env

from envs.codecs.path_tokens import Codec
from policies.families.vision_language import Policy
from rl.run.preflight import short_answers_note


def test_outlines_that_the_limit_cuts_are_counted_with_the_longest(tiny_untrained: Path) -> None:
    processor, env = Policy.make_processor(tiny_untrained, Codec()), Env("train", num=20)
    assert short_answers_note(env, processor, 200) is None
    note = short_answers_note(env, processor, 8)
    assert note is not None
    assert note.startswith("outlines of 16 of the first 16 training examples need more than sampling.max_tokens 8 ")
