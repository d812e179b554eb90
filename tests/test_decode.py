"""The decoder against full forward passes, against transformers' `generate`, and against its own batches."""

import math

import numpy as np
import pytest
import torch
from small_models import CPU, FAMILIES, VOCABULARY, prompts, tiny
from transformers import LogitsProcessor, LogitsProcessorList

from dmlm.recognition.decode import _batches, decode, shared_prefixes
from dmlm.recognition.settings import DecodeSettings
from dmlm.sequence.template import Packed

END = VOCABULARY.special("<eos>")


class TextOnly(LogitsProcessor):
    """For transformers' decoder: nothing but text and <eos>."""

    def __call__(self, input_ids, scores):
        forbidden = torch.ones(VOCABULARY.size, dtype=torch.bool)
        forbidden[: VOCABULARY.text_size] = forbidden[END] = False
        return scores.masked_fill(forbidden, -math.inf)


def write(model, items, steps=12, **more):
    settings = DecodeSettings(max_new_tokens=steps, **more)
    return [answer.tolist() for answer in decode(model, items, VOCABULARY, settings, CPU)]


def stock(model, item, steps=12, beams=1):
    ids = model.generate(
        torch.from_numpy(item.ids)[None],
        max_new_tokens=steps,
        num_beams=beams,
        do_sample=False,
        pad_token_id=VOCABULARY.special("<pad>"),
        eos_token_id=END,
        length_penalty=1.0,
        early_stopping=False,
        logits_processor=LogitsProcessorList([TextOnly()]),
    )[0, len(item.ids) :].tolist()
    return ids[: ids.index(END)] if END in ids else ids


def eager(name, seed):
    """A model that ends some of its transcripts early."""
    model = tiny(name, seed=seed)
    with torch.no_grad():
        model.get_output_embeddings().weight[END] *= 3
    return model


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("seed", [0, 1, 3])
def test_greedy_writes_what_generate_writes(name, seed):
    model, items = eager(name, seed), prompts([3, 17, 9, 30, 1], seed)
    ours = write(model, items)
    assert ours == [stock(model, item) for item in items]


@pytest.mark.parametrize("name", FAMILIES)
def test_beams_find_what_an_exhaustive_search_finds(name):
    """With as many beams as there are hypotheses of two tokens, nothing is ever dropped."""
    model, (item,) = tiny(name, seed=3), prompts([6])
    width, steps = VOCABULARY.text_size + 1, 2
    allowed = [*range(VOCABULARY.text_size), END]
    with torch.inference_mode():
        prompt = torch.from_numpy(item.ids)
        first = model(prompt[None]).logits[0, -1, allowed].log_softmax(-1)
        after = [torch.cat([prompt, torch.tensor([token])]) for token in allowed[:-1]]
        second = model(torch.stack(after)).logits[:, -1, allowed].log_softmax(-1)
    two = (first[:-1, None] + second) / torch.tensor([3.0] * (width - 1) + [2.0])
    best = divmod(int(two.argmax()), width)
    if first[-1] > two.max():
        best = ()
    assert write(model, [item], steps, beams=width)[0] == [token for token in best if token < width - 1]


@pytest.mark.parametrize("name", FAMILIES)
def test_one_beam_is_greedy_and_more_find_likelier_transcripts(name):
    model, items = tiny(name, seed=1), prompts([5, 11, 8])

    def log_p(item, answer):
        ids = torch.from_numpy(np.concatenate([item.ids, answer]).astype(np.int64))
        scores = model(ids[None]).logits[0, len(item.ids) - 1 : -1, [*range(VOCABULARY.text_size), END]]
        return scores.log_softmax(-1).gather(1, ids[len(item.ids) :, None]).sum().item()

    with torch.inference_mode():
        greedy, beam = write(model, items, 4), write(model, items, 4, beams=8)
        assert all(len(a) == len(b) == 4 for a, b in zip(greedy, beam, strict=True))
        for item, one, many in zip(items, greedy, beam, strict=True):
            assert log_p(item, many) >= log_p(item, one) - 1e-5


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("beams", [1, 3])
def test_an_answer_does_not_depend_on_the_batch(name, beams):
    model, items = eager(name, 0), prompts([3, 17, 9, 30])
    together = write(model, items, beams=beams)
    assert together == [write(model, [item], beams=beams)[0] for item in items]
    assert together == write(model, items[::-1], beams=beams)[::-1]


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_that_begin_alike_are_answered_as_if_alone(name):
    model, (long, other) = tiny(name), prompts([40, 25])
    variants = [long]
    for place in (20, 41, 30):
        ids = long.ids.copy()
        ids[place] = 7
        variants.append(Packed(ids, long.roles))
    variants += [other, long]
    shared, group = shared_prefixes([v.ids for v in variants])
    assert [len(s) for s in shared] == [20, len(other.ids) - 1]
    assert group.tolist() == [0, 0, 0, 0, 1, 0]
    assert write(model, variants) == [write(model, [v])[0] for v in variants]


def test_batches_hold_every_prompt_once_and_few_tokens():
    lengths = np.random.default_rng(0).integers(1, 60, 200)
    batches = _batches([np.zeros(n, np.int64) for n in lengths], 300)
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    assert all(len(batch) * max(lengths[batch]) <= 300 for batch in batches)


@pytest.mark.parametrize("name", FAMILIES)
def test_only_text_is_ever_written(name):
    for answer in write(tiny(name), prompts([5, 6]), 20):
        assert all(0 <= token < VOCABULARY.text_size for token in answer)


def test_a_transcript_that_goes_in_circles_is_stopped():
    model, items = tiny("opt-nano", seed=0), prompts([5, 9])
    free = write(model, items, 100)
    assert all(len(answer) == 100 for answer in free)  # untrained models say one thing for ever
    guarded = write(model, items, 100, max_repeats=4)
    for answer, whole in zip(guarded, free, strict=True):
        assert len(answer) < 100
        assert answer == whole[: len(answer)]
        tail = answer[-4 * 8 :]
        assert any(tail[-4 * p :] == tail[-p:] * 4 for p in range(1, 9))
