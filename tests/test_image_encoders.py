"""Published and learned image encoders: the same arithmetic, checkpoints in their published layout, mistakes as sentences."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_image_encoders as small
import torch
from safetensors.torch import save_file
from small_image_encoders import built, noise, page_of
from torch import nn
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPModel, SiglipConfig, SiglipModel, ViTImageProcessorPil

from dmlm import recipes
from dmlm.errors import UserError
from dmlm.tokens.canvas import PATCHWISE, square
from dmlm.tokens.quantize import learn_codebook
from dmlm.weights import published


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))


def test_a_page_comes_onto_a_square() -> None:
    page = np.full((200, 450, 3), (250, 240, 200), np.uint8)
    page[90:110, :] = 0  # a line across
    padded, cropped, squashed = (square(page, 96, fit) for fit in ("pad", "crop", "squash"))
    assert padded.shape == cropped.shape == squashed.shape == (96, 96, 3)
    assert (padded[:20] == [250, 240, 200]).all(), "paper of the page, each channel by itself"
    assert (padded[-20:] == [250, 240, 200]).all()
    assert (padded[48, [0, -1]] < 60).all(), "the line is whole"
    assert np.sum(padded[:, 48, 0] < 128) == pytest.approx(20 * 96 / 450, abs=1.5)
    assert np.sum(cropped[:, 48, 0] < 128) == pytest.approx(20 * 96 / 200, abs=1.5)
    assert np.sum(squashed[:, 48, 0] < 128) == pytest.approx(20 * 96 / 200, abs=1.5)
    page[:, :120] = 0
    assert (square(page, 96, "crop")[5, 0] > 190).all(), "its left is cut off"
    exact = noise(1, 96, 96)[0]
    assert all(np.array_equal(square(exact, 96, fit), exact) for fit in ("pad", "crop", "squash"))


def test_crop_is_the_originals() -> None:
    """`preprocess` of notebooks/usage.ipynb of openai/DALL-E, with PIL alone: resize the shorter side, crop the centre."""
    from PIL import Image

    image = Image.fromarray(page_of(1, 500, 301))
    ratio = 256 / min(image.size)
    resized = image.resize((round(ratio * image.width), round(ratio * image.height)), Image.Resampling.LANCZOS)
    left, top = round((resized.width - 256) / 2), round((resized.height - 256) / 2)
    expected = np.asarray(resized.crop((left, top, left + 256, top + 256)))
    assert np.array_equal(square(np.asarray(image), 256, "crop"), expected)


# DALL-E


@pytest.fixture
def dalle() -> tuple[Any, small.Encoder]:
    settings = small.image_dalle()
    model = small.write_dalle(published.folder("image_dalle") / "encoder.pkl")
    return built("image_dalle", **settings), model


def mapped(images: list[np.ndarray]) -> torch.Tensor:
    """`map_pixels` of dall_e.utils: 0.8 x + 0.1 for x in [0, 1]."""
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / 255) * 0.8 + 0.1


def test_dalle_equals_the_network_written_out(dalle) -> None:
    """The encoder derived again from its description and run as plain convolutions, from the pickled module it wrote."""
    encoder, model = dalle
    images = noise(3)
    logits = model(mapped(images))
    assert torch.allclose(encoder.network(mapped(images)), logits, atol=1e-6)
    units = encoder.encode(images)
    assert np.array_equal(np.stack(units), logits.argmax(1).flatten(1).numpy())
    assert len(np.unique(units)) > 5


def test_dalle_equals_the_original() -> None:
    """The package DALL-E 0.1 itself, pickled as a whole; logits and units are identical."""
    dall_e = pytest.importorskip("dall_e")
    torch.manual_seed(0)
    original = dall_e.Encoder(n_hid=64, vocab_size=512)
    path = published.folder("image_dalle") / "encoder.pkl"
    path.parent.mkdir(parents=True)
    torch.save(original, path)
    encoder = built("image_dalle", side_px=128, architecture={"hidden_size": 64, "vocab_size": 512})
    encoder.convert([path])
    images = noise(2, 128, 128)
    pixels = np.stack([recipes.load("tokenizers", "image_dalle").pixels(image, 128, "pad") for image in images])
    inputs = dall_e.map_pixels(torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / 255))
    assert torch.allclose(torch.from_numpy(pixels), inputs, atol=1e-7)
    assert torch.equal(original(inputs), encoder.network(inputs))
    assert np.array_equal(np.stack(encoder.encode(images)), original(inputs).argmax(1).flatten(1).numpy())


def test_dalle_gives_as_many_units_as_squares(dalle) -> None:
    for side in (64, 128):
        encoder = built("image_dalle", side_px=side, architecture=small.DALLE)
        assert encoder.encode([page_of(0)])[0].shape == ((side // 8) ** 2,)
    assert built("image_dalle").vocab_size == 8192
    with pytest.raises(UserError, match="multiple of 8"):
        built("image_dalle", side_px=100)


def test_dalle_loads_only_what_was_converted(dalle) -> None:
    encoder, _ = dalle
    before = encoder.fingerprint
    path = published.folder("image_dalle") / "converted.safetensors"
    tensors = {name: tensor * 2 for name, tensor in encoder.network.state_dict().items()}
    save_file(tensors, path)
    assert built("image_dalle", **encoder.settings.model_dump()).fingerprint != before
    path.unlink()
    with pytest.raises(UserError, match="are not here; run: dmlm fetch image_dalle"):
        built("image_dalle", **encoder.settings.model_dump()).require()


class Payload(nn.Module):
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{sys.argv[0]}.payload'",)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("payload", "wants posix.system to be run"),
        ("truncated", "is damaged or of another kind"),
        ("wide", "blocks.input.weight has shape"),
        ("tensors", "holds no module"),
    ],
)
def test_a_spoilt_pickle_is_refused(spoil, message, tmp_path, monkeypatch) -> None:
    path = published.folder("image_dalle") / "encoder.pkl"
    small.write_dalle(path, **({"hidden_size": 32} if spoil == "wide" else {}))
    if spoil == "payload":
        monkeypatch.setattr(sys, "argv", [str(tmp_path / "run")])
        torch.save(Payload(), path)
    if spoil == "truncated":
        path.write_bytes(path.read_bytes()[:-2000])
    if spoil == "tensors":
        torch.save({"blocks.input.w": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=message):
        built("image_dalle", architecture=small.DALLE).convert([path])
    assert not list(tmp_path.glob("*.payload"))
    assert not (path.parent / "converted.safetensors").exists()


# vision transformers and k-means

TO_PUBLISHED = [  # names of transformers 5, and those in google/vit-base-patch16-224-in21k
    ("layers.", "encoder.layer."),
    ("attention.q_proj", "attention.attention.query"),
    ("attention.k_proj", "attention.attention.key"),
    ("attention.v_proj", "attention.attention.value"),
    ("attention.o_proj", "attention.output.dense"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
]


@pytest.fixture
def vit(tmp_path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A folder as ViT is published, without the pooler that fine-tuned ones lack, and its tensors."""
    config = AutoConfig.for_model("vit", **small.VIT)
    torch.manual_seed(0)
    model = AutoModel.from_config(config)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith("pooler"):
            for ours, published in TO_PUBLISHED:
                name = name.replace(ours, published)
            tensors[name] = torch.randn_like(tensor) / tensor[0].numel() ** 0.5
    folder = tmp_path / "vit"
    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors")
    said = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return folder, tensors


