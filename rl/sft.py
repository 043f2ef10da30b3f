"""`polytrace sft`: a policy taught stage by stage from a dataset's own outlines.

From a checkpoint, or from a new tiny model that is made for the words of env and codec. A folder holds

    policy/            Hugging Face folder of the policy as of the last evaluation, or of the best one (sft.keep)
    curve.tsv          what each evaluation found
    metrics.jsonl, TensorBoard events, config.yaml, data.json
    checkpoints/       what is needed to go on (rl/run/checkpoints.py)
    stages/            the policy as of a step behind which another part is trained (sft.stages[].trains)
"""

from dataclasses import fields
from pathlib import Path

from rich.console import Console

from envs.plugin import Plugin
from policies.settings import TinySizes
from rl.config.load import load_settings, read_mapping, save_settings
from rl.config.outlines import OutlineSettings
from rl.config.plugins import codec_plugin, env_plugin, policy_plugin
from rl.config.sft import SftConfig
from rl.run.checkpoints import Checkpoints
from rl.run.data import RunData
from rl.run.parts import processor_of
from rl.run.thinking import refuse_untaught_thinking
from rl.run.writable import unread_words_note
from rl.supervised.answers import refuse_unfit_answers
from rl.supervised.idle import refuse_idle_stages
from rl.supervised.new_model import write_new_model
from rl.supervised.plan import refuse_small_budgets
from rl.supervised.rank import SftRankSettings
from rl.supervised.train import CURVE, POLICY, begin_of, last_step, train_sft


def run_sft(config: SftConfig, console: Console) -> Path:
    """Train as `config` says; returns the folder of the policy. Goes on where an earlier call was stopped.

    Raises ValueError or FileNotFoundError for what is wrong with the config before training starts, FloatingPointError
    where loss, gradient or weights are not finite, ChildProcessError where one of several ranks dies.
    """
    folder = Path(config.run)
    recipe = env_plugin(config.env)
    data = RunData.of(recipe, ("train", "validation"), config.max_left_out)
    _refuse_other_run(config, data, folder)
    policy = _checked_policy(config, recipe, folder, console)
    settings = SftRankSettings(config.learner, config.sft, policy, recipe, config.max_tokens, config.seed)
    if (done := last_step(folder)) < config.sft.num_steps:
        begin_of(folder, config.sft.stretch_at(done))
    folder.mkdir(parents=True, exist_ok=True)
    save_settings(config, folder / "config.yaml")
    data.write(folder)
    data.tell(console, folder)
    train_sft(settings, config, folder, console)
    console.print(f"policy: {folder / POLICY}   curve: {folder / CURVE}", markup=False)
    return folder / POLICY


def _checked_policy(config: SftConfig, recipe: Plugin, folder: Path, console: Console) -> Plugin:
    """The policy to train, a new one where no checkpoint is named, once its answers are found to be teachable.

    recipe: of the env.
    """
    env, validation = recipe.build(split="train"), recipe.build(split="validation")
    codec, policy = codec_plugin(config.codec), dict(config.policy)
    if policy.get("checkpoint") is not None and config.tiny != TinySizes():
        console.print("note: `tiny` describes a new model, and policy.checkpoint names one, so it is not looked at")
    if policy.get("checkpoint") is None:
        policy["checkpoint"] = str(folder / "untrained")
        write_new_model(folder / "untrained", config, env, codec, console)
    if policy.setdefault("dtype", config.learner.dtype) != config.learner.dtype:
        raise ValueError(
            f"policy.dtype is {policy['dtype']} and learner.dtype {config.learner.dtype}; set both to the same, or "
            "leave policy.dtype out."
        )
    plugin = policy_plugin(policy, codec)
    refuse_idle_stages(config, plugin)
    processor = processor_of(plugin)
    refuse_untaught_thinking(processor, config.sft.answers)
    if note := unread_words_note(env, processor):
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    try:
        refuse_unfit_answers(processor, (env, validation), config)
        refuse_small_budgets(env, processor, config)
    except ValueError as error:
        raise ValueError(f"codec is {codec.name}, policy.checkpoint {policy['checkpoint']}: {error}") from error
    return plugin


def _refuse_other_run(config: SftConfig, data: RunData, folder: Path) -> None:
    """Raise ValueError where `folder` holds the beginnings of a training that would not go on as the same."""
    if (folder / "state.pt").is_file():
        raise ValueError(
            f"{folder} was begun by an older version of Polytrace (state.pt); go on with that version, or give this "
            "training another folder by run=NAME."
        )
    if (folder / "config.yaml").is_file() and "sft" not in read_mapping(folder / "config.yaml"):
        raise ValueError(f"run is {folder}, which holds a run of another kind; give this training a folder of its own.")
    done = Checkpoints(folder, keep=1).last_step
    if done is None:
        return
    begun = load_settings(SftConfig, folder / "config.yaml")
    kept = {"seed": (config.seed, begun.seed), "env": (config.env, begun.env), "codec": (config.codec, begun.codec)}
    kept |= {"policy": (config.policy, begun.policy), "tiny": (config.tiny, begun.tiny)}
    kept["sft.scenes_per_step"] = config.sft.scenes_per_step, begun.sft.scenes_per_step
    kept |= {"sft.shuffle": (config.sft.shuffle, begun.sft.shuffle)}
    kept |= {"sft.questions": (config.sft.questions, begun.sft.questions)}
    kept |= {"sft.keep": (config.sft.keep, begun.sft.keep)}
    for field in fields(OutlineSettings):
        kept[f"sft.{field.name}"] = vars(config.sft)[field.name], vars(begun.sft)[field.name]
    kept |= {"sft.warmup_steps": (config.sft.warmup_steps, begun.sft.warmup_steps)}
    kept |= {"sft.stages of the steps that are done": (config.sft.done_by(done), begun.sft.done_by(done))}
    now, before = config.learner.identity, begun.learner.identity
    kept |= {f"learner.{name}": (now[name], before[name]) for name in now}
    for name, (new, old) in kept.items():
        if new != old:
            raise ValueError(
                f"{name} is {new}, but {folder} began with {old}; go on with the same settings, or give this training "
                "another folder by run=NAME."
            )
    for split in data.changed(folder):
        raise ValueError(
            f"the data of split {split} is not what {folder} began with; restore the files of that time, or give this "
            "training another folder by run=NAME."
        )
