"""The decoder against full forward passes, transformers' `generate`, and single prompts against batches."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_models import CPU, FAMILIES, VOCABULARY, prompts, tiny
from transformers import LogitsProcessor, LogitsProcessorList

from dmlm.recognition.decode import _batches, _Decoder, decode, shared_prefixes
from dmlm.recognition.settings import DecodeSettings
from dmlm.sequence.template import Packed

END = VOCABULARY.special("<eos>")


class TextOnly(LogitsProcessor):
    """For transformers' decoder: nothing but text and <eos>."""

    def __call__(self, input_ids, scores):
        forbidden = torch.ones(VOCABULARY.size, dtype=torch.bool)
        forbidden[: VOCABULARY.text_size] = forbidden[END] = False
        return scores.masked_fill(forbidden, -math.inf)


def generate(model, packed_prompts, steps=12, **more):
    """The IDs that our decoder generates."""
    settings = DecodeSettings(max_new_tokens=steps, **more)
    return [output.ids.tolist() for output in decode(model, packed_prompts, VOCABULARY, settings, CPU)]


def generate_by_transformers(model, prompt, steps=12, beams=1):
    """The IDs that `generate` of transformers returns for one prompt."""
    ids = model.generate(
        torch.from_numpy(prompt.ids)[None],
        max_new_tokens=steps,
        num_beams=beams,
        do_sample=False,
        pad_token_id=VOCABULARY.special("<pad>"),
        eos_token_id=END,
        length_penalty=1.0,
        early_stopping=False,
        logits_processor=LogitsProcessorList([TextOnly()]),
    )[0, len(prompt.ids) :].tolist()
    return ids[: ids.index(END)] if END in ids else ids


def eager(name, seed):
    """A model that ends some transcripts early."""
    model = tiny(name, seed=seed)
    with torch.no_grad():
        model.get_output_embeddings().weight[END] *= 3
    return model


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("seed", [0, 1, 3])
def test_greedy_writes_what_generate_writes(name, seed):
    model, inputs = eager(name, seed), prompts([3, 17, 9, 30, 1], seed)
    assert generate(model, inputs) == [generate_by_transformers(model, prompt) for prompt in inputs]


@pytest.mark.parametrize("name", FAMILIES)
def test_beams_find_what_an_exhaustive_search_finds(name):
    """With one beam for each hypothesis of two tokens, no hypothesis is dropped."""
    model, (prompt,) = tiny(name, seed=3), prompts([6])
    width, steps = VOCABULARY.text_size + 1, 2
    allowed = [*range(VOCABULARY.text_size), END]
    with torch.inference_mode():
        ids = torch.from_numpy(prompt.ids)
        first = model(ids[None]).logits[0, -1, allowed].log_softmax(-1)
        after = [torch.cat([ids, torch.tensor([token])]) for token in allowed[:-1]]
        second = model(torch.stack(after)).logits[:, -1, allowed].log_softmax(-1)
    two = (first[:-1, None] + second) / torch.tensor([3.0] * (width - 1) + [2.0])
    best = divmod(int(two.argmax()), width)
    if first[-1] > two.max():
        best = ()
    assert generate(model, [prompt], steps, beams=width)[0] == [token for token in best if token < width - 1]


