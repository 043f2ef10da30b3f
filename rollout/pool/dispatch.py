"""The workers of a pool and what waits for them: who gets what, and what becomes of it when one dies, hangs or errs.

One thread at a time: WorkerPool sees to that. Timing decides who answers a unit, never what the answer is, since a unit
names its random numbers and the version of the weights.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from rollout.pool.actor import Held, Reply
from rollout.pool.deaths import cause_of_death, death_report
from rollout.pool.handle import Asked, Member, Task, WeightVersion
from rollout.settings import PoolSettings

log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.5
"""Pause before a worker that restarts is spoken to again."""
_PAUSE_SECONDS = 5.0
"""A look at the workers that is later than this says that the driver itself stood still."""
_TELL_SECONDS = 60.0
"""How often a worker is spoken of that does not start."""


class Crew:
    """Workers, and the units that wait for one of them."""

    def __init__(self, members: Sequence[Member], settings: PoolSettings, units_each: int) -> None:
        self.members = list(members)
        self.waiting: deque[Asked] = deque()
        """What nobody has in hand yet, in the order in which it is handed out."""
        self.skipped: Counter[str] = Counter()
        """Answers that rewards left out of their term because they failed, by reward."""
        self._settings, self._units_each = settings, units_each
        self._weights: WeightVersion | None = None
        self._deaths = 0
        self._looked_at = 0.0

    def set_weights(self, weights: WeightVersion) -> None:
        """Have whoever has nothing else to do take `weights`."""
        self._weights, self._deaths = weights, 0
        for member in self.members:
            member.wrong = 0

    def drop_all(self) -> None:
        """Forget all that was asked."""
        self.waiting.clear()
        for member in self.members:
            member.drop()

    @property
    def in_hand(self) -> list[Any]:
        """Ray's references to all that workers have in hand."""
        return [ref for member in self.members for ref in member.tasks]

    @property
    def spared_seconds(self) -> float | None:
        """How long until a worker may be spoken to again that is left alone now; None where none is."""
        spared = [member.spared_seconds for member in self.members]
        return min((seconds for seconds in spared if seconds), default=None)

    def hand_out(self) -> None:
        """Give everybody something to do; who has least in hand is served first."""
        for level in range(self._units_each):
            for member in self.members:
                if len(member.tasks) == level and not member.spared_seconds:
                    self._give(member)

    def _give(self, member: Member) -> None:
        front = self.waiting[0] if self.waiting else None
        weights = self._weights if front is None else front.batch.weights
        proves = bool(member.unproved) and (front is None or front.batch is not member.unproved[0].batch)
        if weights is None:
            return
        if front is not None and member.holds == weights.key and not proves:
            member.answer(self.waiting.popleft())
        elif not member.tasks and proves:
            member.prove(member.unproved[0].batch.weights)
        elif not member.tasks and member.holds != weights.key:
            member.take(weights)

    def settle(self, ref: Any) -> None:
        """Deal with a worker's word that is there, or with its end.

        Raises RuntimeError where workers die too often, do not come back or err twice; what a worker raised passes
        through, ValueError and OSError as they were.
        """
        member = next(member for member in self.members if ref in member.tasks)
        try:
            word = _fetched(ref)
        except (RayActorError, ObjectLostError) as error:
            if isinstance(error, RayTaskError):
                raise  # not the worker is lost, but the weights that it was to take, with the rank that owned them
            self._lose(member, error)
            return
        task = member.tasks.pop(ref)
        if member.was_replaced_by(word.vitals):  # it died while idle, and is back, so this word is worth nothing
            self._mourn(member, cause_of_death(member.vitals))
            self._ask_again([*task.lost, *member.drop()])
            member.heard(word.vitals)
            return
        member.heard(word.vitals)
        if isinstance(word, Held):
            self._settle_held(member, task, word.checksum)
        elif task.asked is not None:
            self._settle_reply(member, task.asked, word)

    def _settle_held(self, member: Member, task: Task, held: str) -> None:
        if held != task.weights.weights.checksum or task.asked is not None:
            self._refuse(member, held, task)
        elif task.proves:
            for asked in member.unproved:
                asked.batch.unproved.discard(asked.place)
            member.unproved = []
        else:
            member.holds = task.weights.key

    def _settle_reply(self, member: Member, asked: Asked, reply: Reply) -> None:
        for warning in reply.warnings:
            log.warning("rollout worker %s: %s", member.name, warning)
        self.skipped += reply.skipped
        asked.settle(reply.groups)
        if asked.batch.verified:
            member.unproved.append(asked)

    def _refuse(self, member: Member, held: str, task: Task) -> None:
        """Have a worker take its weights once more, and everything that it did not prove asked again."""
        member.wrong += 1
        when = "after answering with" if task.proves else "after taking" if task.asked is None else "in the middle of"
        text = (
            f"rollout worker {member.name} reports checksum {held[:12]} {when} version {task.weights.number}, the "
            f"learner's is {task.weights.weights.checksum[:12]}"
        )
        if member.wrong > 1:
            raise RuntimeError(
                f"{text}, for the second time; its answers would be another policy's. Check that both load the same "
                f"checkpoint, and the memory of its machine, {member.place}."
            )
        log.warning("%s; it takes them again, and what it answered since is asked again", text)
        self._ask_again([*task.lost, *member.drop()])

    def _lose(self, member: Member, error: RayActorError | ObjectLostError) -> None:
        """Deal with the end of a worker; one that is already on its way back is given time."""
        if isinstance(error, RayActorError) and error.actor_init_failed:
            raise RuntimeError(f"rollout worker {member.name} could not be built: {error}") from error
        if member.died_at is None:
            self._mourn(member, cause_of_death(member.vitals, error))
        elif member.dead_seconds > self._settings.restart_seconds:
            self._give_up(member)
            return
        self._ask_again(member.drop())
        member.spare(_RETRY_SECONDS)

    def end_silent(self) -> None:
        """Kill who is hung; give up who does not come back. To be called all the time while something is in hand."""
        paused, self._looked_at = time.monotonic() - self._looked_at > _PAUSE_SECONDS, time.monotonic()
        for member in tuple(self.members):
            if paused:
                member.excuse()  # what it said meanwhile is yet to be read
            if member.died_at is not None and member.dead_seconds > self._settings.restart_seconds:
                self._give_up(member)
                continue
            if member.vitals is None and member.silent_seconds > member.told_seconds + _TELL_SECONDS:
                member.told_seconds += _TELL_SECONDS
                log.warning("rollout worker %s has not started for %.0f s", member.name, member.silent_seconds)
            if member.is_serving and member.silent_seconds > self._settings.unit_seconds:
                member.kill()
                self._mourn(member, f"hung, no word for {member.silent_seconds:.0f} s (pool.unit_seconds), killed")
                self._ask_again(member.drop())

    def _mourn(self, member: Member, cause: str) -> None:
        """Report a death, and count it."""
        report = death_report(member.name, member.vitals, list(member.tasks.values()), cause)
        member.died_at = time.monotonic()
        self._deaths += 1
        if self._deaths > self._settings.max_deaths:
            raise RuntimeError(
                f"rollout workers died {self._deaths} times since the weights were last set. The last one: {report}. "
                "Look for lack of memory, or raise pool.max_deaths."
            )
        log.warning("%s. It restarts, and takes its weights before it answers again", report)

    def _give_up(self, member: Member) -> None:
        """Go on without a worker that does not come back, such as one whose node is lost, as long as one is left."""
        text = (
            f"rollout worker {member.name}, last seen on {member.place}, has not come back for "
            f"{member.dead_seconds:.0f} s"
        )
        others = [other for other in self.members if other is not member]
        if not any(other.died_at is None for other in others):
            raise RuntimeError(f"{text}. Look for lack of memory or places, or raise pool.restart_seconds.")
        log.warning("%s and is given up; the run goes on with %d", text, len(others))
        self._ask_again(member.drop())
        ray.kill(member.actor)
        self.members = others

    def _ask_again(self, asked: Sequence[Asked]) -> None:
        for one in reversed(asked):
            one.forget()
            self.waiting.appendleft(one)


def _fetched(ref: Any) -> Held | Reply:
    """A worker's word; raises ValueError or OSError, such as a reward's, as the worker raised it."""
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, ValueError | OSError):
            raise error.cause from None
        raise
