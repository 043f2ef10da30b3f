"""Whether a run's settings fit its policy: found in the driver, from a policy without weights, before Ray starts.

What only the policy itself knows, such as whether its chat template shows an image and its tokenizer the codec's words.
"""

from inspect import signature

from envs.example import Env
from policies.base import PolicyContract
from rl.config import RunConfig, RunParts, most_answer_tokens
from rl.writable import refuse_unwritable_codec

_MEASURED = 16
"""Training examples whose prompts are measured; others may have longer ones."""


def refuse_unfit_policy(config: RunConfig, parts: RunParts) -> None:
    """Raise ValueError where the policy cannot be asked or cannot write the codec's answers, where learner.lora.targets
    name no layer, or a group can outgrow learner.token_budget.

    A policy that cannot be built without its weights is not looked at.
    """
    lora, budget = config.learner.lora, config.learner.token_budget
    if "weights" not in signature(parts.policy.load()).parameters:
        return
    recipe = parts.policy.with_settings(weights=False)
    policy: PolicyContract = (recipe if lora is None else recipe.with_settings(lora=lora)).build()
    refuse_unwritable_codec(policy, parts.policy, parts.codec)
    if budget is not None:
        _refuse_long_prompts(parts.env.build(split="train"), policy, budget, most_answer_tokens(config))


def _refuse_long_prompts(env: Env, policy: PolicyContract, budget: int, answers: int) -> None:
    for k in range(min(_MEASURED, len(env))):
        example = env[k]
        prompt = len(policy.prompt_tokens(env.image(example.image), example.prompt.text))
        if prompt + answers > budget:
            raise ValueError(
                f"the prompt of {example.id} has {prompt} tokens and its answers can have {answers}, together "
                f"{prompt + answers}, more than learner.token_budget {budget}, and a group is one row: set the budget "
                f"to {prompt + answers} or more, or lower group_size, sampling.max_tokens or the size of images."
            )
