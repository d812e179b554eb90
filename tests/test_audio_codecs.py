"""Audio codecs against the models of `transformers`, at a reduced size with random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import resample_poly
from small_audio_encoders import CODECS, RATE, build, codec, noise
from transformers import AutoConfig, DacFeatureExtractor, EncodecFeatureExtractor

from dmlm.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize("family", CODECS)
@pytest.mark.parametrize("samples", [16_000, 24_001])
def test_codec_ids_are_the_codes_of_transformers_frame_by_frame(family, samples, home) -> None:
    model, clip = codec(home / family, family), noise(samples)
    rate = {"mimi": 24_000, "encodec": 24_000}.get(family, RATE)
    hop = 1920 if family == "mimi" else 320
    heard = resample_poly(clip, rate, RATE) if rate != RATE else clip
    kind = DacFeatureExtractor if family in ("dac", "xcodec") else EncodecFeatureExtractor
    options = {"hop_length": hop} if kind is DacFeatureExtractor else {}
    values = kind(feature_size=1, sampling_rate=rate, **options)(heard, sampling_rate=rate, return_tensors="pt")
    with torch.inference_mode():
        every = {"bandwidth": model.config.target_bandwidths[-1]} if family in ("encodec", "xcodec") else {}
        codes = model.encode(values["input_values"], **every).audio_codes
    codes = codes.reshape(-1, codes.shape[-1])  # (K, T)
    assert codes.shape == (4, -(-len(heard) // hop))
    for used in (1, 3, 4):
        encoder = build("audio_codec", model=home / family, codebooks=used)
        wanted = [k * 64 + int(codes[k, t]) for t in range(codes.shape[1]) for k in range(used)]
        (ids,) = encoder.encode([clip])
        assert ids.tolist() == wanted
        assert encoder.vocab_size == used * 64
        assert encoder.rate_hz == used * rate / hop
        assert ids.dtype == np.int32
    assert len(set(codes[0].tolist())) > 1


@pytest.mark.parametrize("family", CODECS)
def test_a_long_clip_is_coded_in_whole_frames(family, home) -> None:
    codec(home / family, family)
    whole, cut = (build("audio_codec", model=home / family, longest_s=s) for s in (60, 2))
    for samples in (5 * RATE, 5 * RATE + 1, 200):
        clip = noise(samples)
        heard = -(-samples * whole.codec_hz // RATE)
        assert len(whole.encode([clip])[0]) == len(cut.encode([clip])[0]) == -(-heard // whole.hop)
    first = int(2 * whole.codec_hz) // whole.hop  # frames of a piece
    given = cut._resampled(noise(5 * RATE))[: first * whole.hop]
    with torch.inference_mode():
        alone = cut._codes(torch.from_numpy(given)[None])[0]
    assert cut.encode([noise(5 * RATE)])[0][:first].tolist() == alone.tolist()


@pytest.mark.parametrize("family", ["mimi", "dac", "xcodec"])
def test_an_untrained_codec_is_no_constant(family, home) -> None:
    encoder = build("audio_codec", model=f"random:{family}", architecture=CODECS[family])
    (ids,) = encoder.encode([noise(3 * RATE)])
    assert len(set(ids.tolist())) > 2


def test_mistakes_with_codecs(home) -> None:
    mimi = {"model": "random:mimi", "architecture": CODECS["mimi"]}
    with pytest.raises(UserError, match="codebooks=5, and random:mimi has 4; give 1 to 4"):
        build("audio_codec", **mimi, codebooks=5).require()
    with pytest.raises(UserError, match="codebooks=1, and random:mimi has 4; give 2 to 4"):
        build(
            "audio_codec", model="random:mimi", architecture={**CODECS["mimi"], "num_semantic_quantizers": 2}
        ).require()
    with pytest.raises(UserError, match="random:hubert is a hubert; give one of mimi, encodec"):
        build("audio_codec", model="random:hubert").require()
    with pytest.raises(UserError, match="codes stereo or overlapping chunks"):
        build("audio_codec", model="random:encodec", architecture={"audio_channels": 2}).require()
    with pytest.raises(UserError, match=r"shape \(0,\); give mono speech \(samples,\) of 1 sample or more"):
        build("audio_codec", **mimi).encode([noise(0)])
    with pytest.raises(UserError, match=r"shape \(16000, 2\); give mono"):
        build("audio_codec", **mimi).encode([np.zeros((16_000, 2), np.float32)])
    with pytest.raises(
        UserError, match=r"audio_codec: its weights \(385 MB\) are not here; run: dmlm fetch audio_codec"
    ):
        build("audio_codec").require()


def test_facts_of_the_published_codecs(home) -> None:
    """Frame rates from their papers and pages: Mimi 12.5 Hz, EnCodec 75 Hz, DAC 16 kHz 50 Hz and 44.1 kHz 86.13 Hz."""
    for family, changes, rate in [
        ("mimi", {}, 12.5),
        ("encodec", {}, 75),
        ("dac", {"downsampling_ratios": [2, 4, 5, 8]}, 50),
        ("dac", {"downsampling_ratios": [2, 4, 8, 8], "sampling_rate": 44_100}, 86.1328125),
        ("xcodec", {}, 50),
    ]:
        encoder = build("audio_codec", model=f"random:{family}", architecture=changes)
        assert encoder.rate_hz == rate
        assert encoder.vocab_size == AutoConfig.for_model(family).codebook_size
