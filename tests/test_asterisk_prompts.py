"""Asterisk's prompts, on a tiny tree as the packages have it, and on the real ones where they are installed."""

import gzip
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from dmlm import recipes
from dmlm.corpus.recordings import read_any_audio
from dmlm.errors import UserError

RATE_HZ = 16_000
recipe = recipes.load("datasets", "asterisk_prompts")
LISTING = """; Core Asterisk Sounds in English

activated: Activated.
added: Added.
beep: [this is a simple beep tone]
conf-thereare: There are currently...
demo-nogo: Press 1 to go on.
digits/1: one
digits/2: two
digits/3: three
digits/4: four
letters/at: at [@]
silence/1: (1 second of silence)
spy-iax2: IAX (note: does not say "2")
digits/5: five
digits/5: fifty
gone: This was never recorded.
"""


def write_g722(path: Path, seed: int, seconds: float = 1.0) -> np.ndarray:
    """Write headerless G.722, and return the samples that went in, (N,) int16."""
    samples = (np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE_HZ)) * 2**15).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="g722") as container:
        stream = container.add_stream("g722", rate=RATE_HZ, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = RATE_HZ
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return samples


@pytest.fixture
def root(tmp_path: Path) -> Path:
    texts = tmp_path / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    texts.parent.mkdir(parents=True)
    texts.write_bytes(gzip.compress(LISTING.encode()))
    names = {line.split(":")[0] for line in LISTING.splitlines()[2:]} - {"gone"} | {"unlisted"}
    for seed, name in enumerate(sorted(names)):
        write_g722(tmp_path / recipe.SOUNDS / recipe.VOICES["en"] / f"{name}.g722", seed)
    return tmp_path


def test_g722_without_a_header_is_read_and_cut(tmp_path):
    written = write_g722(tmp_path / "a.g722", 0, 3.0) / 2**15
    whole = read_any_audio(tmp_path / "a.g722")
    assert len(whole) == len(written)
    lag = np.argmax(np.correlate(whole[8000:24000], written[8100:23900]))  # of the codec, in samples, from -100
    assert np.corrcoef(whole[8000 + lag : 23000 + lag], written[8100:23100])[0, 1] > 0.95
    assert (read_any_audio(tmp_path / "a.g722", 1.5, 2.25) == whole[24000:36000]).all()


def test_prompts_with_what_is_said_and_what_is_left_out(root, tmp_path):
    corpus = recipe.prepare(recipe.Settings(folder=root), tmp_path / "corpus", 1)
    texts = {u.id: u.text for u in corpus.utterances}
    words = {f"digits/{n}": word for n, word in enumerate(("one", "two", "three", "four"), 1)}
    sentences = {
        "activated": "Activated.",
        "added": "Added.",
        "conf-thereare": "There are currently",
        "letters/at": "at",
    }
    assert texts == words | sentences
    # no speech: beep, silence/1; no text of their own: digits/5, unlisted; gone; a digit; a remark
    assert corpus.card["not_imported"] == {"no_text": 4, "no_audio": 1, "not_spelled_out": 2}
    assert corpus.card["licence"] == "CC BY-SA 3.0"
    one = next(u for u in corpus.utterances if u.id == "digits/1")
    assert (one.category, one.speaker) == ("digits", "en_US_f_Allison")
    assert soundfile.info(corpus.folder / one.audio).samplerate == RATE_HZ


def test_what_is_missing_is_said_with_how_to_get_it(root, tmp_path):
    recipe.require(recipe.Settings(folder=root))
    with pytest.raises(UserError, match=r"holds no folder usr/share/asterisk/sounds/it_IT_m_Carlo.*apt-get install"):
        recipe.require(recipe.Settings(folder=root, language="it"))
    listing = root / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    listing.write_bytes(listing.read_bytes()[:40])
    with pytest.raises(UserError, match="cannot be read"):
        recipe.describe(recipe.Settings(folder=root))
    listing.unlink()
    with pytest.raises(UserError, match="installed without documents"):
        recipe.require(recipe.Settings(folder=root))


@pytest.mark.parametrize("language", list(recipe.PRESETS))
def test_the_real_prompts(language):
    settings = recipe.PRESETS[language]
    try:
        recipe.require(settings)
    except UserError as error:
        pytest.skip(str(error))
    clips = recipe.describe(settings).clips
    assert len(clips) > 400
    assert not any(character in clip.text for clip in clips for character in "[]()<>0123456789")
    assert len(read_any_audio(clips[0].audio[0].path)) > RATE_HZ // 4
