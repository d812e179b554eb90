"""Lip units of AV-HuBERT and of image encoders.

AV-HuBERT's own program cannot be installed beside this one (fairseq 1 does not import on Python 3.11), and its licence
forbids to copy from it; so its arithmetic is written out here once more from its description, over the names of its
checkpoint, with nothing of `transformers`.
"""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_lips_encoders import SMALL, TINY_AVHUBERT, TINY_DINO, avhubert_tensors, write_published

from dmlm.errors import UserError
from dmlm.tokens.canvas import PATCHWISE
from dmlm.tokens.shards import EncoderSpec
from dmlm.weights import published

HEADS, GROUPS = TINY_AVHUBERT["num_attention_heads"], TINY_AVHUBERT["num_conv_pos_embedding_groups"]


@pytest.fixture(scope="module")
def tensors():
    return avhubert_tensors()


@pytest.fixture
def avhubert(tmp_path, monkeypatch):
    """Settings of a small AV-HuBERT in a home of its own."""
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    return SMALL["lips_avhubert"]()


def build(settings, **more):
    return EncoderSpec("lips_avhubert", {**settings, **more}).build()


def clip(frames, height=96, width=96, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width), dtype=np.uint8)


def described(tensors: dict[str, torch.Tensor], frames: np.ndarray, layer: int | None) -> np.ndarray:
    """Features (T, D) of one clip (T, 96, 96), from the names of the published checkpoint alone."""
    w = {name: tensor.double() for name, tensor in tensors.items()}
    x = torch.from_numpy(frames[:, 4:92, 4:92]).double().div(255).sub(0.421).div(0.165)[None, None]  # (1, 1, T, 88, 88)

    def seen(name):
        return w[f"feature_extractor_video.resnet.{name}"]

    def normed(x, name):
        """Batch normalisation with the statistics of training."""
        mean, variance, scale, shift = (
            seen(f"{name}.{part}") for part in ("running_mean", "running_var", "weight", "bias")
        )
        by_channel = (1, -1, *[1] * (x.ndim - 2))
        whitened = (x - mean.view(by_channel)) / (variance.view(by_channel) + 1e-5).sqrt()
        return whitened * scale.view(by_channel) + shift.view(by_channel)

    def leaky(x, name):
        slope = seen(f"{name}.weight").view(1, -1, *[1] * (x.ndim - 2))
        return torch.where(x > 0, x, slope * x)

    x = F.conv3d(x, seen("frontend3D.0.weight"), stride=(1, 2, 2), padding=(2, 3, 3))
    x = F.max_pool3d(leaky(normed(x, "frontend3D.1"), "frontend3D.2"), (1, 3, 3), (1, 2, 2), (0, 1, 1))
    x = x[0].transpose(0, 1)  # (T, 64, 22, 22)
    for stage in range(1, 5):
        for number in range(2):
            block, stride = f"trunk.layer{stage}.{number}", 2 if stage > 1 and number == 0 else 1
            y = F.conv2d(x, seen(f"{block}.conv1.weight"), stride=stride, padding=1)
            y = leaky(normed(y, f"{block}.bn1"), f"{block}.relu1")
            y = normed(F.conv2d(y, seen(f"{block}.conv2.weight"), padding=1), f"{block}.bn2")
            if stride == 2:
                x = normed(F.conv2d(x, seen(f"{block}.downsample.0.weight"), stride=2), f"{block}.downsample.1")
            x = leaky(y + x, f"{block}.relu2")

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def layer_norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    video = linear(x.mean((2, 3)), "feature_extractor_video.proj")  # (T, D)
    x = layer_norm(torch.cat([torch.zeros_like(video), video], dim=1), "layer_norm")  # audio first, then video
    x = linear(x, "post_extract_proj")
    v, g = w["encoder.pos_conv.0.weight_v"], w["encoder.pos_conv.0.weight_g"]
    kernel = g * v / v.norm(dim=(0, 1), keepdim=True)  # weight normalisation over all but the place in the kernel
    moved = F.conv1d(x.T[None], kernel, w["encoder.pos_conv.0.bias"], padding=kernel.shape[2] // 2, groups=GROUPS)
    x = x + F.gelu(moved[0, :, : len(x)]).T
    for number in range(layer or TINY_AVHUBERT["num_hidden_layers"]):
        name = f"encoder.layers.{number}"
        y = layer_norm(x, f"{name}.self_attn_layer_norm")
        q, k, v = (
            linear(y, f"{name}.self_attn.{p}_proj").unflatten(1, (HEADS, -1)).transpose(0, 1) for p in ("q", "k", "v")
        )
        attended = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v  # (heads, T, D / heads)
        x = x + linear(attended.transpose(0, 1).flatten(1), f"{name}.self_attn.out_proj")
        y = linear(F.gelu(linear(layer_norm(x, f"{name}.final_layer_norm"), f"{name}.fc1")), f"{name}.fc2")
        x = x + y
    return (layer_norm(x, "encoder.layer_norm") if layer is None else x).float().numpy()


@pytest.mark.parametrize("layer", [1, 2, 3, None])
def test_features_are_those_of_the_description(avhubert, tensors, layer):
    frames = clip(9)
    (features,) = build(avhubert, layer=layer).features_of([frames])
    assert features.shape == (9, 32)
    np.testing.assert_allclose(features, described(tensors, frames, layer), atol=2e-5)


def test_a_finetuned_checkpoint_gives_the_same(avhubert, tensors, tmp_path):
    before = build(avhubert).features_of([clip(9)])[0]
    tuned = {f"encoder.w2v_model.{name}": tensor for name, tensor in tensors.items()}
    tuned |= {"decoder.embed_tokens.weight": torch.randn(10, 32), "encoder.proj.weight": torch.randn(4, 32)}
    write_published(tmp_path / "tuned.pt", tuned)
    build(avhubert).convert([tmp_path / "tuned.pt"])
    assert np.array_equal(build(avhubert).features_of([clip(9)])[0], before)


def test_half_precision_weights_are_read(avhubert, tensors, tmp_path):
    write_published(tmp_path / "half.pt", {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()})
    build(avhubert).convert([tmp_path / "half.pt"])
    features = build(avhubert).features_of([clip(9)])[0]
    np.testing.assert_allclose(features, described(tensors, clip(9), 2), atol=0.05)


def test_fetch_takes_a_folder_and_keeps_tensors_only(avhubert, tensors, tmp_path, monkeypatch):
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "other"))
    write_published(tmp_path / "base_vox_iter5.pt", tensors)
    encoder = build(avhubert)
    with pytest.raises(UserError, match=r"accept the licence .* --from FOLDER"):
        encoder.require()
    with pytest.raises(UserError, match=r"cannot be downloaded unasked; accept the licence"):
        published.fetch(encoder.card, "lips_avhubert")
    (kept,) = encoder.convert(published.fetch(encoder.card, "lips_avhubert", tmp_path))
    assert kept == published.folder("lips_avhubert") / "converted-base.safetensors"
    encoder.require()
    (published.folder("lips_avhubert") / "base_vox_iter5.pt").unlink()
    assert len(encoder.features_of([clip(5)])[0]) == 5


