"""What is wrong with a corpus for the cells that are to read it: what their settings ask of it, and it does not have."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dmlm.corpus.faults import Fault
from dmlm.corpus.manifest import Corpus, Utterance, read_utterances
from dmlm.corpus.noise import noisy_spans
from dmlm.modalities import SAMPLE_RATE_HZ
from dmlm.plan.cell import Cell
from dmlm.score.normalisers import NORMALISERS
from dmlm.sequence.template import Template, pack
from dmlm.snr import noisy
from dmlm.sweep.controls import exchanged_with, permute
from dmlm.sweep.materials import Materials
from dmlm.sweep.parts import open_text
from dmlm.tokens.encoder import Encoder, Tokenizer
from dmlm.tokens.shards import TokenSource

PADDED_SHARE = 0.5  # of a span that gets noise

Numbers = Mapping[str, int]  # line of the manifest by id


def encoders_of(cells: Iterable[Cell]) -> list[Encoder]:
    """Return the encoders that cells read with, each once."""
    choices = {cell.tokenizers[k].model_dump_json(): (k, cell.tokenizers[k]) for cell in cells for k in cell.letters}
    return [TokenSource.check(letter, choice.recipe, choice.settings) for letter, choice in choices.values()]


def lacking(corpus: Corpus, cells: Sequence[Cell], numbers: Numbers) -> Iterator[Fault]:
    """Yield the utterances that lack what a cell reads, unless its corpus says that the segment is empty then."""
    cells = [cell for cell in cells if cell.corpus.lacking == "error"]
    media = dict.fromkeys(encoder.media for encoder in encoders_of(cells))
    splits = {"train", *(cell.split for cell in cells)}
    for utterance in corpus.utterances:
        if utterance.split in splits and (missing := [field for field in media if getattr(utterance, field) is None]):
            yield _fault(
                "lacking", f"it has no {' and no '.join(missing)}, which the grid reads", utterance, corpus, numbers
            )


def silent_spans(
    corpus: Corpus, cells: Sequence[Cell], audio: Mapping[str, Mapping[str, Any]], numbers: Numbers
) -> Iterator[Fault]:
    """Yield the utterances whose speech is silent, or mostly padding, where noise goes.

    Args:
        corpus: whose utterances have no other error.
        cells: that read it.
        audio: what is known of the recordings, by id of the utterance.
        numbers: lines of the manifest.
    """
    mixed = [(cell.noise, "train") for cell in cells if any(map(noisy, cell.snr_db.train))]
    mixed += [(cell.noise, cell.split) for cell in cells if any(map(noisy, cell.snr_db.test))]
    settings = dict.fromkeys(mixed)
    for utterance in corpus.utterances:
        if not (facts := audio.get(utterance.id)) or not (facts["silent_stretches"] or facts["quiet_stretches"]):
            continue
        samples = round(facts["duration_s"] * SAMPLE_RATE_HZ)
        spans = [
            span
            for noise, split in settings
            if split == utterance.split
            for span in noisy_spans(utterance, samples, noise)
        ]
        if silent := [span for span in spans if share_within(span, facts["silent_stretches"]) == 1]:
            yield _fault("silent_span", f"{_place(silent[0])}, the speech is silent", utterance, corpus, numbers)
            continue
        shares = [(share_within(span, facts["quiet_stretches"]), span) for span in spans]
        share, span = max(shares, key=lambda pair: pair[0], default=(0.0, slice(0)))
        if share == 1:
            what = f"{_place(span)}, nothing is within 50 dB of the loud parts of the clip"
            yield _fault("silent_span", what, utterance, corpus, numbers)
        elif share >= PADDED_SHARE:
            yield _fault("padded_span", f"{_place(span)}, {share:.0%} is padding", utterance, corpus, numbers)


def _place(span: slice) -> str:
    return f"where noise goes, from {span.start / SAMPLE_RATE_HZ:.2f} s to {span.stop / SAMPLE_RATE_HZ:.2f} s"


def share_within(span: slice, stretches: Sequence[tuple[float, float]]) -> float:
    """Return the share of a span, in samples at 16 kHz, that lies in some stretches, in seconds; 1 but for rounding.

    >>> share_within(slice(16_000, 32_000), [(0.5, 1.25)])
    0.25
    """
    start_s, stop_s = span.start / SAMPLE_RATE_HZ, span.stop / SAMPLE_RATE_HZ
    within_s = sum(max(0.0, min(stop_s, stop) - max(start_s, start)) for start, stop in stretches)
    share = within_s / (stop_s - start_s)
    return 1.0 if share > 1 - 1e-3 else share


def references(corpus: Corpus, cells: Sequence[Cell], numbers: Numbers) -> Iterator[Fault]:
    """Yield the utterances of scored splits of whose transcript nothing is compared, or more than decoding may write."""
    settings = {
        (cell.text.model_dump_json(), cell.decode.max_new_tokens, cell.split, cell.corpus.normaliser): cell
        for cell in cells
    }
    seen: set[str] = set()
    for cell in settings.values():
        most, normaliser = cell.decode.max_new_tokens, NORMALISERS[cell.corpus.normaliser]
        text = open_text(corpus, cell.text)
        for utterance in corpus.split(cell.split):
            if utterance.id in seen:
                continue
            if not normaliser(utterance.text):
                rule, what = "empty_text", f"nothing of {utterance.text!r} is left by normaliser {normaliser}"
            elif (length := len(text.encode(utterance.text))) > most:
                rule, what = (
                    "long_reference",
                    f"the transcript has {length} text tokens; decode.max_new_tokens is {most}",
                )
            else:
                continue
            seen.add(utterance.id)
            yield _fault(rule, what, utterance, corpus, numbers)


def long_sequences(cell: Cell, materials: Materials) -> dict[str, str]:
    """Return the utterances whose sequence does not fit into `model.context`, to train on or to test with, and why.

    A test needs room for its prompt and for `decode.max_new_tokens`, also with a modality of another utterance.
    """
    encoders = [materials.sources[letter].encoder for letter in cell.letters]
    differ = any(e.depends_on_noise and not (isinstance(e, Tokenizer) and e.rate_hz) for e in encoders)
    train, test = materials.train_conditions[: cell.train.draws], list(materials.test_conditions.values())
    found: dict[str, str] = {}
    for split, conditions, room in (("train", train, 0), (cell.split, test, cell.decode.max_new_tokens)):
        ids = [utterance.id for utterance in materials.corpus.split(split)]
        for condition in conditions if differ else conditions[:1]:  # else lengths are the same under every condition
            items, _ = materials.streams(cell.letters, split, condition)
            for variant in _as_read(items, cell, materials, tested=bool(room)):
                lengths = _lengths(variant, cell, materials, with_target=not room)
                for name, length in zip(ids, lengths, strict=True):
                    if length + room > cell.model.context:
                        needs = f"{length} tokens" + (
                            f" and {room} for the transcript (decode.max_new_tokens)" if room else ""
                        )
                        found[name] = f"{cell.template} makes {needs}; model.context is {cell.model.context}"
    return found


def _as_read(
    items: list[dict[str, Any]], cell: Cell, materials: Materials, tested: bool
) -> Iterator[list[dict[str, Any]]]:
    """Yield the token streams of a split as a model may read them: as they are, or with a modality of other utterances."""
    if cell.permute:
        for draw in range(1 if tested else cell.train.draws):
            yield permute(items, exchanged_with(cell.permute, cell, materials), draw)
        return
    yield items
    if tested and len(cell.letters) > 1 and len(items) > 1:
        for letter in cell.letters:
            for draw in range(cell.perceptual.draws):
                yield permute(items, exchanged_with(letter, cell, materials), draw)


def _lengths(items: Sequence[Mapping[str, Any]], cell: Cell, materials: Materials, with_target: bool) -> list[int]:
    template, vocabulary = Template.parse(cell.template), materials.vocabulary(cell.letters)
    return [len(pack(template, item, vocabulary, materials.rates_hz, with_target=with_target)) for item in items]


def _fault(rule: str, what: str, utterance: Utterance, corpus: Corpus, numbers: Numbers) -> Fault:
    path = str(corpus.folder / "manifest.jsonl")
    return Fault(rule, what, path, numbers.get(utterance.id), utterance.id, utterance.split)


def too_long(found: Mapping[str, str], corpus: Corpus) -> list[Fault]:
    """Return what `long_sequences` found as faults."""
    if not found:
        return []
    whole = read_utterances(corpus.folder / "manifest.jsonl")
    numbers = {utterance.id: number for number, utterance in enumerate(whole, start=1)}
    return [_fault("too_long", found[u.id], u, corpus, numbers) for u in whole if u.id in found]
