"""Image tokenizers with codes of their own: published VQ encoders, and a VQ-VAE that is learned on the pages."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors
import small_image_encoders as small
import torch
from safetensors.torch import save_file
from small_image_encoders import built, noise, page_of
from torch import nn
from transformers import (
    AutoConfig,
    ChameleonConfig,
    ChameleonVQVAE,
    JanusConfig,
)

from dmlm import recipes
from dmlm.errors import UserError
from dmlm.tokens.encoder import Tokenizer
from dmlm.weights import published


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))


# VQ tokenizers


def test_vq_equals_llamagen_written_out() -> None:
    """LlamaGen's encoder and quantizer derived again from its published code, run on a checkpoint in its layout."""
    settings = small.image_vq()
    tensors = small.write_llamagen(published.folder("image_vq") / "vq_ds16_t2i.pt")
    images = noise(4)
    pixels = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
    found = np.stack(built("image_vq", **settings).encode(images))
    assert np.array_equal(found, small.llamagen_units(tensors, pixels).numpy())
    assert len(np.unique(found)) > 5


def test_codes_of_any_length_are_compared_by_direction() -> None:
    """transformers' own quantizer forgets to scale the codes, so a long code would never be chosen."""
    settings = small.image_vq()
    before = built("image_vq", **settings).encode(noise(2))
    path = published.folder("image_vq") / "vq_ds16_t2i.pt"
    held = torch.load(path, weights_only=True)
    held["model"]["quantize.embedding.weight"][::2] *= 7
    torch.save(held, path)
    assert np.array_equal(before, built("image_vq", **settings).encode(noise(2)))


def write_shards(folder: Path, config: Any, vq: dict[str, torch.Tensor]) -> None:
    """A multi-modal checkpoint in two shards, as transformers saves it: the VQ part is a small one of each."""
    config.save_pretrained(folder)
    names = sorted(vq)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        tensors = {f"model.vqmodel.{name}": vq[name].half() for name in part}
        tensors[f"model.language_model.layers.{number}.weight"] = torch.zeros(100, 1000)
        save_file(tensors, folder / f"model-0000{number}-of-00002.safetensors")


def test_of_a_janus_only_the_vq_part_is_read(tmp_path, monkeypatch) -> None:
    model = small.janus().half().float()  # as published, in half precision
    write_shards(tmp_path / "janus", JanusConfig(vq_config={**small.VQ, "num_patches": 4}), model.state_dict())
    asked = []
    given = safetensors.safe_open

    @contextmanager
    def watched(path: Path, framework: str) -> Iterator[Any]:
        with given(path, framework) as shard:
            take = lambda name: (asked.append(name), shard.get_tensor(name))[1]  # noqa: E731
            yield SimpleNamespace(keys=shard.keys, get_tensor=take)

    monkeypatch.setattr(safetensors, "safe_open", watched)
    encoder = built("image_vq", model=str(tmp_path / "janus"), side_px=64)
    units = np.stack(encoder.encode(noise(2)))
    assert asked
    assert all(name.startswith("model.vqmodel.") for name in asked)
    model.quantize.embedding.weight.copy_(nn.functional.normalize(model.quantize.embedding.weight, dim=-1))
    pixels = torch.from_numpy(np.stack([encoder.pixels(image) for image in noise(2)]))
    assert np.array_equal(units.ravel(), model.encode(pixels).image_tokens.numpy())
    assert encoder.vocab_size == 128


def test_a_chameleon(tmp_path) -> None:
    """Its codes are compared as they are, and its processor scales pixels by itself."""
    config = ChameleonConfig(vq_config={**small.VQ, "embed_dim": 32, "resolution": 64}, vocabulary_map={"<image>": 1})
    torch.manual_seed(0)
    model = ChameleonVQVAE(config.vq_config).half().float().requires_grad_(False)
    write_shards(tmp_path / "chameleon", config, model.state_dict())
    said = {"rescale_factor": 0.0078, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}
    (tmp_path / "chameleon" / "preprocessor_config.json").write_text(json.dumps(said))
    encoder = built("image_vq", model=str(tmp_path / "chameleon"), side_px=64)
    image = noise(1)[0]
    pixels = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32)) * 0.0078 - 1
    assert np.array_equal(encoder.encode([image])[0], model.encode(pixels).image_tokens.numpy())


def test_mistakes_with_vq(tmp_path) -> None:
    AutoConfig.for_model("vit", **small.VIT).save_pretrained(tmp_path / "vit")
    save_file({"weight": torch.zeros(3)}, tmp_path / "vit" / "model.safetensors")
    with pytest.raises(UserError, match=r"its weights \(288 MB\) are not here; run: dmlm fetch image_vq"):
        built("image_vq").encode(noise(1))
    with pytest.raises(UserError, match="is a vit; choose one of janus, chameleon"):
        built("image_vq", model=str(tmp_path / "vit")).encode(noise(1))
    settings = small.image_vq()
    with pytest.raises(UserError, match="weights of another size"):
        built("image_vq", **{**settings, "architecture": {**small.VQ, "num_embeddings": 64}}).encode(noise(1))
    path = published.folder("image_vq") / "vq_ds16_t2i.pt"
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(UserError, match="damaged or of another kind"):
        built("image_vq", **settings).encode(noise(1))
    JanusConfig(vq_config=small.VQ).save_pretrained(tmp_path / "other")
    save_file({"model.other.weight": torch.zeros(3)}, tmp_path / "other" / "model.safetensors")
    with pytest.raises(UserError, match="has no safetensors with names in model"):
        built("image_vq", model=str(tmp_path / "other")).encode(noise(1))
    shard = tmp_path / "other" / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:20])
    with pytest.raises(UserError, match="is damaged"):
        built("image_vq", model=str(tmp_path / "other")).encode(noise(1))


