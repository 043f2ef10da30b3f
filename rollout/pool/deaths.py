"""What can be said of a worker that died: which, where, of what, with how much memory, and what it was doing."""

from collections.abc import Sequence

import ray

# Ray tells the caller of an actor that restarts no more than that the connection closed. Why the process ended stands
# in its table of workers, which without a dashboard has no public reader; Ray is pinned to one minor release.
from ray._private.state import state
from ray.core.generated.common_pb2 import WorkerExitType  # type: ignore[attr-defined]  # protobuf makes it on import
from ray.core.generated.gcs_pb2 import WorkerTableData  # type: ignore[attr-defined]

from rollout.pool.actor import Vitals
from rollout.pool.handle import Task

_GIB = 2**30


def death_report(name: str, vitals: Vitals | None, tasks: Sequence[Task], cause: str) -> str:
    """One line of text: the worker, its process and node, the cause, its last task, its memory at its last word."""
    task = "; ".join(str(task) for task in tasks) or "nothing in hand"
    if vitals is None:
        return f"rollout worker {name} died before it was first heard of: {cause}. Last task: {task}"
    return (
        f"rollout worker {name} (process {vitals.process_id} on {vitals.address}) died: {cause}. Last task: {task}. "
        f"Memory at its last word: {vitals.memory_bytes / _GIB:.2f} GiB of its own, "
        f"{vitals.available_bytes / _GIB:.2f} GiB free on its machine"
    )


def cause_of_death(vitals: Vitals | None, error: Exception | None = None) -> str:
    """Why the process of `vitals` ended, as far as Ray knows; otherwise what the error says, first line only."""
    if vitals is not None:
        if not any(node["NodeID"] == vitals.node_id and node["Alive"] for node in ray.nodes()):
            return f"its node {vitals.address} ({vitals.node_id[:8]}) was lost"
        if (record := _exit_record(vitals)) is not None:
            return _cause(record)
    return "of nothing that Ray has noted" if error is None else _first_line(str(error))


def _exit_record(vitals: Vitals) -> WorkerTableData | None:
    """What Ray wrote down when the process ended; None while it has not."""
    for raw in state._connect_and_get_accessor().get_worker_table():
        record = WorkerTableData.FromString(raw)
        address = record.worker_address
        if (record.pid, address.node_id.hex(), record.is_alive) == (vitals.process_id, vitals.node_id, False):
            return record
    return None


def _cause(record: WorkerTableData) -> str:
    detail = _first_line(record.exit_detail)
    if record.exit_type == WorkerExitType.NODE_OUT_OF_MEMORY:
        return f"Ray's memory monitor killed it for lack of memory ({detail})"
    if record.exit_type == WorkerExitType.SYSTEM_ERROR and "End of file" in detail:
        return (
            "its process ended without a word, as by SIGKILL, by the kernel for lack of memory (dmesg tells), or by a "
            "crash in native code"
        )
    return f"{WorkerExitType.Name(record.exit_type)}, {detail}"


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0].rstrip(".")
