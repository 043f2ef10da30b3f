"""Rewards of somebody else at work: what is told of an answer that breaks one, here and in processes of its own."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from envs.plugin import Plugin
from envs.polygons import Answer, AnswerStatus, answer_from_rings
from envs.ranges import check_ranges
from rewards.score import Comparisons, Target, compare
from rewards.scorer import Scorer
from rewards.settings import RewardRecipe

HALF, NAN, HANG, EXIT, RAISE, BIG, TEXT, BOOL, ARRAY = range(3, 12)
TUPLE, FLOAT32, INT, NONE, SLOW, LEAN, SEGFAULT, SLOWER, QUIT = range(12, 21)
"""What the reward below does with an answer of so many vertices."""
JUDGE = """
import os, signal, sys, time
from dataclasses import dataclass

import numpy as np


@dataclass
class Reward:
    weight: float = 1.0
    slow_start_seconds: float = 0.0
    buildable: bool = True
    tame: bool = False

    def __post_init__(self):
        time.sleep(self.slow_start_seconds)
        if not self.buildable:
            raise OSError("no such model")

    def __call__(self, comparison):
        does = comparison.num_vertices - 3
        if self.tame and does not in (0, 13):
            return None
        if does == 2:
            time.sleep(1e6)
        if does == 3:
            os._exit(3)
        if does == 4:
            return self.ratio(1, 0)
        if does in (13, 16):
            time.sleep(0.5)
            return 0.25
        if does == 14:
            return float("torch" not in sys.modules and os.environ["OMP_NUM_THREADS"] == "1")
        if does == 15:
            os.kill(os.getpid(), signal.SIGSEGV)
        if does == 17:
            sys.exit(3)
        answers = [0.5, float("nan"), 0, 0, 0, 1.5, "x", True, np.array([0.5]), (0.5,), np.float32(0.25), 1, None]
        return answers[does]

    def ratio(self, a, b):
        return a / b
