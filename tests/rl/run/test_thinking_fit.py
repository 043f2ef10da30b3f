"""What does not go with reasoning before an answer is refused before anything starts, and what to look at is told."""

import shutil
from pathlib import Path

import pytest
from ellipses import Env
from rich.console import Console

from envs.codecs.path_tokens import Codec
from policies.families.vision_language import Policy
from policies.settings import Asking, TinySizes
from policies.tiny_model import write_untrained
from rl.check import check
from rl.config.load import load_settings
from rl.config.outlines import Annotator
from rl.config.rewards import reward_parts
from rl.config.run import RunConfig
from rl.config.sft import SftConfig, SftSettings, SftStage
from rl.run.parts import run_parts
from rl.run.preflight import preflight, short_answers_note
from rl.run.thinking import refuse_unfit_thinking, refuse_unread_drafts, refuse_untaught_thinking, thinking_notes
from rl.sft import run_sft
from rl.supervised.answers import answer_text
from rollout.settings import Sampling

ELLIPSES = {"module": str(Path(__file__).parents[2] / "ellipses.py"), "num": 5}
REWARDED = "rewards={mask_iou: {}, thinking_format: {}}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose words are those of the codec, the marks and a few more."""
    made = tmp_path_factory.mktemp("marked") / "model"
    sizes = TinySizes(
        image_size=32, text_width=32, text_layers=2, text_heads=2, vision_width=16, vision_layers=2, vision_heads=2
    )
    write_untrained(made, [*Codec().words, "<think>", "</think>", "the", "left", "apple", "of"], sizes, seed=0)
    return made


def look(*overrides: str) -> None:
    config = load_settings(RunConfig, Path("tiny"), ["learner.average=0", *overrides])
    preflight(config, run_parts(config))


def refused(folder: Path, grammar: bool = False, rewards: tuple[str, ...] = (), **asking: object) -> str:
    """Why a run is refused; "" where it is not."""
    processor = Policy.make_processor(folder, Codec(), Asking(**asking))  # type: ignore[arg-type]
    try:
        refuse_unfit_thinking(processor, Sampling(grammar=grammar), rewards)
    except ValueError as error:
        return str(error)
    return ""


def test_a_run_is_refused_by_the_setting_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"^rewards\.thinking_format pays .* policy\.thinking is none; set"):
        look(REWARDED)
    with pytest.raises(ValueError, match=r"^policy\.thinking is required, but .* cannot write <think>, </think>, wh"):
        look("policy.thinking=required", REWARDED)
    with pytest.raises(ValueError, match=r"^sampling\.grammar is true and policy\.thinking is optional, but the codec"):
        look("policy.thinking=optional", "sampling.grammar=true")
    with pytest.raises(ValueError, match=r"^policy\.thinking is 'always'"):
        look("policy.thinking=always")


def test_what_fits_is_let_through_and_a_mark_with_another_meaning_is_not(folder: Path) -> None:
    assert refused(folder) == refused(folder, grammar=True) == ""
    assert (
        refused(folder, thinking="required", rewards=("thinking_format",)) == refused(folder, thinking="optional") == ""
    )
    assert refused(folder, grammar=True, thinking="required").startswith("sampling.grammar is true")
    for mark in ("<|end|>", "<|image_pad|>"):
        told = refused(folder, thinking="required", thinking_marks=[mark, "</think>"])
        assert told.startswith(f"policy.thinking_marks names {mark}, which stands for")
    assert "cannot write (, )" in refused(folder, thinking="required", thinking_marks=["(", ")"])


def test_the_limit_on_tokens_has_room_for_the_marks_and_notes_say_what_is_left(folder: Path) -> None:
    plain, thinking = (Policy.make_processor(folder, Codec(), Asking(thinking=m)) for m in ("none", "required"))
    env = Env("train", num=20)
    notes = [[short_answers_note(env, one, most) for most in range(60)] for one in (plain, thinking)]
    shortest = [each.index(None) for each in notes]
    assert shortest[1] == shortest[0] + 2
    [note] = thinking_notes(thinking, 90, 300)
    assert "takes its tokens of sampling.max_tokens 300 too: an ordinary outline of 90 tokens leaves 210 for" in note
    assert thinking_notes(plain, 90, 300) == []


