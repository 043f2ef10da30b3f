"""Further vision encoders of masks: how they are shown images, whose features lie where, and that they stay frozen."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from envs.codecs import mask_group, mask_numbers, path_tokens
from envs.datasets.cutout_scenes import Env
from policies.families import mask_numbers as writing
from policies.families._sizes import Beside, model_sizes
from policies.families.mask_selection import Policy
from policies.families.vision_language import Policy as PlainPolicy
from policies.selection.encoders import Encoder, feature_map
from policies.selection.head import SelectionHead
from policies.selection.regions import CODE_WIDTH

ENV = Env(split="train", image_size=32, candidates=9, several_share=0.4, max_scale=0.45)
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
VIT = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}


def image_processor(folder: Path, **values: Any) -> Path:
    both = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "resample": 3} | values
    (folder / "preprocessor_config.json").write_text(json.dumps(both))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random ones, with image processors in the words of the released ones."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("encoders")
    towers = {
        "clip": CLIPModel(
            CLIPConfig(
                vision_config=VIT | {"intermediate_size": 32, "patch_size": 4, "image_size": 24},
                text_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9},
            )
        ),
        "siglip": SiglipVisionModel(SiglipVisionConfig(**VIT, intermediate_size=32, patch_size=4, image_size=30)),
        "dinov2": Dinov2Model(Dinov2Config(**VIT, patch_size=4, image_size=40)),
        "registers": Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**VIT, patch_size=4, image_size=20)),
        "convnext": ConvNextModel(ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1])),
    }
    for name, tower in towers.items():
        tower.save_pretrained(root / name)
    crop = {"do_center_crop": True, "crop_size": {"height": 20, "width": 20}, "size": {"shortest_edge": 26}}
    image_processor(root / "clip", do_center_crop=True, crop_size=24, size=24)
    image_processor(root / "siglip", size={"height": 30, "width": 30}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    image_processor(root / "dinov2", **crop)
    image_processor(root / "registers", **crop)
    image_processor(root / "convnext", size={"shortest_edge": 64}, crop_pct=0.875)
    return {name: root / name for name in towers}


def test_an_image_is_shown_whole_in_the_size_mean_and_std_of_the_image_processor(folders: dict[str, Path]) -> None:
    square = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    found = Encoder(folders["clip"]).view.of([square])
    theirs = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    torch.testing.assert_close(found, theirs(images=[square], return_tensors="pt")["pixel_values"], atol=1e-5, rtol=0)
    # What a crop would cut off is seen.
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, :4] = 255
    shown = Encoder(folders["siglip"]).view.of([wide])
    assert shown.shape == (1, 3, 30, 30) and shown[0, :, :, 0].min() > 0.9 and shown[0, :, :, -1].max() == -1.0
    sizes = {name: Encoder(folder).view.of([wide]).shape[2:] for name, folder in folders.items()}
    expected = {"clip": (24, 24), "siglip": (30, 30), "dinov2": (20, 20), "registers": (20, 20), "convnext": (64, 64)}
    assert sizes == expected


def test_features_are_those_of_patches_and_lie_where_these_are(folders: dict[str, Path]) -> None:
    grids = {"clip": (6, 6), "siglip": (7, 7), "dinov2": (5, 5), "registers": (5, 5), "convnext": (2, 2)}
    for name, grid in grids.items():
        encoder = Encoder(folders[name])
        pixels = encoder.view.of([np.zeros((32, 32, 3), np.uint8)])
        found = encoder.features(pixels)
        assert found.shape == (1, encoder.width, *grid) and not found.requires_grad
        # The patch whose embedding a change of pixels reaches most is that of its place: lower left.
        changed = pixels.clone()
        changed[:, :, -pixels.shape[2] // grid[0] :, : pixels.shape[3] // grid[1]] += 3.0
        difference = (encoder.features(changed) - found).norm(dim=1)[0]
        if name != "convnext":  # whose kernels are wider than so small a map
            assert difference.argmax().item() == (grid[0] - 1) * grid[1], name
    network = CLIPVisionModel.from_pretrained(folders["clip"]).eval()
    pixels = torch.randn(2, 3, 24, 24)
    hidden = network(pixels, output_hidden_states=True).hidden_states
    found = Encoder(folders["clip"]).features(pixels)
    torch.testing.assert_close(found[1, :, 2, 3], hidden[2][1, 1 + 2 * 6 + 3])  # of three blocks the second


def test_the_projector_fits_encoders_of_real_size() -> None:
    with torch.device("meta"):
        real = [
            (CLIPVisionModel(CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
                num_attention_heads=16, patch_size=14, image_size=336)), 336, (1024, 24, 24), 303.2),
            (SiglipVisionModel(SiglipVisionConfig(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27,
                num_attention_heads=16, patch_size=14, image_size=384)), 384, (1152, 27, 27), 428.2),
            (Dinov2Model(Dinov2Config(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, patch_size=14,
                image_size=518)), 224, (1024, 16, 16), 304.4),
            (ConvNextModel(ConvNextConfig(hidden_sizes=[192, 384, 768, 1536], depths=[3, 3, 27, 3])), 384,
                (1536, 12, 12), 196.2),
        ]  # fmt: skip
        # Qwen3-VL-4B: a language model of width 2560.
        head = SelectionHead(2560, 2560, [shape[0] for _, _, shape, _ in real])
        found = [feature_map(network, torch.empty(1, 3, side, side)) for network, side, _, _ in real]
        assert [each.shape[1:] for each in found] == [shape for _, _, shape, _ in real]
        for network, _, _, millions in real:
            assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)
        others = [torch.empty(7, each.shape[1]) for each in found]
        assert head.tokens(torch.empty(7, 2560 + CODE_WIDTH + 1), others).shape == (7, 2560)
    assert head.first.in_features == 2560 + CODE_WIDTH + 1 + 1024 + 1152 + 1024 + 1536


def chosen(policy: Policy, image: np.ndarray | None = None) -> Tensor:
    example = ENV[0]
    question = example.question(ENV.image(example.image))
    rows = policy.unanswered([question if image is None else replace(question, image=image)])
    return policy.place_logprobs(rows, 1.0)[0][0, :, 1]


@pytest.fixture(scope="module")
def policy(tiny_untrained: Path, folders: dict[str, Path]) -> Policy:
    made = Policy(tiny_untrained, mask_group.Codec(), encoders=list(map(str, folders.values()))).eval()
    with torch.no_grad():
        made.model.selection.classifier.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(5))
    return made


def test_choices_hang_on_what_encoders_say_and_only_their_projector_learns(
    policy: Policy, folders: dict[str, Path]
) -> None:
    questions = [example.question(ENV.image(example.image)) for example in (ENV[0], ENV[1], ENV[2])]
    rows = policy.rows(questions, [[np.ones(len(each.candidates), np.int64)] for each in questions])
    assert [tuple(view.shape[2:]) for view in rows.regions.views] == [(24, 24), (30, 30), (20, 20), (20, 20), (64, 64)]
    together = policy(rows)
    apart = torch.cat([policy(rows.chosen([b])).flatten() for b in range(3)])
    torch.testing.assert_close(together[rows.scored_mask], apart[apart != 0], atol=1e-5, rtol=0)
    together.sum().backward()
    selection = policy.model.selection
    widths = [24, 24, 24, 24, 20]
    own = selection.first.in_features - sum(widths)
    for begin, width in zip(np.cumsum([own, *widths[:-1]]), widths, strict=True):
        assert selection.first.weight.grad[:, begin : begin + width].abs().max() > 0
    assert all(norm.weight.grad.abs().max() > 0 for norm in selection.norms)
    named = {name for name, _ in policy.named_parameters()}
    assert not any("encoder" in name for name in named) and "model.selection.norms.4.weight" in named
    plain = chosen(policy)
    held = policy.encoders[0].features
    policy.encoders[0].features = lambda pixels: 1 - held(pixels)
    assert (chosen(policy) - plain).abs().max() > 1e-4
    policy.encoders[0].features = held


def test_a_plan_counts_all_that_a_policy_over_masks_has_beside_its_encoders(
    policy: Policy, tiny_untrained: Path
) -> None:
    def count(model: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    sizes = model_sizes(policy.processor, beside=Beside([(each.width, each.parameters) for each in policy.encoders]))
    held = sum(count(each._loaded()) for each in policy.encoders)
    assert sizes.parameters.encoders == held > 0
    assert sizes.parameters.all == count(policy.model)
    assert sizes.parameters.selection == count(policy.model.selection)
    rival = writing.Policy(tiny_untrained, mask_numbers.Codec())
    assert model_sizes(rival.processor).parameters.all == count(rival.model)
    plain = PlainPolicy(tiny_untrained, path_tokens.Codec())
    assert model_sizes(plain.processor).parameters.all == count(plain.model)


def test_a_saved_policy_names_its_encoders_and_finds_them_again(
    policy: Policy, tiny_untrained: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    policy.save(tmp_path)
    assert json.loads((tmp_path / "selection.json").read_text()) == {"encoders": list(map(str, folders.values()))}
    again = Policy(tmp_path, mask_group.Codec()).eval()
    assert torch.equal(chosen(again), chosen(policy))
    for wrong in ([], [str(folders["clip"])], list(map(str, reversed(folders.values())))):
        with pytest.raises(ValueError, match=r"was trained with other encoders than policy\.encoders names"):
            Policy(tmp_path, mask_group.Codec(), encoders=wrong)
    rival = writing.Policy(tiny_untrained, mask_numbers.Codec(), encoders=[str(folders["convnext"])])
    question = ENV[0].question(ENV.image(ENV[0].image))
    assert rival(rival.rows([question], [[rival.processor.answer_tokens("0 1")]])).shape == (1, 1, 3)


def test_what_is_no_encoder_is_refused_in_a_line(
    tiny_untrained: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"^policy\.encoders names .*nowhere, which has no config\.json"):
        Encoder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"^policy\.encoders names .* is a qwen3_vl model; it may hold clip, "):
        Encoder(tiny_untrained)
    Dinov2Model(Dinov2Config(**VIT, patch_size=4, image_size=40)).save_pretrained(tmp_path / "bare")
    with pytest.raises(FileNotFoundError, match=r"bare, which has no preprocessor_config\.json; copy it"):
        Encoder(tmp_path / "bare")
    for broken in ({"size": "large"}, {"size": 28, "image_std": [0, 1, 1]}, {"size": 28, "image_mean": 0.5}):
        with pytest.raises(ValueError, match=r"says no size, mean and std that can be shown"):
            Encoder(image_processor(tmp_path / "bare", **broken))
    CLIPVisionModel(CLIPVisionConfig(**VIT, intermediate_size=32, patch_size=4, image_size=24)).save_pretrained(
        tmp_path / "other"
    )
    with pytest.raises(ValueError, match=r"shows 32x32 pixels, and the encoder sees 24x24"):
        Encoder(image_processor(tmp_path / "other", size=32))
    image_processor(tmp_path / "bare", size=28)
    (tmp_path / "bare/model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no weights"):
        Encoder(tmp_path / "bare")
