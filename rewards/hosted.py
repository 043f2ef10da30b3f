"""A reward in processes of its own: as many answers at once as there are processes, and one that hangs can be stopped.

Each process is a plain Python that imports no more than a reward needs: what the program's own main module loads, torch
or Ray, is not loaded again. It belongs to one thread here, which sends it an answer and waits for the term.
"""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from contextlib import suppress
from math import inf
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Lock, Thread

from envs.plugin import Plugin
from rewards.checked import CheckedReward, told_error
from rewards.kernels import overlap as kernels
from rewards.score import Comparison, Comparisons
from rewards.terms.base import term

START_SECONDS = 300.0
"""How long a process may take until its reward is built, such as a judge that loads a model."""
_MAIN = "import sys; from rewards.hosted import serve; serve(int(sys.argv[1]), int(sys.argv[2]))"
_LOOK_SECONDS = 1.0
"""How often a process that is silent is looked at: whether it lives, and, by itself, whether its parent does."""
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
"""Threads of each library that would otherwise take every core in every process."""

Reply = float | str | None
"""A term, or what was wrong; None for a reward that was built."""


class HostedReward:
    """A reward that answers from `processes` processes, within `seconds` an answer (None: whenever it will)."""

    def __init__(self, plugin: Plugin, processes: int, seconds: float | None, only: str | None = None) -> None:
        self._jobs: SimpleQueue[tuple[Future[float | None], Comparisons] | None] = SimpleQueue()
        self._children = [_Child(plugin, seconds, only) for _ in range(processes)]
        for child in self._children:
            # Daemons, so that a reward that hangs without a limit does not keep the program from ending.
            Thread(target=self._work, args=(child,), daemon=True).start()

    def submit(self, one: Comparisons) -> Future[float | None]:
        """The term for the one answer that `one` holds, later.

        The future raises ValueError, saying what the reward did, where it returned something else than a number in
        [0, 1] or None, raised, took too long or ended its process; ChildProcessError where it could not be built.
        """
        future: Future[float | None] = Future()
        self._jobs.put((future, one))
        return future

    def close(self) -> None:
        """End the processes, whatever they are at; what is still to be answered is cancelled or fails."""
        for child in self._children:
            child.close()
            self._jobs.put(None)

    def _work(self, child: "_Child") -> None:
        """Answer jobs by one child until there is a None."""
        while True:
            with suppress(OSError):  # `ask` tries again, and has somebody to tell
                child.start()  # before there is a job, since loading a judge may take long
            if (job := self._jobs.get()) is None:
                break
            _answer(child, *job)
        child.end()


class _Child:
    """One process, started anew where the last one is gone. All but `close` is for one thread."""

    _pipe: Connection

    def __init__(self, plugin: Plugin, seconds: float | None, only: str | None) -> None:
        self._plugin, self._seconds, self._only = plugin, seconds, only
        self._lock = Lock()
        """Holds together what `close` reads: the process, and whether another may be started."""
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._ready = False

    def start(self) -> None:
        """Start the process where there is none; `ask` waits until it is ready."""
        if self._process is not None:
            return
        self._pipe, theirs = Pipe()
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        with self._lock:
            if self._closed:
                raise ChildProcessError("is closed")
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _MAIN, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=os.environ | _ONE_THREAD | {"PYTHONPATH": paths},
                # Ctrl-C is for the program; and what the reward itself starts can be ended with it.
                start_new_session=True,
            )
        theirs.close()
        self._ready = False
        with suppress(ConnectionError):  # a process that is gone already shows when its reply is waited for
            self._pipe.send((self._plugin, self._only))

    def ask(self, one: Comparisons) -> float | None:
        """The term for one answer; raises as `HostedReward.submit` says."""
        self.start()
        if not self._ready:
            self._await_ready()
        said = self._reply(self._seconds, one)
        if isinstance(said, str):
            raise ValueError(said)
        return said

    def _await_ready(self) -> None:
        try:
            said = self._reply(START_SECONDS)
        except ValueError as error:
            raise ChildProcessError(f"cannot be built: {error}") from error
        if said is not None:
            self.end()
            raise ChildProcessError(f"cannot be built: {said}")
        self._ready = True

    def _reply(self, seconds: float | None, question: Comparisons | None = None) -> Reply:
        """What the process says to a question, or first; raises ValueError, and has ended it, where it says nothing."""
        try:
            if question is not None:
                self._pipe.send(question)
            if self._heard(seconds):
                return self._pipe.recv()
        except (EOFError, ConnectionError):
            raise ValueError(f"ended its process ({_told_end(self.end(_LOOK_SECONDS))})") from None
        self.end()
        raise ValueError(f"gave no answer within {seconds:g} s")

    def _heard(self, seconds: float | None) -> bool:
        """Whether something came within `seconds`; raises EOFError where the process is gone."""
        end = inf if seconds is None else time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._pipe.poll(min(left, _LOOK_SECONDS)):
                return True
            # A process that the reward left behind may hold the pipe open.
            if self._process is None or self._process.poll() is not None:
                raise EOFError
        return False

    def end(self, grace_seconds: float = 0.0) -> int:
        """End the process, if there is one, and what it started; returns its exit status.

        grace_seconds: how long one that is ending by itself may take to do so, and to say why.
        """
        with self._lock:
            if self._process is None:
                return 0
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_seconds)
            _kill(self._process)
            status = self._process.wait()
            self._process = None
        self._pipe.close()
        return status

    def close(self) -> None:
        """Kill the process and let no other be started; for any thread."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                _kill(self._process)


def _answer(child: _Child, future: Future[float | None], one: Comparisons) -> None:
    """Ask the child, unless nobody waits any more."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(child.ask(one))
    except (ValueError, OSError) as error:
        future.set_exception(error)
    finally:
        if not future.done():  # else whoever waits would wait for ever
            future.set_exception(ChildProcessError("cannot be asked; see the traceback above"))


def serve(descriptor: int, parent: int) -> None:
    """Main loop of a process: build the reward that comes through the pipe, then answer until the pipe is closed.

    parent: the process that started this one, which ends with it, also in the middle of an answer.
    """
    os.set_inheritable(descriptor, False)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a reward prints must not mix with a table or JSON
    Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    with Connection(descriptor) as pipe, suppress(EOFError, ConnectionError):
        reward = _built(pipe)
        while True:
            (comparison,) = pipe.recv()
            pipe.send(_reply(reward, comparison))


def _built(pipe: Connection) -> CheckedReward:
    plugin: Plugin
    plugin, only = pipe.recv()
    try:
        reward = CheckedReward(plugin.build(), only)
    except BaseException as error:
        pipe.send(told_error(error, plugin.module))
        raise
    kernels.warm()  # else the first answer would pay for it out of its time
    pipe.send(None)
    return reward


def _reply(reward: CheckedReward, comparison: Comparison) -> Reply:
    try:
        return term(reward, comparison)
    except ValueError as error:
        return str(error)


def _end_with_parent(parent: int) -> None:
    """End this process when its parent has ended."""
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads its own group, with its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _told_end(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
