"""Long jobs tell how far they are also where nobody watches a bar: against a clock that the test moves."""

import io

from rich.console import Console

from rl.pages.progress import StepProgress, bar


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def log_file() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=40)


def written(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_log_gets_a_line_every_30_seconds_and_one_at_the_end() -> None:
    console, clock = log_file(), Clock()
    with StepProgress(console, "RL", total=50, done=10, clock=clock) as progress:
        for done in range(11, 51):
            clock.seconds += 2.0
            progress.update(done, f"reward {done / 100:.3f}")
    # 40 steps of 2 s: after 15 of them 25 are left, after 30 of them 10.
    assert written(console) == [
        "RL: 25 of 50, reward 0.250, 0:00:50 left",
        "RL: 40 of 50, reward 0.400, 0:00:20 left",
        "RL: 50 of 50, reward 0.500, 0:01:20 gone",
    ]


def test_a_slow_step_is_told_when_it_is_done_and_messages_come_between() -> None:
    console, clock = log_file(), Clock()
    with StepProgress(console, "SFT", total=3000, clock=clock) as progress:
        clock.seconds += 90.0
        progress.update(1500)
        progress.print("step 1500  [gIoU] 0.5")
    assert written(console) == ["SFT: 1,500 of 3,000, 0:01:30 left", "step 1500  [gIoU] 0.5"]


def test_a_number_of_steps_that_is_not_known_has_no_time_left() -> None:
    console, clock = log_file(), Clock()
    with StepProgress(console, "pairs", total=None, clock=clock) as progress:
        clock.seconds += 31.0
        progress.update(1200)
    assert written(console) == ["pairs: 1,200, 0:00:31 gone"]


def test_what_is_quickly_done_without_a_number_to_tell_says_nothing() -> None:
    console = log_file()
    assert list(bar(range(5), "shards", console, total=5)) == [0, 1, 2, 3, 4]
    assert list(bar(range(5), "shards", None)) == [0, 1, 2, 3, 4]
    assert written(console) == []


def test_a_terminal_gets_a_bar_and_no_such_line() -> None:
    console, clock = Console(file=io.StringIO(), force_terminal=True, width=120), Clock()
    with StepProgress(console, "RL", total=2, clock=clock) as progress:
        clock.seconds += 60.0
        progress.update(2, "reward 0.500")
    shown = "\n".join(written(console))
    assert "RL  reward 0.500" in shown and "2/2" in shown and "gone" not in shown
