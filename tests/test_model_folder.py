"""The folder of a trained model is complete: a copy elsewhere transcribes new clips, and plain `transformers` runs it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import CPU, VOCABULARY, prompts, tiny
from transformers import AutoTokenizer

from dmlm.corpus.manifest import read_corpus
from dmlm.corpus.media import read_audio, read_video
from dmlm.errors import UserError
from dmlm.recognition.decode import decode
from dmlm.recognition.model_folder import generation_config, read_description
from dmlm.recognition.recogniser import Recogniser
from dmlm.recognition.settings import DecodeSettings
from dmlm.score.normalisers import BASIC
from dmlm.sequence.template import pack
from dmlm.tokens.vocabulary import TextVocabulary, Vocabulary


@pytest.fixture(scope="module")
def corpus(finished, home):
    (folder,) = (home / "corpora").glob("*-smoke-*")
    return read_corpus(folder)


@pytest.fixture
def moved(finished, home, tmp_path, monkeypatch):
    """A function that copies the model with the given inputs to a place without grid, corpus and token cache."""
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "nothing here"))

    def copy(inputs: str) -> Path:
        (trial,) = (home / "runs" / "trials").glob(f"opt-nano_{inputs}_seed0-*")
        shutil.copytree(trial / "model", tmp_path / "moved model")
        (clean,) = trial.glob("evals/clean-*/utterances.jsonl")
        shutil.copy(clean, tmp_path / "transcripts.jsonl")
        return tmp_path / "moved model"

    return copy


def transcripts(folder: Path) -> dict[str, str]:
    """Return the hypotheses that the evaluation of clean speech stored, by utterance."""
    lines = map(json.loads, (folder.parent / "transcripts.jsonl").read_text().splitlines())
    return {line["id"]: BASIC(line["hypothesis"]) for line in lines}


@pytest.mark.parametrize("inputs", ["A+L", "A+O"])
def test_a_moved_model_writes_what_its_evaluation_stored(moved, corpus, inputs):
    folder = moved(inputs)
    recogniser, stored = Recogniser.load(folder), transcripts(folder)
    fields = {"A+L": ("audio", "lips"), "A+O": ("audio", "image")}[inputs]
    for utterance in corpus.split("test")[:4]:
        media = {field: corpus.media(utterance, field) for field in fields}
        assert recogniser.transcribe(**media) == stored[utterance.id]
    first = {field: corpus.media(corpus.split("test")[0], field) for field in fields}
    reading = recogniser.reading
    prompt = pack(reading.template, recogniser.tokens(**first), reading.vocabulary, reading.rates_hz, with_target=False)
    assert prompt.ids.tolist() == json.loads((folder / "example.json").read_text())["input_ids"], (
        "as in the token cache"
    )
    if inputs == "A+L":
        arrays = {"audio": read_audio(media["audio"]), "lips": read_video(media["lips"])}
        assert recogniser.transcribe(**arrays) == stored[utterance.id]


def test_the_code_of_the_model_card_decodes_one_utterance_with_transformers_alone(moved):
    folder = moved("A+L")
    card = (folder / "README.md").read_text()
    _, code = re.findall(r"```python\n(.*?)```", card, flags=re.S)
    assert "dmlm" not in code
    example = json.loads((folder / "example.json").read_text())
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    reference, hypothesis = (line.partition(":")[2].strip() for line in done.stdout.splitlines())
    assert reference == example["reference"]
    assert " ".join(hypothesis.lower().split()) == transcripts(folder)[example["id"]]


def test_the_tokenizer_holds_the_whole_id_space(moved):
    folder = moved("A+L")
    tokenizer, vocabulary = AutoTokenizer.from_pretrained(folder), read_description(folder).vocabulary
    assert len(tokenizer) == vocabulary.size
    assert tokenizer.convert_tokens_to_ids("<A_0>") == vocabulary.offset("A")
    assert tokenizer.convert_tokens_to_ids("<L_3>") == vocabulary.offset("L") + 3
    assert tokenizer.eos_token_id == vocabulary.special("<eos>")
    assert tokenizer("<L_3><T>")["input_ids"] == [vocabulary.offset("L") + 3, vocabulary.special("<T>")]
    text = "16 minus x equals 3"
    ids = tokenizer(text)["input_ids"]
    assert max(ids) < vocabulary.text_size
    assert tokenizer.decode([*ids, vocabulary.special("<eos>")], skip_special_tokens=True).strip() == text


def test_the_card_has_licence_and_language_of_the_corpus(moved):
    card = (moved("A+L") / "README.md").read_text()
    head = card.split("---")[1]
    assert "language: en\n" in head
    assert "license: cc0-1.0\n" in head
    assert 'transcribe(audio="...", lips="...")' in card


def test_what_a_recogniser_lacks_is_one_sentence(moved, tmp_path):
    folder = moved("A+L")
    recogniser = Recogniser.load(folder)
    with pytest.raises(UserError, match=r"reads audio and lips; give lips="):
        recogniser.transcribe(audio="talk.wav")
    with pytest.raises(UserError, match=r"reads audio and lips; leave image out"):
        recogniser.transcribe(audio="talk.wav", lips="mouth.mp4", image="page.png")
    with pytest.raises(UserError, match=r"has no dmlm\.json; give the folder `model`"):
        Recogniser.load(tmp_path)
    description = json.loads((folder / "dmlm.json").read_text())
    description["encoders"]["A"]["fingerprint"] = "0" * 64
    (folder / "dmlm.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="audio_mfcc of modality A is not the one"):
        Recogniser.load(folder)
    (codebook,) = (folder / "encoders").glob("A-codebook.safetensors")
    codebook.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"A-codebook\.safetensors is missing; copy"):
        Recogniser.load(folder)
    (folder / "dmlm.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        Recogniser.load(folder)


def test_a_clip_that_is_not_what_the_model_reads_is_one_sentence(moved, corpus):
    recogniser = Recogniser.load(moved("A+L"))
    utterance = corpus.split("test")[0]
    audio, lips = read_audio(corpus.media(utterance, "audio")), read_video(corpus.media(utterance, "lips"))
    for inputs, complaint in (
        ({"audio": "nowhere.wav", "lips": lips}, r"There is no file nowhere\.wav"),
        ({"audio": audio, "lips": "nowhere.mp4"}, r"There is no file nowhere\.mp4"),
        ({"audio": list(audio), "lips": lips}, r"audio: give a file, or floats \(samples,\)"),
        ({"audio": np.stack([audio, audio]), "lips": lips}, r"audio: give a file, or floats \(samples,\)"),
        ({"audio": audio * np.nan, "lips": lips}, "audio holds NaN"),
        ({"audio": audio[:200], "lips": lips}, "audio has 200 samples; at least 0.05 s"),
        ({"audio": audio, "lips": lips / 255}, r"lips: give a file, or uint8 \(T, H, W\)"),
        ({"audio": audio, "lips": lips[:0]}, r"lips: give a file, or uint8 \(T, H, W\)"),
        ({"audio": np.tile(audio, 20), "lips": lips}, r"lasts 62\.4 s and the lips 3\.1 s, so they cannot be cut"),
        ({"audio": audio, "lips": np.tile(lips, (20, 1, 1))}, r"The clip makes \d+ tokens; OPT A\+L reads at most 512"),
    ):
        with pytest.raises(UserError, match=complaint):
            recogniser.transcribe(**inputs)


def test_a_folder_whose_network_is_cut_is_one_sentence(moved):
    folder = moved("A+L")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"The network of .* cannot be opened"):
        Recogniser.load(folder)


@pytest.mark.parametrize("family", ["opt-nano", "mamba-nano"])
def test_beams_of_transformers_are_ours(family):
    """As long as no hypothesis ends early: there `generate` searches on with another beam, ours does not."""
    model, inputs = tiny(family, seed=2), prompts([9, 12, 17])
    units = slice(VOCABULARY.text_size, VOCABULARY.special("<pad>"))
    model.get_output_embeddings().weight.data[units] *= 30  # likely, and not allowed: text alone shares the probability
    settings = DecodeSettings(beams=3, max_new_tokens=12)
    ours = decode(model, inputs, VOCABULARY, settings, CPU)
    model.generation_config = generation_config(VOCABULARY, settings)
    for prompt, expected in zip(inputs, ours, strict=True):
        ids = torch.from_numpy(prompt.ids).unsqueeze(0)
        output = model.generate(ids, attention_mask=torch.ones_like(ids))[0, ids.shape[1] :].tolist()
        ends = [n for n, token in enumerate(output) if token == VOCABULARY.special("<eos>")]
        assert output[: ends[0] if ends else None] == expected.ids.tolist()


def test_a_model_has_a_normaliser_and_an_older_one_the_basic_one(moved, tmp_path):
    folder = moved("A+L")
    stored = json.loads((folder / "dmlm.json").read_text("utf-8"))
    assert stored.pop("normaliser") == "basic"
    for added, expected in (({}, "basic"), ({"normaliser": "none"}, "none")):
        (folder / "dmlm.json").write_text(json.dumps(stored | added), "utf-8")
        assert read_description(folder).normaliser == expected


def test_the_id_space_of_a_model_that_was_trained_from_a_trained_one(tmp_path):
    """Its text tokenizer has tokens that are named like units, even like renamed units."""
    vocabulary = Vocabulary(300, {"A": 4})
    text = TextVocabulary.learn(["one two three"] * 9, 300)
    for generation in range(3):
        vocabulary = Vocabulary(text.size, {"A": 4})
        text.save_with_units(tmp_path / str(generation), vocabulary)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / str(generation))
        assert len(tokenizer) == vocabulary.size
        assert tokenizer.eos_token_id == vocabulary.special("<eos>")
        text = TextVocabulary.of_model(tmp_path / str(generation))
