"""What can be wrong with the transcripts of a corpus: characters that look alike, and what training never shows."""

import unicodedata
from collections.abc import Iterator, Sequence

from dmlm.corpus.faults import Fault
from dmlm.corpus.manifest import Utterance
from dmlm.plurals import counted

TYPOGRAPHIC = dict.fromkeys("‘’‛ʼ′`´“”„‟–—‑…")  # forms of ' " - ...
INVISIBLE = ("Cf", "Cc", "Co", "Cn", "Cs")  # Unicode categories: format and control characters, and unassigned ones
SPOKEN_SIGNS = "#%&*/@\\"  # besides all digits and what Unicode calls a symbol, such as $ + < = >
EXAMPLES = 5


def form_faults(text: str) -> Iterator[tuple[str, str]]:
    """Yield the rules that the characters of a text break, and what is wrong.

    >>> [rule for rule, _ in form_faults("don\\u2019t")]
    ['typographic']
    """
    if not unicodedata.is_normalized("NFC", text):
        yield "not_nfc", "the text is not in Unicode's composed form (NFC)"
    if characters := dict.fromkeys(c for c in text if c in TYPOGRAPHIC):
        yield "typographic", f"the text has {_listed(characters)}"
    if characters := dict.fromkeys(c for c in text if unicodedata.category(c) in INVISIBLE):
        yield "invisible", f"the text has {_listed(characters)}"


def signs(text: str) -> list[str]:
    """Return the digits and signs of a text that are spoken as words, so that the text leaves open which.

    >>> signs("Press 1 or #."), signs("It's 'half-time', (he said).")
    (['1', '#'], [])
    """
    return [c for c in dict.fromkeys(text) if unicodedata.category(c)[0] in "NS" or c in SPOKEN_SIGNS]


def _listed(characters: dict[str, None]) -> str:
    return ", ".join(f"U+{ord(c):04X} {unicodedata.name(c, 'unnamed')}" for c in list(characters)[:EXAMPLES])


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


def unseen_letters(lines: Sequence[tuple[int, Utterance]], manifest: str) -> Iterator[Fault]:
    """Yield the utterances of `val` and `test` with letters that no training transcript has."""
    letters = {letter for _, u in lines if u.split == "train" for letter in _plain(u.text)}
    for number, utterance in lines if letters else ():
        new = dict.fromkeys(letter for letter in _plain(utterance.text) if letter not in letters)
        if new and utterance.split != "train":
            what = f"no training transcript has {' '.join(new)}"
            yield Fault("unseen_letters", what, manifest, number, utterance.id, utterance.split)


def unseen_words(utterances: Sequence[Utterance], manifest: str) -> Iterator[Fault]:
    """Yield for `val` and `test` which of their words no training transcript has."""
    words = {word for utterance in utterances if utterance.split == "train" for word in _plain(utterance.text).split()}
    for split in ("val", "test") if words else ():
        of_split = (word for u in utterances if u.split == split for word in _plain(u.text).split())
        if new := list(dict.fromkeys(word for word in of_split if word not in words)):
            some = ", ".join(new[:EXAMPLES]) + (", ..." if len(new) > EXAMPLES else "")
            what = f"{counted(len(new), 'word')} of split {split} not in any training transcript: {some}"
            yield Fault("unseen_words", what, manifest, split=split)


def shared_with_training(utterances: Sequence[Utterance], manifest: str) -> Iterator[Fault]:
    """Yield for `val` and `test` how many of their texts, and which of their speakers, training has too."""
    training = [utterance for utterance in utterances if utterance.split == "train"]
    texts, speakers = {_plain(u.text) for u in training}, {u.speaker for u in training if u.speaker}
    for split in ("val", "test"):
        of_split = [utterance for utterance in utterances if utterance.split == split]
        if count := sum(_plain(utterance.text) in texts for utterance in of_split):
            what = f"{count:,} of {len(of_split):,} texts of split {split} are also in training"
            yield Fault("same_text", what, manifest, split=split)
        if shared := sorted({u.speaker for u in of_split if u.speaker in speakers and u.speaker}):
            what = (
                f"{counted(len(shared), 'speaker')} of split {split} also in training: {', '.join(shared[:EXAMPLES])}"
            )
            yield Fault("same_speaker", what, manifest, split=split)