@pytest.mark.parametrize("name", FAMILIES)
def test_one_beam_is_greedy_and_more_find_likelier_transcripts(name):
    model, inputs = tiny(name, seed=1), prompts([5, 11, 8])

    def log_p(prompt, output):
        ids = torch.from_numpy(np.concatenate([prompt.ids, output]).astype(np.int64))
        scores = model(ids[None]).logits[0, len(prompt.ids) - 1 : -1, [*range(VOCABULARY.text_size), END]]
        return scores.log_softmax(-1).gather(1, ids[len(prompt.ids) :, None]).sum().item()

    with torch.inference_mode():
        greedy, beam = generate(model, inputs, 4), generate(model, inputs, 4, beams=8)
        assert all(len(a) == len(b) == 4 for a, b in zip(greedy, beam, strict=True))
        for prompt, one, many in zip(inputs, greedy, beam, strict=True):
            assert log_p(prompt, many) >= log_p(prompt, one) - 1e-5


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("settings", [DecodeSettings(max_new_tokens=40, beams=beams) for beams in (1, 3)])
def test_log_probabilities_are_those_of_a_full_pass(name, settings):
    """Of each token and, where the answer ended by itself, of <eos>; among what may be written."""
    model, inputs = eager(name, 3), prompts([3, 17, 9, 30, 1], 3)
    allowed = [*range(VOCABULARY.text_size), END]
    answers = decode(model, inputs, VOCABULARY, settings, CPU)
    assert {answer.cut for answer in answers} == {False, True}, "both kinds of end are seen"
    for prompt, answer in zip(inputs, answers, strict=True):
        written = [*answer.ids.tolist(), *([] if answer.cut else [END])]
        ids = torch.from_numpy(np.concatenate([prompt.ids, written]).astype(np.int64))
        with torch.inference_mode():
            log_ps = model(ids[None]).logits[0, len(prompt.ids) - 1 : -1, allowed].log_softmax(-1)
        columns = torch.tensor([allowed.index(token) for token in written])
        expected = log_ps.gather(1, columns[:, None]).squeeze(1).numpy()
        np.testing.assert_allclose(answer.log_probabilities, expected, atol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("beams", [1, 3])
def test_an_answer_does_not_depend_on_the_batch(name, beams):
    model, inputs = eager(name, 0), prompts([3, 17, 9, 30])
    together = generate(model, inputs, beams=beams)
    assert together == [generate(model, [prompt], beams=beams)[0] for prompt in inputs]
    assert together == generate(model, inputs[::-1], beams=beams)[::-1]


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_that_begin_alike_are_answered_as_if_alone(name):
    model, (long, other) = tiny(name), prompts([40, 25])
    variants = [long]
    for position in (20, 41, 30):
        ids = long.ids.copy()
        ids[position] = 7
        variants.append(Packed(ids, long.roles))
    variants += [other, long]
    prefixes, prefix_index = shared_prefixes([variant.ids for variant in variants])
    assert [len(prefix) for prefix in prefixes] == [20, len(other.ids) - 1]
    assert prefix_index.tolist() == [0, 0, 0, 0, 1, 0]
    assert generate(model, variants) == [generate(model, [variant])[0] for variant in variants]


def test_batches_hold_every_prompt_once_and_few_tokens():
    lengths = np.random.default_rng(0).integers(1, 60, 200)
    batches = _batches([np.zeros(n, np.int64) for n in lengths], 300)
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    assert all(len(batch) * max(lengths[batch]) <= 300 for batch in batches)


@pytest.mark.parametrize("name", FAMILIES)
def test_only_text_is_ever_written(name):
    for output in generate(tiny(name), prompts([5, 6]), 20):
        assert all(0 <= token < VOCABULARY.text_size for token in output)


def test_a_transcript_that_goes_in_circles_is_stopped():
    model, inputs = tiny("opt-nano", seed=0), prompts([5, 9])
    endless = generate(model, inputs, 100)
    assert all(len(output) == 100 for output in endless)  # untrained models repeat one phrase for ever
    stopped = generate(model, inputs, 100, max_repeats=4)
    for output, full in zip(stopped, endless, strict=True):
        assert len(output) < 100
        assert output == full[: len(output)]
        tail = output[-4 * 8 :]
        assert any(tail[-4 * p :] == tail[-p:] * 4 for p in range(1, 9))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("max_repeats", [2, 3, 5])
@pytest.mark.parametrize("seed", [0, 8, 10])
def test_where_a_loop_is_stopped_does_not_depend_on_the_batch(name, seed, max_repeats):
    model, inputs = eager(name, seed), prompts(np.random.default_rng(seed).integers(1, 30, 32), seed)
    settings = DecodeSettings(max_new_tokens=24, max_repeats=max_repeats)
    alone = [decode(model, [prompt], VOCABULARY, settings, CPU)[0] for prompt in inputs]
    for batch in (inputs, inputs[:5]):
        for one, together in zip(alone, decode(model, batch, VOCABULARY, settings, CPU), strict=False):
            assert one.ids.tolist() == together.ids.tolist()
            assert (one.cut, one.looped) == (together.cut, together.looped)


def scripted(monkeypatch, name, script):
    """A decoder whose row `i` writes `script[i]` whatever it reads, and goes on behind its <eos> if it is asked to."""
    width = VOCABULARY.text_size + 1
    monkeypatch.setattr(_Decoder, "_prefill", lambda self, prompts: (Rows(len(prompts)), logits(script, 0)))

    class Rows:
        def __init__(self, count):
            self.rows, self.step = torch.arange(count), 0

        def select(self, rows):
            self.rows = self.rows[rows]

    def logits(texts, step):
        return torch.nn.functional.one_hot(torch.tensor([text[step] for text in texts]), width).float()

    def step(model, tokens, cache):
        cache.step += 1
        return logits([script[row] for row in cache.rows], cache.step)

    model = tiny(name)
    settings = DecodeSettings(max_new_tokens=len(script[0]), max_repeats=3, longest_loop=2)
    decoder = _Decoder(model, VOCABULARY, settings, CPU)
    decoder.output_weights, decoder.family = torch.eye(width), SimpleNamespace(step=step)
    return decoder.decode([np.zeros(1, np.int64)] * len(script))


def test_what_a_row_would_write_behind_its_end_counts_for_nobody(monkeypatch):
    """Rows that have ended stay in the batch for a while; the model would go on for them, and in circles."""
    end = VOCABULARY.text_size
    script = [
        [1, end, 5, 5, 5, 5, 5, 5],  # ends, and would then go in circles
        [2, 3, 2, 3, 2, 3, 4, end],  # is stopped at its sixth token, and would then end
        [1, 2, 3, 4, 5, 6, 7, 8],  # is cut
        [1, 2, 3, 4, 5, 6, 7, end],  # ends with the last token that there is room for
        [9, 8, 7, 6, 5, 4, 4, 4],  # is stopped at the last token: not cut
    ]
    together = scripted(monkeypatch, "opt-nano", script)
    assert [answer.ids.tolist() for answer in together] == [[1], script[1][:6], script[2], script[3][:7], script[4]]
    assert [answer.cut for answer in together] == [False, False, True, False, False]
    assert [answer.looped for answer in together] == [False, True, False, False, True]
    for row, answer in zip(script, together, strict=True):
        (alone,) = scripted(monkeypatch, "opt-nano", [row])
        assert (alone.ids.tolist(), alone.cut, alone.looped) == (answer.ids.tolist(), answer.cut, answer.looped)


@pytest.mark.parametrize("beams", [1, 3])
def test_an_answer_without_an_end_is_cut(beams):
    model, inputs = eager("mamba-nano", 1), prompts([3, 17, 9, 30, 1, 12], 1)
    for steps in (1, 4, 12):
        for answer in decode(model, inputs, VOCABULARY, DecodeSettings(max_new_tokens=steps, beams=beams), CPU):
            assert answer.cut == (len(answer.ids) == steps)
            assert not answer.looped


def test_a_phrase_that_occurs_once_is_no_loop():
    with pytest.raises(ValueError, match=r"give 0 .* or at least 2"):
        DecodeSettings(max_repeats=1)