def vit_layers(held: dict[str, torch.Tensor], x: torch.Tensor, heads: int = 4) -> list[torch.Tensor]:
    """Output (B, 1 + T, D) of each layer, then of the last normalisation, from the published tensors (arXiv 2010.11929)."""

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, x.shape[-1:], held[f"{name}.weight"], held[f"{name}.bias"], eps=1e-12)

    def dense(name: str, x: torch.Tensor) -> torch.Tensor:
        return linear(x, held[f"{name}.weight"], held[f"{name}.bias"])

    projection = "embeddings.patch_embeddings.projection"
    x = nn.functional.conv2d(x, held[f"{projection}.weight"], held[f"{projection}.bias"], stride=16)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([held["embeddings.cls_token"].expand(len(x), -1, -1), x], 1) + held["embeddings.position_embeddings"]
    found = []
    for number in range(3):
        layer = f"encoder.layer.{number}"
        y = norm(f"{layer}.layernorm_before", x)
        parts = [dense(f"{layer}.attention.attention.{part}", y) for part in ("query", "key", "value")]
        split = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts]
        joined = scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        x = x + dense(f"{layer}.attention.output.dense", joined)
        y = nn.functional.gelu(dense(f"{layer}.intermediate.dense", norm(f"{layer}.layernorm_after", x)))
        x = x + dense(f"{layer}.output.dense", y)
        found.append(x)
    return [*found, norm("layernorm", x)]


