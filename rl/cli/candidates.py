"""`polytrace data candidates`: pools of masks for policies that choose, as a file in COCO's form."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rl.cli.options import AsJson, Overrides, without_gpu_warning

if TYPE_CHECKING:
    from envs.geometry.pools import PoolRule
    from policies.labellers.automatic_masks import AutomaticRule
    from rl.sources.candidates import Answering
    from rl.sources.pictures import EnvSplits
    from rl.sources.pool_file import PoolFile, PoolReport

console = Console(emoji=False)
_FEW = 5

Sam = Annotated[
    Path | None,
    typer.Option(help="Folder of a SAM in transformers' form: its automatic masks are the candidates."),
]
Policy = Annotated[
    str | None,
    typer.Option(help="Run, Hugging Face folder or tiny: the objects of its answers are the candidates."),
]
AskedBy = Annotated[
    Path | None, typer.Option("--config", help="YAML by which a policy that is no run is asked.", show_default="demo")
]
Splits = Annotated[
    list[str] | None, typer.Option("--split", help="Only this split; several times.", show_default="all")
]
Format = Annotated[str | None, typer.Option("--format", help="Reader of the files.", show_default="found by the files")]
Images = Annotated[str | None, typer.Option(help="Folder of the photos.", show_default="where the format has them")]
Workers = Annotated[int | None, typer.Option(min=1, help="Rollout workers of --policy.", show_default="the config's")]


def candidates(
    source: Annotated[
        Path,
        typer.Argument(help="Folder of images, files of a data set, prepared examples, a config, or a run."),
    ],
    out: Annotated[Path, typer.Option(help="File of the pools (.json); one that was stopped goes on.")],
    overrides: Overrides = None,
    sam: Sam = None,
    policy: Policy = None,
    config: AskedBy = None,
    answers: Annotated[int, typer.Option(help="Answers of --policy to each question.")] = 8,
    temperature: Annotated[float, typer.Option(help="Temperature of these answers.")] = 1.0,
    points: Annotated[int, typer.Option(help="Points along a side at which --sam is asked.")] = 32,
    min_quality: Annotated[float, typer.Option(help="Least IoU that a mask of --sam foretells of itself.")] = 0.88,
    min_stability: Annotated[float, typer.Option(help="Least stability of a mask of --sam.")] = 0.95,
    box_iou: Annotated[float, typer.Option(help="IoU of boxes above which --sam keeps the surer mask alone.")] = 0.7,
    same_iou: Annotated[float, typer.Option(help="IoU from which two masks are one.")] = 0.9,
    min_share: Annotated[float, typer.Option(help="Least share of the image that a mask covers.")] = 0.0005,
    most: Annotated[int, typer.Option(help="Most masks of an image, the best ones.")] = 64,
    split: Splits = None,
    format: Format = None,
    images: Images = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most images.", show_default="all")] = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Make pools of candidate masks for a policy that chooses: by SAM, by a policy's own answers, or of an archive.

    SOURCE says which images; a run alone gives the answers in its archive. The file is COCO's form: `data prepare
    --pools` puts it beside the questions of a data set, and `predict --candidates` takes it (docs/candidates.md).
    """
    from envs.geometry.pools import PoolRule
    from policies.labellers.automatic_masks import AutomaticRule, refuse_no_sam
    from rl.sources.candidates import Answering

    _refuse_out(out)
    if sam is not None and policy is not None:
        raise ValueError("--sam and --policy are two sources of masks; give one of them, and make two files for both.")
    rule = PoolRule(same_iou, min_share, most)
    quiet = Console(stderr=True, emoji=False) if as_json else console
    without_gpu_warning()
    asked = _Asked(source, out, overrides or [], split or [], limit, rule, quiet)
    if sam is not None:
        refuse_no_sam(sam)
        report = asked.by_sam(sam, AutomaticRule(points, min_quality, min_stability, box_iou), format, images)
    elif policy is not None:
        _refuse_reader_options(format, images)
        report = asked.by_policy(policy, config, Answering(answers, temperature), workers)
    else:
        _refuse_reader_options(format, images)
        report = asked.of_archive()
    _tell(report, out, as_json)


