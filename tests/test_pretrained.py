"""Pretrained weights in, extended, trained, and out again, readable by plain transformers."""

import json

import numpy as np
import pytest
import torch
from grids import ONE, run_here
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM, OPTConfig, OPTForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer

import tokenizers as hf_tokenizers
from dmlm.errors import UserError
from dmlm.model import pretrained
from dmlm.model.backbones import build
from dmlm.model.family import BackboneSpec
from dmlm.recognition.model_folder import read_description
from dmlm.tokens.vocabulary import TextVocabulary, Vocabulary
from tokenizers import decoders, models, pre_tokenizers, trainers

TEXT = 300
VOCABULARY = Vocabulary(TEXT, {"A": 40})


def stock(family):
    torch.manual_seed(0)
    if family == "opt":
        size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 128}
        return OPTForCausalLM(OPTConfig(vocab_size=304, **size, word_embed_proj_dim=64, max_position_embeddings=512))
    return MambaForCausalLM(MambaConfig(vocab_size=304, hidden_size=64, num_hidden_layers=2, state_size=8))


@pytest.fixture(scope="module", params=["opt", "mamba"])
def folder(request, tmp_path_factory):
    """A published model, as the Hub has them: weights, configuration, tokenizer."""
    path = tmp_path_factory.mktemp("published") / request.param
    stock(request.param).save_pretrained(path)
    bpe = hf_tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        ["x plus y equals two"] * 9,
        trainers.BpeTrainer(vocab_size=TEXT, initial_alphabet=alphabet, show_progress=False),
    )
    FastTokenizer(tokenizer_object=bpe).save_pretrained(path)
    return path


def extended(folder, context=128, seed=0):
    ids = [VOCABULARY.special(token) for token in ("<pad>", "<bos>", "<eos>")]
    return build(BackboneSpec(str(folder), TEXT, VOCABULARY.size, context, *ids, dropout=0.0), seed).eval()


def test_text_keeps_what_it_learned_and_new_rows_lie_among_it(folder):
    old, new = AutoModelForCausalLM.from_pretrained(folder), extended(folder)
    before, table = (m.get_input_embeddings().weight.detach() for m in (old, new))
    assert table.shape == (VOCABULARY.size, 64)
    assert torch.equal(table[:TEXT], before[:TEXT])
    added, text = table[TEXT:], before[:TEXT]
    assert (added.mean(0) - text.mean(0)).abs().max() < 5 * text.std(0).max() / len(added) ** 0.5
    assert 0.9 < (added.std() / text.std()).item() < 1.1
    assert torch.equal(table, extended(folder).get_input_embeddings().weight)
    assert not torch.equal(table[TEXT:], extended(folder, seed=1).get_input_embeddings().weight[TEXT:])
    assert new.get_output_embeddings().weight is new.get_input_embeddings().weight
    ids = torch.randint(0, TEXT, (1, 9))
    torch.testing.assert_close(new(ids).logits[..., :TEXT], old.eval()(ids).logits[..., :TEXT])


def test_a_saved_model_is_read_by_plain_transformers(folder, tmp_path):
    model = extended(folder)
    model.save_pretrained(tmp_path)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.config.eos_token_id == VOCABULARY.special("<eos>")
    ids = torch.randint(0, VOCABULARY.size, (1, 9))
    assert torch.equal(again.eval()(ids).logits, model(ids).logits)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.parametrize("folder", ["opt"], indirect=True)  # the way is the same for both, and takes its time
def test_a_grid_starts_from_pretrained_weights(folder, finished, home):
    """From the published folder to a model with its card: tokens, training, scores."""
    changes = (f"text.tokenizer={folder}", f"backbone={folder}", "train.steps=3", "snr_db.test=[clean]")
    done = run_here(home, *ONE, *changes, "snr_db.train=[clean]", "decode.max_new_tokens=99", "name=pretrained")
    assert done.returncode == 0, done.stderr[-2000:]
    index = home / "runs" / "pretrained" / "grid.json"
    trial = index.parent / json.loads(index.read_text())["cells"][0]["trial"]
    model = AutoModelForCausalLM.from_pretrained(trial / "model")
    description = read_description(trial / "model")
    assert description.trial["backbone"] == {"name": folder.name, "weights": pretrained.digest(str(folder))}
    text = TextVocabulary.load_without_units(trial / "model", description.text_size)
    assert text.digest == TextVocabulary.of_model(folder).digest
    assert model.get_input_embeddings().weight.shape[0] == text.size + 64 + 8
    wer = json.loads(next(trial.glob("evals/clean-*/result.json")).read_text())["wer"]
    assert f"| clean | {100 * wer:.1f} | 16 |" in (trial / "model" / "README.md").read_text()


def test_text_of_a_pretrained_tokenizer_survives(folder):
    text = TextVocabulary.of_model(folder)
    assert 256 < text.size < TEXT  # few words give few merges
    assert text.decode(text.encode("x plus seven")) == "x plus seven"
    assert text.encode("").dtype == np.int32


def test_what_cannot_be_started_from_is_refused_in_a_sentence(folder, tmp_path):
    for name, words in (
        (f"{tmp_path}/nowhere", "there is no such folder"),
        ("nobody/opt-of-nobody", "not on this machine; download it once"),
        (str(tmp_path), "has no config.json"),
    ):
        with pytest.raises(UserError, match=words):
            pretrained.digest(name)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="type 'bert'; this suite knows opt and mamba"):
        pretrained.folder(str(tmp_path))
    (tmp_path / "gelu").mkdir()
    (tmp_path / "gelu" / "config.json").write_text('{"model_type": "mamba", "hidden_act": "gelu"}')
    with pytest.raises(UserError, match="has hidden_act 'gelu'; this suite supports mamba with 'silu' only"):
        pretrained.folder(str(tmp_path / "gelu"))
    with pytest.raises(UserError, match="knows 304 text tokens, the text vocabulary has 900"):
        build(BackboneSpec(str(folder), 900, 1000, 64, 997, 998, 999), 0)
    if folder.name == "opt":
        with pytest.raises(UserError, match="has a context of 512 tokens"):
            extended(folder, context=600)
