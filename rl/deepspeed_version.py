"""Releases of DeepSpeed that learn wrongly are refused before anything starts."""

import re

_FIRST_WRONG, _FIRST_RIGHT = (0, 17, 6), (0, 18, 3)


def refuse_wrong_gradients(version: str, zero_stage: int) -> None:
    """Raise ValueError where ZeRO-2 under this release of DeepSpeed gives wrong gradients.

    Releases from 0.17.6 on and before 0.18.3 did (github.com/deepspeedai/DeepSpeed, issue 7718): no error, no NaN,
    only a run that learns worse. version: such as "0.19.8", "0.18.3rc1" or "0.18.0+cu126".
    """
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?(.*)", version)
    if found is None:
        raise ValueError(f"the installed DeepSpeed calls itself {version!r}, which is no version; install it anew.")
    release = (int(found[1]), int(found[2]), int(found[3] or 0))
    before_release = bool(re.match(r"\.?(a|b|rc|dev)\d*", found[4]))
    wrong = _FIRST_WRONG <= release < _FIRST_RIGHT or (release == _FIRST_RIGHT and before_release)
    if zero_stage == 2 and wrong:
        raise ValueError(
            f"learner.zero_stage is 2 and DeepSpeed {version} is installed, but ZeRO-2 gradients are wrong in releases "
            "from 0.17.6 on and before 0.18.3 (deepspeed issue 7718); set learner.zero_stage to 1 or 3, or install "
            "deepspeed==0.19.8."
        )