class Payload:
    def __reduce__(self):
        return os.system, ("touch PAYLOAD_RAN",)


def test_a_checkpoint_that_wants_to_run_something_is_refused(avhubert, tensors, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_published(tmp_path / "bad.pt", tensors, task_state=Payload())
    with pytest.raises(UserError, match=r"wants (posix|nt|os)\.system to be run"):
        build(avhubert).convert([tmp_path / "bad.pt"])
    assert not (tmp_path / "PAYLOAD_RAN").exists()


@pytest.mark.parametrize("function", [eval, exec])
def test_builtins_that_it_names_are_not_run(avhubert, tensors, tmp_path, monkeypatch, function):
    """Settings of omegaconf name types such as `dict`, so builtins are not refused; but neither are they called."""
    monkeypatch.chdir(tmp_path)

    class Sneaky:
        def __reduce__(self):
            return function, ("open('PAYLOAD_RAN', 'w')",)

    write_published(tmp_path / "sneaky.pt", tensors, task_state=Sneaky())
    build(avhubert).convert([tmp_path / "sneaky.pt"])
    assert not (tmp_path / "PAYLOAD_RAN").exists()


def test_damaged_and_foreign_files_are_refused_in_a_sentence(avhubert, tensors, tmp_path):
    write_published(tmp_path / "whole.pt", tensors)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:100_000])
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("cut.pt", "empty.pt"):
        with pytest.raises(UserError, match=rf"{name} cannot be read as weights"):
            build(avhubert).convert([tmp_path / name])
    torch.save({"weights": tensors}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="no entry 'model'"):
        build(avhubert).convert([tmp_path / "other.pt"])
    write_published(tmp_path / "deaf.pt", {k: v for k, v in tensors.items() if "video" not in k})
    with pytest.raises(UserError, match="sees no video"):
        build(avhubert).convert([tmp_path / "deaf.pt"])