class _Asked:
    """What the options say, whatever makes the masks."""

    def __init__(
        self,
        source: Path,
        out: Path,
        overrides: list[str],
        splits: list[str],
        limit: int | None,
        rule: "PoolRule",
        quiet: Console,
    ) -> None:
        self.source, self.out, self.overrides, self.splits = source, out, overrides, splits
        self.limit, self.rule, self.quiet = limit, rule, quiet

    def by_sam(self, sam: Path, how: "AutomaticRule", format: str | None, images: str | None) -> "PoolReport":
        """Pools of SAM's automatic masks."""
        from dataclasses import asdict

        from policies.labellers.automatic_masks import AutomaticMasks
        from rl.benchmark import weight_files
        from rl.sources.candidates import segment
        from rl.sources.pictures import Given, env_pictures, file_pictures, is_prepared_or_config

        made_by = {"sam": str(sam.resolve()), "weights": weight_files(str(sam)), **asdict(how)}
        if is_prepared_or_config(self.source):
            _refuse_reader_options(format, images)
            pictures = env_pictures(self._env(), self.limit, self.quiet)
        else:
            given = Given(self.source, self.overrides, self.splits, format, images)
            pictures = file_pictures(given, self.limit, self.quiet)
        file = self._file(made_by, pictures.identity)
        if not file.is_whole:
            found = pictures.left(file.done)
            segment(found, file, AutomaticMasks(sam, how), self.rule, pictures.total, self.quiet)
        for line in pictures.told():
            self.quiet.print(line, markup=False, highlight=False, soft_wrap=True)
        return file.finish()

    def by_policy(self, policy: str, config: Path | None, answering: "Answering", workers: int | None) -> "PoolReport":
        """Pools of answers that a policy draws."""
        from dataclasses import asdict, replace

        from rl.benchmark import weight_files
        from rl.benchmarks.models import benchmark_model
        from rl.sources.candidates import Drawing, draw
        from rl.sources.pictures import refuse_no_questions

        refuse_no_questions(self.source)
        splits = self._env()
        model = benchmark_model(policy, config, True, workers, None)
        asked = replace(model.config, policy=model.config.policy | {"checkpoint": model.checkpoint})
        made_by: dict[str, Any] = {"policy": model.checkpoint, "weights": weight_files(model.checkpoint)}
        made_by |= {"codec": asked.codec, "max_tokens": asked.sampling.max_tokens, **asdict(answering)}
        file = self._file(made_by, splits.fingerprints)
        if not file.is_whole:
            draw(Drawing(asked, splits, answering, self.rule, self.limit), file, self.quiet)
        return file.finish()

    def of_archive(self) -> "PoolReport":
        """Pools of the answers in a run's archive."""
        from rl.sources.candidates import gather
        from rollout.archive.archive import RolloutArchive

        if not (self.source / "archive").is_dir():
            raise ValueError(
                f"{self.source} holds no archive of answers, so nothing says where masks come from; give --sam FOLDER "
                "or --policy CHECKPOINT."
            )
        if self.splits or self.overrides or self.limit is not None:
            raise ValueError(
                "an archive says itself which images it is about; leave --split, --limit and settings out."
            )
        last = RolloutArchive(self.source / "archive").last_step
        file = self._file({"archive": str(self.source.resolve())}, {"last_step": last})
        if not file.is_whole:
            gather(self.source, file, self.rule, self.quiet)
        return file.finish()

    def _env(self) -> "EnvSplits":
        """The env of prepared examples, a config or a run, and the splits that are meant."""
        from rl.data import all_splits, data_config
        from rl.sources.pictures import EnvSplits

        if prepared := sorted(path.parent.name for path in self.source.glob("*/split.json")):
            if self.overrides:
                raise ValueError(f"{self.source} holds prepared examples, which have no settings; leave them out.")
            entry = {"name": "shards", "folder": str(self.source.resolve()), "candidates": False}
            return EnvSplits(entry, tuple(self.splits or prepared))
        is_run = (self.source / "config.yaml").is_file()
        data = data_config(self.source / "config.yaml" if is_run else self.source, self.overrides)
        return EnvSplits(data.env, tuple(self.splits) or all_splits(data))

    def _file(self, made_by: dict[str, Any], images: Any) -> "PoolFile":
        from dataclasses import asdict

        from rl.sources.pool_file import PoolFile

        file = PoolFile(self.out, {**made_by, "images": images, "limit": self.limit, **asdict(self.rule)})
        if file.done:
            self.quiet.print(f"goes on: {len(file.done):,} images are done", highlight=False)
        return file


def _refuse_out(out: Path) -> None:
    from rollout.disk import refuse_unwritable

    if out.suffix != ".json":
        raise ValueError(f"--out is {out}, which does not end in .json; give the name of a file in COCO's form.")
    refuse_unwritable(out)


def _refuse_reader_options(format: str | None, images: str | None) -> None:
    if format or images:
        raise ValueError(
            "--format and --images say how files of a data set are read, which --sam alone takes, for these."
        )


def _tell(report: "PoolReport", out: Path, as_json: bool) -> None:
    from rl.pages.json_text import json_text
    from rl.sources.pool_file import report_table

    if as_json:
        print(json_text(report.as_json() | {"out": f"{out}"}, indent=2))
        return
    console.print(report_table(report))
    for name, why in list(report.bad.items())[:_FEW]:
        console.print(f"{name}: {why}", markup=False, highlight=False, soft_wrap=True)
    if report.counts.bad > _FEW:
        console.print(f"and {report.counts.bad - _FEW:,} more; all are named in {out}", markup=False, soft_wrap=True)
    console.print(
        f"pools: {out}   next: polytrace data prepare SOURCE --pools {out} --out FOLDER", markup=False, soft_wrap=True
    )
