"""What `learner.deepspeed` hands through, checked by DeepSpeed's own schema before any rank starts."""

from typing import Any

import pydantic

from rl.config.learner import FORMATS, PASSED_THROUGH, ZERO, TrainingSettings
from rl.learner.engine import engine_config
from rl.learner.files import deepspeed

_SCHEMAS: dict[str, Any] = {
    ZERO: deepspeed.runtime.zero.config.DeepSpeedZeroConfig,
    "comms_logger": deepspeed.comm.config.CommsLoggerConfig,
}
assert set(_SCHEMAS) < set(PASSED_THROUGH)


def refuse_wrong_tuning(learner: TrainingSettings) -> None:
    """Raise ValueError, in one line, for a key or a value of `learner.deepspeed` that DeepSpeed does not take."""
    for name, value in learner.deepspeed.items():
        if name in _SCHEMAS:
            _refuse_by_schema(name, engine_config(learner)[name] if isinstance(value, dict) else value)
    communication = learner.deepspeed.get("communication_data_type")
    sums = learner.deepspeed.get("data_types", {})
    if communication is not None and communication not in FORMATS:
        raise ValueError(f"learner.deepspeed.communication_data_type is {communication!r}; it is {_formats()}.")
    if not isinstance(sums, dict) or set(sums) - {"grad_accum_dtype"} or not set(sums.values()) <= set(FORMATS):
        raise ValueError(f"learner.deepspeed.data_types is {sums!r}; it has one key, grad_accum_dtype, {_formats()}.")
    if sums and learner.zero_stage == 0:
        raise ValueError(
            "learner.deepspeed.data_types is set at learner.zero_stage 0, where DeepSpeed has no sums of their own "
            "format; set learner.zero_stage to 1, 2 or 3, or leave it out."
        )


def _refuse_by_schema(name: str, values: Any) -> None:
    place, said = name, "it must be a mapping"
    if isinstance(values, dict):
        try:
            _SCHEMAS[name](**values)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            place, said = ".".join([name, *map(str, first["loc"])]), first["msg"]
            values = first["input"]
        else:
            return
    raise ValueError(
        f"learner.deepspeed.{place} is {values!r}, which DeepSpeed {deepspeed.__version__} does not take: {said}; see "
        "its documentation of the configuration, or leave it out."
    )


def _formats() -> str:
    return " or ".join(FORMATS)