def test_weights_of_another_size_are_refused_in_a_sentence(avhubert, tensors, tmp_path):
    write_published(tmp_path / "small.pt", tensors)
    wider = {**TINY_AVHUBERT, "hidden_size": 64}
    with pytest.raises(UserError, match=r"small.pt: proj.weight has shape .* the weights of another size"):
        build(avhubert, architecture=wider).convert([tmp_path / "small.pt"])
    deeper = {**TINY_AVHUBERT, "num_hidden_layers": 4}
    with pytest.raises(UserError, match=r"encoder.layers.3.* is missing"):
        build(avhubert, architecture=deeper).convert([tmp_path / "small.pt"])
    with pytest.raises(UserError, match="layer=4, but base has 3 layers"):
        build(avhubert, layer=4).require()


def test_the_fingerprint_follows_the_converted_file(avhubert, tensors, tmp_path):
    before = build(avhubert).fingerprint
    (published.folder("lips_avhubert") / "base_vox_iter5.pt").unlink()
    assert build(avhubert).fingerprint == before
    write_published(tmp_path / "other.pt", {name: tensor + 1 for name, tensor in tensors.items()})
    build(avhubert).convert([tmp_path / "other.pt"])
    assert build(avhubert).fingerprint != before


def test_centroids_of_a_file_are_used_as_they_are(avhubert, tmp_path):
    frames = clip(20)
    (features,) = build(avhubert).features_of([frames])
    np.save(tmp_path / "km.npy", features[::3])
    encoder = build(avhubert, centroids=str(tmp_path / "km.npy"))
    assert (encoder.vocab_size, encoder.clusters) == (7, None)
    distances = np.square(features[:, None] - features[None, ::3]).sum(-1)
    assert np.array_equal(encoder.encode([frames])[0], distances.argmin(1))
    before = encoder.fingerprint
    np.save(tmp_path / "km.npy", features[1::3])
    os.utime(tmp_path / "km.npy", ns=(1, 1))
    assert build(avhubert, centroids=str(tmp_path / "km.npy")).fingerprint != before
    np.save(tmp_path / "km.npy", np.ones((8, 5), np.float32))
    with pytest.raises(UserError, match="has 5 columns, and a frame 32 features"):
        build(avhubert, centroids=str(tmp_path / "km.npy")).require()
    with pytest.raises(UserError, match="cannot be read as an array of centroids"):
        build(avhubert, centroids=str(tmp_path / "none.npy")).require()


def test_a_long_clip_keeps_its_frames_and_far_from_the_cuts_little_changes(avhubert):
    frames = clip(60)
    (whole,) = build(avhubert).features_of([frames])
    cut, short = build(avhubert, longest_s=1.0).features_of([frames, frames[:26]])
    assert (len(cut), len(short)) == (60, 26)
    assert np.median(np.abs(cut - whole).max(axis=1)) < 0.2 * whole.std()


def test_frames_of_another_size_are_scaled(avhubert):
    large = np.repeat(np.repeat(clip(4), 2, axis=1), 2, axis=2)
    encoder = build(avhubert)
    np.testing.assert_allclose(encoder.features_of([large])[0], encoder.features_of([clip(4)])[0], atol=1e-5)
    assert encoder.features_of([clip(4, 50, 70)])[0].shape == (4, 32)