def test_check_shows_the_question_and_what_the_outline_leaves(folder: Path) -> None:
    asked = ["policy.thinking=required", "policy.thinking_question=left of", "sampling.max_tokens=300"]
    report = check(str(folder), Path("tiny"), asked)
    assert report.prompt.replace(" ", "").endswith("theleftappleleftof<|answer|>")
    outline = round(report.tokens_per_vertex * 16)  # what the codec of `tiny` holds
    assert [note for note in report.notes if f"outline of {outline} tokens leaves {300 - outline} for it" in note]
    unfit = [check("tiny", Path(name), asked[:1]).problems for name in ("tiny", "sft_tiny")]
    assert [problem[:40] for [problem] in unfit] == [
        "policy.thinking is required, but the pol",
        "policy.thinking is required, but supervi",
    ]


def test_a_template_that_opens_a_block_which_nobody_reads_is_noted(folder: Path, tmp_path: Path) -> None:
    opened = Path(shutil.copytree(folder, tmp_path / "model"))
    template = opened / "chat_template.jinja"
    template.write_text(template.read_text() + "<think>")
    [note] = thinking_notes(Policy.make_processor(opened, Codec()), 90, 300)
    assert note.startswith("the chat template opens a block of reasoning (<think>), and policy.thinking is none")


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (
            {"checkpoint": "tiny", "thinking": "required"},
            r"^policy\.thinking is required, but supervised answers",
        ),
        ({"thinking": "optional"}, r"^policy\.thinking is optional, but the new model .* words of phrases alone"),
    ],
)
def test_supervised_training_is_refused_where_its_answers_would_lack_the_reasoning(
    tmp_path: Path, policy: dict[str, str], says: str
) -> None:
    stages = SftSettings([SftStage("outlines", 1, lr=0.01)], scenes_per_step=1, max_vertices=9, max_rings=1)
    config = SftConfig(str(tmp_path / "run"), env=ELLIPSES, codec={"name": "path_tokens"}, policy=policy, sft=stages)
    with pytest.raises(ValueError, match=says):
        run_sft(config, Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_drafts_may_be_taught_where_a_block_is_required_and_are_read_by_the_codec_of_the_run(folder: Path) -> None:
    processor = Policy.make_processor(folder, Codec(), Asking(thinking="required"))
    refuse_untaught_thinking(processor, ["<think> {draft} </think> {answer}"])
    for sentences in (None, ["{answer}"], ["<think> {draft} </think> {answer}", "It is {answer}."]):
        with pytest.raises(ValueError, match=r"^policy\.thinking is required, but .* by sft\.draft and sft\.answers"):
            refuse_untaught_thinking(processor, sentences)
    ours = reward_parts({"improvement": {}}, {}, {"name": "path_tokens"}).recipes  # given the codec of the config
    assert ours["improvement"].plugin.settings == {"codec": {"name": "path_tokens"}}
    refuse_unread_drafts(ours, {"name": "path_tokens"})
    with pytest.raises(ValueError, match=r"^rewards\.improvement\.codec is .* and answers are written by"):
        refuse_unread_drafts(ours, {"name": "path_tokens", "max_rings": 2})


def test_a_draft_stands_in_the_block_before_the_answer_and_reads_back_as_its_reasoning(folder: Path) -> None:
    example = load_ellipses()[0]
    settings = SftSettings(
        max_vertices=12, max_rings=1, draft=Annotator(max_vertices=4), answers=["<think> {draft} </think> {answer}"]
    )
    processor = Policy.make_processor(folder, Codec(), Asking(thinking="required"))
    answer = processor.read_text(answer_text(example, Codec(), settings), example)
    draft = Codec().read(answer.thinking or "", example.image.height, example.image.width)
    assert (answer.num_vertices, draft.num_vertices) == (12, 4)
    with pytest.raises(ValueError, match=r"sft\.draft is not set, but \{draft\} stands in sft\.answers"):
        SftSettings(answers=["<think> {draft} </think> {answer}"])
    with pytest.raises(ValueError, match=r"sft\.draft is set, but no \{draft\} stands in sft\.answers None"):
        SftSettings(draft=Annotator(max_vertices=9))


def load_ellipses() -> Env:
    """The training split."""
    return Env("train", num=5)
