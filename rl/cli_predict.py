"""`polytrace predict`: outline what a phrase means in an image."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console(emoji=False)


def predict(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="Folder of a run (its best policy), Hugging Face folder of a policy, or tiny."),
    ],
    image: Annotated[Path, typer.Argument(help="Any image file, of any size.")],
    phrase: Annotated[str, typer.Argument(help='What to outline, such as "the left apple".')],
    svg: Annotated[Path | None, typer.Option(help="Write the outline here, as a path in the image's pixels.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the mask here: that path filled, 0 or 255.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the numbers here: rings, box, predicted IoU.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML with the codec of a policy that is no run.", show_default="demo")
    ] = None,
    refiner: Annotated[
        Path | None, typer.Option(help="Folder of a refiner.", show_default="RUN/refiner, if it is there")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The outline as the policy drew it, without the refiner.")] = False,
    min_iou: Annotated[
        float, typer.Option(help="Least IoU of the simplified outline with the refined mask; 1 keeps each pixel.")
    ] = 0.995,
    side: Annotated[
        int | None,
        typer.Option(help="Longer side, px, at which the policy sees the image.", show_default="as the run's env"),
    ] = None,
    over: Annotated[bool, typer.Option("--over", help="Lay the image under the path in the SVG.")] = False,
) -> None:
    """Outline what a phrase means in an image: an SVG path and the mask it fills to (docs/predict.md).

    The answer is the policy's likeliest one. An answer that is empty or not valid gives empty files and its status.
    """
    from envs.image_file import read_image
    from policies.question import check_phrase
    from rl.predict import Predictor, find_source
    from rl.prediction_files import check_outputs, table_of, write_prediction
    from rl.vector import check_floor

    outputs = {"svg": svg, "png": png, "json": json}
    check_outputs(outputs, image)
    check_floor(min_iou)
    check_phrase(phrase)
    source = find_source(checkpoint, config, refiner, raw, side)
    picture = read_image(image)
    prediction = Predictor(source).predict(picture, phrase, min_iou)
    written = write_prediction(prediction, outputs, picture if over else None)
    console.print(table_of(prediction))
    for path in written:
        console.print(f"{path}", markup=False, soft_wrap=True)