TINY_VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def images(**more):
    return EncoderSpec("lips_ssl_kmeans", {**SMALL["lips_ssl_kmeans"](), **more}).build()


def test_a_frame_is_what_the_model_of_transformers_makes_of_it():
    """The feature written out: grey as three channels, scaled as ImageNet, the CLS token of the last layer."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(**TINY_DINO)).eval()
    frames = clip(6, 112, 112)
    colour = torch.from_numpy(frames).float()[:, None].repeat(1, 3, 1, 1) / 255
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        tokens = model((colour - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)).last_hidden_state
    bare = {"centred": False, "delta": False, "stack": 1}
    np.testing.assert_allclose(images(**bare).features(frames), tokens[:, 0], atol=1e-5)
    np.testing.assert_allclose(images(pool="mean", **bare).features(frames), tokens[:, 1:].mean(1), atol=1e-5)
    still = images(delta=False, stack=1).features(frames)
    np.testing.assert_allclose(still, tokens[:, 0] - tokens[:, 0].mean(0), atol=1e-5)
    both = images(stack=2).features(frames)
    assert both.shape == (3, 2 * 64)
    np.testing.assert_allclose(both[0, 32:64], still[1] - still[0], atol=1e-5)  # a delta at the edge
    np.testing.assert_allclose(both[1, 32:64], (still[3] - still[1]) / 2, atol=1e-5)


def test_a_clip_of_more_frames_than_fit_at_once_is_the_same_frame_by_frame():
    frames = clip(150, 112, 112)
    bare = images(centred=False, delta=False, stack=1)
    together = bare.features(frames)
    assert together.shape == (150, 32)
    np.testing.assert_allclose(together[70:80], bare.features(frames[70:80]), atol=1e-5)
    assert images(stack=2).features(frames[:7]).shape[0] == 3
    assert images(stack=2).features(frames[:1]).shape[0] == 1


@pytest.mark.parametrize("kind", sorted({*PATCHWISE} - {"dinov2"}))
@pytest.mark.parametrize("layer", [None, 1])
def test_other_transformers_over_patches_are_taken(kind, layer):
    architecture = {**TINY_VIT, "patch_size": 16}
    encoder = images(model=f"random:{kind}", architecture=architecture, pool="mean", layer=layer)
    assert encoder.features(clip(4)).shape == (2, 128)


@pytest.mark.parametrize("kind", ["vit_mae", "yolos"])
def test_a_model_that_hides_patches_or_adds_tokens_is_refused(kind):
    architecture = {**TINY_VIT, "image_size": [64, 64] if kind == "yolos" else 64}
    with pytest.raises(UserError, match=rf"random:{kind} is no transformer over patches .* a {kind}; choose"):
        images(model=f"random:{kind}", architecture=architecture, pool="mean").features(clip(4))


def test_what_is_no_fitting_model_is_a_sentence():
    with pytest.raises(UserError, match="random:resnet is no transformer over patches"):
        images(model="random:resnet", architecture={}).features(clip(4))
    with pytest.raises(UserError, match="random:siglip2_vision_model is no transformer over patches"):
        images(model="random:siglip2_vision_model", architecture=TINY_VIT).features(clip(4))
    with pytest.raises(UserError, match="random:ijepa has no CLS token; choose pool=mean"):
        images(model="random:ijepa", architecture=TINY_VIT).features(clip(4))
    with pytest.raises(UserError, match="layer=3, but random:dinov2 has 2 layers"):
        images(layer=3).features(clip(4))
    with pytest.raises(UserError, match="side_px=100 is no multiple of its patches of 14 pixels"):
        images(side_px=100).features(clip(4))


def test_the_default_model_is_pinned_and_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    encoder = EncoderSpec("lips_ssl_kmeans", {}).build()
    assert encoder.card.revision == "ed25f3a31f01632728cabb09d1542f84ab7b0056"
    assert encoder.card.bytes == 88_249_960
    assert not EncoderSpec("lips_ssl_kmeans", {"revision": "main"}).build().card.files
    with pytest.raises(
        UserError, match=r"\(88 MB\) are not here; run: dmlm fetch lips_ssl_kmeans model=facebook/dinov2"
    ):
        encoder.require()