# a VQ-VAE learned on the training pages


class Lazy(Sequence[np.ndarray]):
    """Pages that are drawn when they are asked for."""

    def __init__(self, number: int) -> None:
        self.number, self.asked = number, 0

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, number: Any) -> Any:
        self.asked += 1
        return page_of(int(number))


@pytest.fixture(scope="module")
def learned() -> Tokenizer:
    encoder = built("image_vqvae", codes=64, width=32, steps=150)
    encoder.learned = encoder.fit(Lazy(24))
    return encoder


def test_a_vqvae_learns_to_draw_pages(learned) -> None:
    """It explains pages it has not seen better than blank paper and than its own first steps, with many codes."""
    first = built("image_vqvae", codes=64, width=32, steps=10)
    first.learned = first.fit(Lazy(24))
    pages = [page_of(seed) for seed in range(100, 106)]

    def unexplained(encoder: Any) -> float:
        drawn = [encoder.draw(units, 200, 450) for units in encoder.encode(pages)]
        ink = sum(float((255.0 - page[..., 0]).__pow__(2).sum()) for page in pages)
        return (
            sum(float(((d - page[..., 0].astype(float)) ** 2).sum()) for d, page in zip(drawn, pages, strict=True))
            / ink
        )

    assert unexplained(learned) < 0.85
    assert unexplained(learned) < 0.9 * unexplained(first)
    assert len(np.unique(learned.encode(pages))) > 16


def test_a_vqvae_reads_each_page_once() -> None:
    pages = Lazy(5)
    built("image_vqvae", codes=16, width=8, steps=10).fit(pages)
    assert pages.asked == 5


def test_a_vqvae_is_decided_by_its_pages() -> None:
    """The same network from the same pages, whatever the caller's threads and random state; another from others."""
    fits = []
    for threads, number in ((2, 4), (1, 4), (1, 5)):
        torch.set_num_threads(threads)
        torch.rand(threads)
        state = torch.get_rng_state()
        fits.append(built("image_vqvae", codes=16, width=8, steps=12).fit(Lazy(number)))
        assert torch.get_num_threads() == threads
        assert torch.equal(state, torch.get_rng_state())
    assert all(np.array_equal(fits[0][name], fits[1][name]) for name in fits[0])
    assert any(not np.array_equal(fits[0][name], fits[2][name]) for name in fits[0])


def test_units_of_a_vqvae_do_not_depend_on_company(learned) -> None:
    pages = [page_of(0), page_of(1, 400, 120), page_of(2), page_of(3), page_of(4, 400, 120), page_of(5)]
    alone = [learned.encode([page])[0] for page in pages]
    assert [len(units) for units in alone] == [13 * 29, 8 * 25, 13 * 29, 13 * 29, 8 * 25, 13 * 29]
    assert all(np.array_equal(one, other) for one, other in zip(alone, learned.encode(pages), strict=True))
    blank = learned.encode([np.full((200, 450, 3), 200, np.uint8)])[0]
    assert len(np.unique(blank.reshape(13, 29)[2:-2, 2:-2])) == 1, "blank paper of any brightness is one unit"


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_strides_and_odd_pages(stride) -> None:
    """Also blank pages, and ones that are smaller than what is learned from."""
    encoder = built("image_vqvae", codes=16, width=8, steps=10, stride=stride)
    encoder.learned = encoder.fit([np.full((40, 30, 3), 255, np.uint8)] * 2)
    assert len(encoder.encode([np.full((40, 30, 3), 255, np.uint8)])[0]) == -(-40 // stride) * -(-30 // stride)


def test_codes_that_nothing_chooses_start_anew() -> None:
    move = recipes.load("tokenizers", "image_vqvae").move
    codes, counts = torch.tensor([[0.0], [99.0]]), torch.tensor([1.0, 0.0])
    sums = codes * counts[:, None]
    move(codes, counts, sums, vectors := torch.tensor([[2.0], [2.0]]), torch.tensor([0, 0]))
    assert codes[0].item() == pytest.approx((0.99 * 0 + 0.01 * 4) / (0.99 * 1 + 0.01 * 2))
    assert codes[1] in vectors
    assert counts[1] == 1


def test_a_vqvae_encodes_nothing_before_it_has_learned() -> None:
    with pytest.raises(TypeError, match="calls fit before encoding"):
        built("image_vqvae").encode([page_of(0)])
