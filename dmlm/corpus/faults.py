"""The faults of a corpus: every rule by name, how bad a breach of it is, and what to do about it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dmlm.errors import UserError, did_you_mean
from dmlm.plurals import counted

REMAKE = "restore it; or, if a recipe makes the corpus, remove it and corpus.json (or the whole folder) and run the same command"
SHOWN = 20  # faults that an error sentence lists


@dataclass(frozen=True)
class Rule:
    """A rule that a corpus keeps or breaks.

    An error would make a number mean something else than its label, so a run refuses it. A warning is said, and the run
    goes on. A breach by single clips can be settled by leaving these out: `corpus.leave_out` names the rule.
    """

    name: str
    severity: Literal["error", "warning"]
    remedy: str
    of_clips: bool = True  # whether the clips that break it can be left out


RULES = {
    rule.name: rule
    for rule in (
        # the manifest
        Rule("line", "error", "correct the line", of_clips=False),
        Rule("repeated_id", "error", "give every utterance an id of its own", of_clips=False),
        Rule("empty_text", "error", "give the transcript"),
        Rule("span", "error", "correct the spans; times are in seconds from the start of the clip"),
        Rule("lacking", "error", "add the file, drop the modality, or read an empty segment: corpus.lacking=empty"),
        Rule("milliseconds", "error", "give duration_s and spans in seconds"),
        # what a corpus is imported from
        Rule("no_text", "error", "add its transcript"),
        Rule("no_audio", "error", "add its recording"),
        Rule("clash", "error", "move one of them away, or list the clips in a table"),
        Rule("no_file", "error", "put it there, or correct its path; paths start from the source, or from --media"),
        Rule("not_spelled_out", "error", "write the numbers and signs as the words that are spoken"),
        Rule("no_face", "error", "leave it out, or crop it by hand"),
        Rule("no_split", "error", "call its split train, validation or test"),
        Rule("outside", "error", "correct start_s and end_s, in seconds from the start of the recording"),
        # media
        Rule("missing", "error", REMAKE),
        Rule("unreadable", "error", "replace the file"),
        Rule("truncated", "error", "copy or convert the file again"),
        Rule("changed", "error", REMAKE),
        Rule("not_finite", "error", "convert the recording again"),
        Rule("too_short", "error", "record it again"),
        Rule("silent", "error", "replace the recording"),
        Rule("cancelling", "error", "turn one channel round, or keep one channel only"),
        Rule("nearly_silent", "warning", "listen to it; raise its level if it is speech"),
        Rule("clipped", "warning", "record it at a lower level"),
        Rule("dc_offset", "warning", "nothing: levels are measured about the mean; a high-pass filter removes it"),
        Rule("low_rate", "warning", "nothing: it is resampled, but holds no higher frequencies"),
        Rule("odd_rate", "warning", "see whether the rate in the header is the true one"),
        Rule("frame_rate", "warning", "nothing: frames are taken by time, 25 a second"),
        Rule("rotated", "warning", "nothing: the rotation is applied"),
        Rule("uncropped", "warning", "crop the mouth: dmlm mouths, or dmlm corpus import --crop mouth"),
        Rule("blank", "warning", "look at it; every pixel is the same"),
        # lengths
        Rule("duration", "error", "give the length of the audio as duration_s"),
        Rule("lips_length", "error", "cut audio and video to the same length"),
        Rule("silent_span", "error", "correct the spans: no SNR is defined there"),
        Rule(
            "padded_span", "warning", "correct the spans: noise falls on silence, and the SNR means less than it says"
        ),
        # texts
        Rule("not_nfc", "warning", "nothing in comparisons, which use NFC; convert for the text vocabulary"),
        Rule("typographic", "warning", "use the plain characters, or both splits the same ones"),
        Rule("invisible", "warning", "remove the characters that cannot be seen"),
        Rule("unseen_letters", "warning", "a model cannot write what no training transcript has; normalise the texts"),
        Rule("unseen_words", "warning", "nothing, if the test is meant to have new words", of_clips=False),
        Rule("long_reference", "error", "raise decode.max_new_tokens"),
        Rule("too_long", "error", "raise model.context, or cut the clip"),
        # splits
        Rule("empty_split", "error", "give it utterances, or leave out less", of_clips=False),
        Rule("same_recording", "error", "keep a recording in one split only"),
        Rule("repeated_recording", "warning", "keep one of them, if they are the same sentence"),
        Rule("same_text", "warning", "nothing, if sentences are meant to repeat; else split by text", of_clips=False),
        Rule(
            "same_speaker", "warning", "nothing, if speakers are meant to repeat; else split by speaker", of_clips=False
        ),
    )
}


@dataclass(frozen=True)
class Fault:
    """One breach of a rule."""

    rule: str
    what: str  # the rest of a sentence after the place
    file: str
    line: int | None = None  # of the manifest
    utterance: str | None = None  # None: it is about a split or the corpus
    split: str | None = None

    @property
    def is_error(self) -> bool:
        return RULES[self.rule].severity == "error"

    @property
    def place(self) -> str:
        """File, line and utterance, as far as there are."""
        line = f", line {self.line}" if self.line else ""
        text = f"{self.file}{line}" + (f" ({self.utterance})" if self.utterance else "")
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)  # an id may hold an escape sequence

    def stored(self) -> dict[str, Any]:
        """Return it as plain data, with severity and remedy."""
        rule = RULES[self.rule]
        return {"severity": rule.severity, "rule": self.rule, "file": self.file, "line": self.line} | {
            "utterance": self.utterance, "split": self.split, "what": self.what, "remedy": rule.remedy
        }  # fmt: skip


def check_rules(names: Iterable[str], where: str = "corpus.leave_out") -> None:
    """Check the names of rules that a user gave; `where` is the setting.

    Raises:
        UserError: there is no such rule, or it is not about single clips.
    """
    of_clips = [rule.name for rule in RULES.values() if rule.of_clips]
    for name in names:
        if name not in of_clips:
            raise UserError(f"{where}: no rule about clips is called {name!r}; {did_you_mean(name, of_clips)}.")


def listing(faults: Sequence[Fault]) -> str:
    """Write faults as text: a line each, then what to do about each rule. Long lists are cut, with their number."""
    lines = [f"  {fault.rule:<14} {fault.place}: {fault.what}" for fault in faults[:SHOWN]]
    if len(faults) > SHOWN:
        lines.append(f"  and {len(faults) - SHOWN:,} more")
    remedies = dict.fromkeys(fault.rule for fault in faults)
    return "\n".join([*lines, *(f"  {name}: {RULES[name].remedy}." for name in remedies)])


def summary(who: str, errors: Sequence[Fault], leave_out: str = "corpus.leave_out=[{}]") -> str:
    """Write one sentence about errors: how many of each rule, the first of them, and how they can be settled.

    Args:
        who: start of the sentence, such as `FOLDER has`.
        errors: one or more.
        leave_out: how clips are left out; the names of the rules stand for `{}`, with commas between.
    """
    rules = ", ".join(f"{rule} {number:,}" for rule, number in Counter(fault.rule for fault in errors).items())
    names = ", ".join(dict.fromkeys(fault.rule for fault in errors if fault.utterance and RULES[fault.rule].of_clips))
    how = f"; or leave clips out, counted: {leave_out.format(names)}" if names else ""
    first = errors[0]
    return f"{who} {counted(len(errors), 'error')} ({rules}), the first: {first.place}: {first.what}; {RULES[first.rule].remedy}{how}."


def describe_left_out(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Write how many utterances are left out, by split and rule, as `test 3 (silent 2, too_long 1)`."""
    return "; ".join(
        f"{split} {sum(rules.values()):,} ({', '.join(f'{rule} {count:,}' for rule, count in rules.items())})"
        for split, rules in counts.items()
    )