def test_vit_equals_its_description_in_the_published_layout(vit) -> None:
    """Derived again from the paper and run on the published names: any layer, the last normalised, [CLS] dropped."""
    folder, tensors = vit
    images = noise(3)
    pixels = (np.stack(images) / np.float32(255) - np.float32([0.4, 0.5, 0.6])) / np.float32([0.2, 0.3, 0.4])
    expected = vit_layers(tensors, torch.from_numpy(pixels.transpose(0, 3, 1, 2)))
    for layer, output in zip((1, 2, 3, None), expected, strict=True):
        found = built("image_vit_kmeans", model=str(folder), layer=layer).features_of(images)
        assert np.allclose(np.stack(found), output[:, 1:].numpy(), atol=2e-5), layer
    assert not np.allclose(expected[2].numpy(), expected[3].numpy(), atol=0.1)


def test_vit_preprocessing_equals_its_own_processor(vit) -> None:
    """`ViTImageProcessorPil` of transformers on a wide page, which squashes it."""
    folder, _ = vit
    own = ViTImageProcessorPil(
        size={"height": 64, "width": 64}, **json.loads((folder / "preprocessor_config.json").read_text())
    )
    encoder = built("image_vit_kmeans", model=str(folder), fit="squash")
    page = page_of(2)
    assert np.allclose(own([page], return_tensors="np")["pixel_values"][0], encoder.pixels(page), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "more", "before"),
    [
        ("beit", {}, 1),
        ("clip_vision_model", {"patch_size": 16}, 1),
        ("deit", {}, 2),
        ("dinov2", {"patch_size": 16}, 1),
        ("dinov2_with_registers", {"patch_size": 16, "num_register_tokens": 4}, 5),
        ("dinov3_vit", {"num_register_tokens": 4}, 5),
        ("ijepa", {"patch_size": 16}, 0),
        ("siglip_vision_model", {"patch_size": 16}, 0),
        ("vit", {}, 1),
        ("vit_msn", {}, 1),
    ],
)
def test_class_and_register_tokens_are_dropped(kind, more, before) -> None:
    encoder = built("image_vit_kmeans", model=f"random:{kind}", architecture={**small.VIT, **more})
    image = noise(1)[0]
    whole = encoder.network(torch.from_numpy(encoder.pixels(image))[None]).last_hidden_state[0]
    (found,) = encoder.features_of([image])
    assert whole.shape[0] == before + 16
    assert np.allclose(found, whole[before:].numpy(), atol=1e-5)
    larger = built("image_vit_kmeans", model=f"random:{kind}", architecture={**small.VIT, **more}, side_px=96, layer=2)
    assert larger.features_of([image])[0].shape == (36, 32)


def test_every_kind_that_is_taken_is_tested() -> None:
    (cases,) = (mark.args[1] for mark in test_class_and_register_tokens_are_dropped.pytestmark)
    assert {kind for kind, _, _ in cases} == set(PATCHWISE)


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        ("vit_mae", small.VIT),
        ("yolos", {**small.VIT, "image_size": [64, 64]}),
        ("swin", {"embed_dim": 16, "depths": [1], "num_heads": [1]}),
        ("siglip2_vision_model", small.VIT),
        ("siglip", {"vision_config": small.VIT, "text_config": {**small.VIT, "vocab_size": 9}}),
        ("hubert", {"num_hidden_layers": 1}),
    ],
)
def test_what_gives_other_tokens_than_patches_is_refused(kind, architecture) -> None:
    """ViT-MAE hides three patches of four at random, YOLOS puts detections last, others do not run on a square."""
    encoder = built("image_vit_kmeans", model=f"random:{kind}", architecture=architecture)
    with pytest.raises(
        UserError, match=rf"random:{kind} is no transformer over patches .* a {kind}; choose .* dinov2,"
    ):
        encoder.features_of(noise(1))


def test_a_folder_of_another_kind_is_refused_before_its_weights_are_read(vit) -> None:
    folder, _ = vit
    AutoConfig.for_model("vit_mae", **small.VIT).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"vit is no transformer over patches .* a vit_mae"):
        built("image_vit_kmeans", model=str(folder)).features_of(noise(1))


