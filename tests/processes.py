"""Processes that begin as copies of one which has imported what a learner and a run need: each saves seconds."""

import os
import sys
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext

import pytest

IMPORTED = ["in_process", "ranks"]
"""What is asked of such processes comes from here, or from tests that import them."""


def forks() -> ForkServerContext:
    """A context for such processes, which see the environment as it was when the first one was started."""
    context = get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with pytest.MonkeyPatch.context() as patch:
        # A fork server does not hear of sys.path otherwise, and imports nothing beforehand.
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    return context