"""
WRONG = [
    (NAN, "returned nan"),
    (RAISE, r"raised ZeroDivisionError: division by zero \(line \d+ of .*judge.py: return a / b\)"),
    (QUIT, r"raised SystemExit: 3 \(line \d+ of .*judge.py: sys.exit\(3\)\)"),
    (BIG, "returned 1.5"),
    (TEXT, "returned 'x' of type str"),
    (BOOL, "returned True of type bool"),
    (ARRAY, r"returned array\(\[0.5\]\) of type ndarray"),
    (TUPLE, r"returned \(0.5,\) of type tuple"),
]
WRONG_FOR_A_PROCESS = [
    (HANG, "gave no answer within 0.6 s"),
    (EXIT, r"ended its process \(exit status 3\)"),
    (SEGFAULT, r"ended its process \(killed by SIGSEGV\)"),
]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("rewards") / "judge.py"
    file.write_text(JUDGE)
    return str(file)


def plugin(judge: str, **settings: float) -> Plugin:
    return Plugin("rewards.terms", "Reward", "judge", dict(settings), judge)


@pytest.fixture(scope="module")
def skipping(judge: str) -> Iterator[Scorer]:
    """A reward in four processes, and one in this process that only knows the answers HALF and SLOW."""
    recipe = RewardRecipe(plugin(judge), processes=4, seconds=2.0, on_error="skip")
    scorer = Scorer({"judge": recipe, "tame": RewardRecipe(plugin(judge, tame=True))})
    yield scorer
    scorer.close()


@pytest.fixture(scope="module")
def stopping(judge: str) -> Iterator[Scorer]:
    """One with a single process."""
    scorer = Scorer({"judge": RewardRecipe(plugin(judge), processes=1, seconds=0.6)})
    yield scorer
    scorer.close()


def answer(num_vertices: int) -> Answer:
    angles = np.linspace(0, 2 * np.pi, num_vertices, endpoint=False)
    return answer_from_rings([np.stack([16 + 9 * np.cos(angles), 16 + 9 * np.sin(angles)], axis=1)])


def compared(*num_vertices: int) -> Comparisons:
    mask = np.zeros((32, 32), bool)
    mask[8:24, 8:24] = True
    return compare([answer(num) for num in num_vertices], Target.from_mask(mask), "scene-7", "the red cup")


def terms(scorer: Scorer, *num_vertices: int) -> list[float | None]:
    return scorer.columns(compared(*num_vertices))["judge"]


def least_seconds(call: Callable[[], object]) -> float:
    """Of five calls: processes may be on their way, and the machine busy."""
    took = []
    for _ in range(5):
        started = time.monotonic()
        call()
        took.append(time.monotonic() - started)
    return min(took)


@pytest.mark.parametrize(("does", "told"), WRONG)
def test_a_reward_in_this_process_that_fails_stops_with_its_name_the_answer_and_what_it_did(judge, does, told):
    scorer = Scorer({"my judge": RewardRecipe(plugin(judge))})
    with pytest.raises(ValueError, match=rf"^Reward my judge {told} for example scene-7 \('the red cup'\): status ok"):
        scorer.columns(compared(HALF, does))


@pytest.mark.parametrize(("does", "told"), WRONG + WRONG_FOR_A_PROCESS)
def test_a_hosted_reward_that_fails_stops_in_the_same_words_and_is_ready_for_the_next(stopping, does, told):
    with pytest.raises(ValueError, match=rf"^Reward judge {told} for example scene-7 \('the red cup'\): status ok"):
        stopping.columns(compared(does))
    assert terms(stopping, HALF) == [0.5]


def test_the_answer_that_broke_a_reward_is_told_with_its_iou_and_first_vertices(judge):
    with pytest.raises(ValueError) as caught:
        Scorer({"judge": RewardRecipe(plugin(judge))}).columns(compared(BIG))
    expected = "IoU 0.848, rings in px: (25.0, 16.0) (22.4, 22.4) (16.0, 25.0) (9.6, 22.4) (7.0, 16.0) (9.6, 9.6) ... "
    assert expected + "8 vertices. A reward returns a number in [0, 1]" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_with_skip_the_answers_that_fail_are_left_out_and_counted_and_the_others_keep_their_order(judge):
    scorer = Scorer({"judge": RewardRecipe(plugin(judge), on_error="skip")})
    assert terms(scorer, HALF, NAN, RAISE, BIG, FLOAT32, TEXT, NONE) == [0.5, None, None, None, 0.25, None, None]
    assert scorer.skipped == {"judge": 4}


def test_with_skip_processes_that_hang_or_die_are_replaced_and_the_others_keep_their_order(skipping):
    before = skipping.skipped["judge"]
    found = terms(skipping, HALF, HANG, EXIT, FLOAT32, NAN, RAISE, INT)
    assert found == [0.5, None, None, 0.25, None, None, 1.0]
    assert skipping.skipped["judge"] - before == 4


def test_numbers_of_numpy_and_whole_ones_become_floats_here_and_hosted(judge, skipping):
    own = Scorer({"judge": RewardRecipe(plugin(judge))})
    for found in (terms(own, FLOAT32, INT, NONE), terms(skipping, FLOAT32, INT, NONE)):
        assert found == [0.25, 1.0, None] and [type(value) for value in found[:2]] == [float, float]


def test_four_answers_of_half_a_second_of_several_groups_take_half_a_second_in_four_processes(skipping):
    groups = [compared(SLOWER), compared(SLOWER, SLOWER), compared(SLOWER)]
    assert [columns["judge"] for columns in skipping.columns_of(groups)] == [[0.25], [0.25] * 2, [0.25]]
    assert least_seconds(lambda: skipping.columns_of(groups)) < 0.95


def test_terms_stand_in_the_order_of_the_recipes_and_are_computed_here_and_there_at_once(skipping):
    columns = skipping.columns(compared(SLOW, HALF))
    assert [(name, list(terms)) for name, terms in columns.items()] == [("judge", [0.25, 0.5]), ("tame", [0.25, 0.5])]
    assert least_seconds(lambda: skipping.columns(compared(SLOW))) < 0.95


def test_an_unreadable_answer_earns_zero_hosted_too_and_is_not_shown_to_the_reward(stopping):
    hopeless = Answer(AnswerStatus.UNPARSABLE)
    comparisons = compare([hopeless], Target.from_mask(np.ones((8, 8), bool)), "e", "p")
    assert stopping.columns(comparisons) == {"judge": [0.0]}


def test_a_process_of_a_reward_loads_no_torch_and_has_one_thread(stopping):
    import torch

    assert torch.__version__ and terms(stopping, LEAN) == [1.0]


def test_a_reward_may_start_longer_than_it_may_take_for_an_answer(judge):
    scorer = Scorer({"judge": RewardRecipe(plugin(judge, slow_start_seconds=1.5), processes=1, seconds=1.0)})
    assert terms(scorer, HALF) == [0.5]
    scorer.close()


def test_a_hosted_reward_that_cannot_be_built_stops_whatever_on_error_says(judge):
    scorer = Scorer({"judge": RewardRecipe(plugin(judge, buildable=False), processes=1, on_error="skip")})
    with pytest.raises(ChildProcessError, match=r"^Reward judge cannot be built: raised OSError: no such model \(line"):
        terms(scorer, HALF)
    scorer.close()


def test_what_is_left_out_is_told_at_once_and_then_ever_more_seldom(judge, caplog):
    scorer = Scorer({"judge": RewardRecipe(plugin(judge), on_error="skip")})
    with caplog.at_level(logging.WARNING):
        terms(scorer, *[NAN] * 105)
    first, tenth, hundredth = [record.getMessage() for record in caplog.records]
    assert first.startswith("Reward judge returned nan for example scene-7 ('the red cup')")
    assert tenth.startswith("Reward judge has left 10 answers out by now. The last: Reward judge returned nan for")
    assert hundredth.startswith("Reward judge has left 100 answers out by now.")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"processes": -1}, "processes is -1; set it to 0 or more, 0 for none"),
        ({"processes": 1, "seconds": 0.0}, "seconds is 0.0; set it to more than 0"),
        ({"processes": 1, "seconds": float("nan")}, "seconds is nan"),
        ({"seconds": 5.0}, "seconds is 5, but what runs in the worker's own process cannot be stopped; set processes"),
        ({"on_error": "skp"}, r"on_error is 'skp'; did you mean 'skip'\? Set it to stop or skip\."),
    ],
)
def test_a_recipe_that_cannot_be_kept_is_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        check_ranges(RewardRecipe(Plugin("rewards.terms", "Reward", "format", {}), **settings))


def test_a_closed_scorer_leaves_no_process_even_of_a_reward_that_hangs(judge):
    before = psutil.Process().children()
    scorer = Scorer({"judge": RewardRecipe(plugin(judge), processes=1)})
    terms(scorer, HALF)
    own = [child for child in psutil.Process().children() if child not in before]
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(terms, scorer, HANG)
        time.sleep(0.1)
        scorer.close()
        with pytest.raises(ValueError, match=r"Reward judge ended its process \(killed by SIGKILL\)"):
            asked.result(timeout=10)
    assert len(own) == 1 and not psutil.wait_procs(own, timeout=10)[1]


def test_a_program_that_is_killed_takes_the_processes_of_its_rewards_along(judge, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import psutil\n"
        "from envs.plugin import Plugin\n"
        "from rewards.scorer import RewardRecipe, Scorer\n"
        f"hanging = Plugin('', 'Reward', '', {{'slow_start_seconds': 1e6}}, {judge!r})\n"
        "scorer = Scorer({'judge': RewardRecipe(hanging, processes=1)})\n"
        "while not (children := psutil.Process().children()):\n"
        "    pass\n"
        "print(children[0].pid, flush=True)\n"
        "input()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, str(program)], env=environment, **pipes) as process:
        child = psutil.Process(int(process.stdout.readline()))
        process.send_signal(signal.SIGKILL)
    child.wait(timeout=10)