def test_code_that_comes_with_a_model_is_not_run(vit, tmp_path, monkeypatch) -> None:
    """Nor is anybody asked whether it may."""
    folder, _ = vit
    (folder / "config.json").write_text('{"model_type": "ours", "auto_map": {"AutoConfig": "ours.Config"}}')
    (folder / "ours.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(UserError, match="cannot be opened"):
        built("image_vit_kmeans", model=str(folder)).features_of(noise(1))
    assert not (tmp_path / "ran").exists()
    assert sys.stdin.read() == "y\n"


CHANNELS = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"rescale_factor": 0.00392156862745098, **CHANNELS},
        {"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]},
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": [120, 130, 140], "image_std": [60, 61, 62], "resample": 0},
    ],
)
def test_a_preprocessor_is_obeyed(vit, said) -> None:
    folder, _ = vit
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    own = ViTImageProcessorPil(size={"height": 64, "width": 64}, **said)
    page = page_of(2)
    found = built("image_vit_kmeans", model=str(folder), fit="squash").pixels(page)
    assert np.allclose(own([page], return_tensors="np")["pixel_values"][0], found, atol=1e-4)


def test_pixels_scaled_as_usual_are_those_of_a_division_by_255() -> None:
    """To the last bit: units near a border between clusters would change."""
    levels = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
    scaling = recipes.load("tokenizers", "image_vit_kmeans").Scaling
    expected = (levels.astype(np.float32) / 255 - np.float32([0.4, 0.5, 0.6])) / np.float32([0.2, 0.3, 0.4])
    for said in ({}, {"rescale_factor": 0.00392156862745098}):
        assert np.array_equal(scaling(**said, **CHANNELS).scaled(levels), expected)


def test_a_preprocessor_that_cannot_be_obeyed_is_a_sentence(vit) -> None:
    folder, _ = vit
    wrong = {"image_mean": [None, [0.5]], "image_std": [[0.5, 0, 0.5]], "resample": ["bicubic"]}
    wrong |= {"rescale_factor": [0], "do_normalize": [None]}
    contents = {json.dumps({key: value}): key for key, values in wrong.items() for value in values}
    for content, complaint in {**contents, "": "Invalid JSON", '{"image_mean": [': "Invalid JSON", "[]": ""}.items():
        (folder / "preprocessor_config.json").write_text(content)
        with pytest.raises(UserError, match=rf"preprocessor_config\.json: .*{complaint}.*; mend the file"):
            built("image_vit_kmeans", model=str(folder)).pixels(noise(1)[0])


@pytest.mark.parametrize(("Config", "Model"), [(SiglipConfig, SiglipModel), (CLIPConfig, CLIPModel)])
def test_of_two_towers_only_the_one_that_sees_is_opened(tmp_path, Config, Model) -> None:
    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = Config(vision_config={**tiny, "image_size": 64, "patch_size": 16}, text_config={**tiny, "vocab_size": 99})
    torch.manual_seed(0)
    model = Model(config).eval()
    model.save_pretrained(tmp_path / "both")
    encoder = built("image_vit_kmeans", model=str(tmp_path / "both"))
    image = noise(1)[0]
    with torch.inference_mode():
        expected = model.vision_model(torch.from_numpy(encoder.pixels(image))[None]).last_hidden_state[0]
    assert np.allclose(encoder.features_of([image])[0], expected[-16:].numpy(), atol=1e-5)
    assert not any("text" in name for name in encoder.network.state_dict())


def test_vit_units_are_of_a_learned_codebook(vit) -> None:
    encoder = built("image_vit_kmeans", model=str(vit[0]), clusters=20)
    features = encoder.features_of([page_of(seed) for seed in range(6)])
    encoder.codebook = learn_codebook(np.concatenate(features), 20)
    assert encoder.encode([page_of(0)])[0].shape == (16,)


def test_mistakes_with_vision_transformers(vit, tmp_path) -> None:
    folder, _ = vit
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "of the future"}')
    (tmp_path / "odd" / "model.safetensors").write_bytes(b"")
    wrong = {
        "cannot be opened": {"model": str(tmp_path / "odd")},
        "there is no layer 9": {"model": str(folder), "layer": 9},
        "no multiple of the patch": {"model": str(folder), "side_px": 50},
        "run: dmlm fetch image_vit_kmeans model=nobody/nothing": {"model": "nobody/nothing"},
        "knows no architecture": {"model": "random:nothing"},
    }
    for message, settings in wrong.items():
        encoder = built("image_vit_kmeans", **settings)
        with pytest.raises(UserError, match=message):
            encoder.features_of(noise(1))


def test_known_revisions_go_with_their_model() -> None:
    card = built("image_vit_kmeans").card
    assert (card.revision[:8], card.files[0].sha256[:8]) == ("b4569560", "fd4e1169")
    other = built("image_vit_kmeans", revision="main").card
    assert (other.revision, other.files) == ("main", ())
    assert built("image_vit_kmeans", model="facebook/dinov3-vits16-pretrain-lvd1689m").card.revision == "main"
