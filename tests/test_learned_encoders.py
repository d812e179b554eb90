"""Settings of the encoders whose network is learned here: what cannot be learned is said before anything is."""

import numpy as np
import pytest

from dmlm import recipes
from dmlm.errors import UserError
from dmlm.tokens.encoding import EncoderSpec

SMALL = {"width": 16, "heads": 2, "layers": 2, "layer": 2, "targets": (4, 4), "steps": 2, "batch_size": 2, "crop_s": 1}


def audio(**settings):
    return EncoderSpec("audio_encoder_kmeans", {**SMALL, "clusters": 4, **settings}).build()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"layer": 9}, "settings: layer=9 and layers=2: give a layer of 1 to 2"),
        ({"heads": 3}, "settings: width=16 and heads=3: the heads have to divide the width"),
        ({"crop_s": 0.01}, r"crop_s=0\.01 and longest_s=30\.0: each has to hold a unit, .* of 2 frames \(stack\)"),
        ({"stack": 1000}, "of 1000 frames"),
        ({"stack": 100, "longest_s": 1, "crop_s": 3}, "crop_s=3.0 and longest_s=1.0: each"),
        ({"targets": ()}, "setting 'targets': .* at least 1 item"),
        ({"targets": (8, 0)}, "setting 'targets.1': .* greater than or equal to 2"),
        ({"targets": (-3,)}, "setting 'targets.0'"),
        ({"hop_ms": 0.01}, "setting 'hop_ms'"),
        ({"lr": float("inf")}, "setting 'lr': Input should be a finite number"),
        ({"longest_s": float("inf")}, "setting 'longest_s'"),
        ({"seed": -1}, "setting 'seed'"),
        ({"seed": 2**32}, "setting 'seed'"),
    ],
)
def test_mistakes_with_the_settings_of_an_audio_encoder(settings, why) -> None:
    with pytest.raises(UserError, match=why):
        audio(**settings)


@pytest.mark.parametrize("settings", [{"steps": 10}, {"crop_s": 0.04}, {"crop_s": 0.06, "stack": 3, "heads": 16}])
def test_an_audio_encoder_learns_with_settings_at_their_limits(settings) -> None:
    rng = np.random.default_rng(0)
    encoder = audio(**settings)
    encoder.learned = encoder.fit([rng.normal(scale=0.1, size=8000).astype(np.float32) for _ in range(2)])
    assert encoder.features_of([np.zeros(16_000, np.float32)])[0].shape == (50 // encoder.settings.stack, 16)


@pytest.mark.parametrize(("stack", "least"), [(1, 160), (2, 480)])
def test_a_clip_has_to_hold_a_unit(stack, least) -> None:
    encoder = audio(stack=stack)
    for samples in (0, 1, 100, least - 1):
        with pytest.raises(UserError, match=rf"shape \({samples},\); give mono speech \(samples,\) of {least} samples"):
            encoder.features_of([np.zeros(samples, np.float32)])
    assert encoder._mels(np.zeros(least, np.float32)).shape == (1, 40 * stack)
    with pytest.raises(UserError, match=r"shape \(16000, 2\); give mono"):
        encoder.features_of([np.zeros((16_000, 2), np.float32)])


def test_a_vqvae_has_no_more_codes_than_it_has_squares_to_place_them() -> None:
    module = recipes.load("tokenizers", "image_vqvae")
    most = module.FIRST * module.BATCH * module.CROP_CELLS**2
    with pytest.raises(UserError, match=f"setting 'codes': .* less than or equal to {most}"):
        EncoderSpec("image_vqvae", {"codes": most + 1}).build()
    assert EncoderSpec("image_vqvae", {"codes": most}).build().vocab_size == most


@pytest.mark.parametrize("recipe", ["audio_ssl_kmeans", "audio_codec", "audio_seamless"])
def test_a_piece_has_an_end(recipe) -> None:
    with pytest.raises(UserError, match="setting 'longest_s': Input should be a finite number"):
        EncoderSpec(recipe, {"longest_s": float("inf")}).build()
