"""The whole bench: trained, scored, timed, written down."""

from rich.console import Console

from rl.bench.representations import page
from rl.bench.representations.report import Row, as_json, rows
from rl.bench.representations.scores import refuse_other_answers, score, time_in_turn
from rl.bench.representations.trainings import train_all
from rl.bench.representations.wanted import Wanted, refuse_other_questions
from rl.pages.json_text import json_text
from rollout.disk import refuse_unwritable


def measure(wanted: Wanted, console: Console) -> list[Row]:
    """Train what is not trained, score and time it; the rows, which representations.json and representations.html in
    the folder hold as well.

    Raises ValueError for what is wrong with a config, before anything is trained, ChildProcessError where a training
    fails.
    """
    refuse_other_questions(wanted)
    file = wanted.out / "representations.json"
    refuse_unwritable(file)
    stages = list(train_all(wanted, console))
    scored = [score(stage, console) for stage in stages]
    refuse_other_answers(scored)
    found = rows(scored, time_in_turn(stages))
    file.write_text(json_text(as_json(found), indent=2) + "\n", encoding="utf-8")
    for path in (file, page.write(wanted, found, scored)):
        console.print(f"wrote {path}", markup=False, soft_wrap=True)
    return found
