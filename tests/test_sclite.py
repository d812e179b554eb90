"""Transcripts for NIST's sclite: its formats as its documentation has them, and its counts against ours."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fake_grid import write_grid
from typer.testing import CliRunner

from dmlm.results import sclite
from dmlm.results.grid import read_grid
from dmlm.results.records import UtteranceResult
from dmlm.score.normalisers import BASIC, NONE
from dmlm.score.wer import count_errors

SCLITE = shutil.which("sclite") or next(map(str, Path("/usr/lib/sctk/bin").glob("sclite")), None)  # where Debian has it


def utterance(name: str, reference: str, hypothesis: str, speaker: str | None = None) -> UtteranceResult:
    counts = vars(count_errors(reference, hypothesis))
    texts = {"id": name, "reference": reference, "hypothesis": hypothesis}
    return UtteranceResult(**texts, **counts, snr_db_measured=None, speaker=speaker)


def test_trn_is_as_documented():
    """The line of the documentation, doc/infmts.htm of SCTK: words, then `(cmh_sa01)`; our speaker ends at a hyphen."""
    said = "she had your dark suit in greasy wash water all year"
    reference, hypothesis = sclite.trn([utterance("sa01", said, "She had  your suit", "cmh")], BASIC)
    assert reference == f"{said} (cmh-sa01)\n"
    assert hypothesis == "she had your suit (cmh-sa01)\n"


def test_stm_and_ctm_are_as_documented():
    """`2345 A 2345-a 0.10 2.03 uh huh yes i thought` and `7654 A 11.34 0.2 YES`, sorted; from doc/infmts.htm of SCTK."""
    utterances = [
        utterance("b", "uh huh yes", "uh yes", "2345-a"),
        utterance("B", "dog", "big dog walking"),
        utterance("a", "x", ""),
    ]
    reference, hypothesis = sclite.stm_and_ctm(utterances, BASIC)
    assert reference.splitlines()[1:] == [
        "B A unknown 0.00 3.00 dog",
        "a A unknown 0.00 1.00 x",
        "b A 2345-a 0.00 3.00 uh huh yes",
    ]
    assert hypothesis.splitlines()[1:] == [
        *("B A 0.00 1.00 big", "B A 1.00 1.00 dog", "B A 2.00 1.00 walking", "b A 0.00 1.00 uh", "b A 1.00 1.00 yes"),
    ]
    assert reference.startswith(";;")
    assert hypothesis.startswith(";;")


def test_what_sclite_gives_a_meaning_is_escaped_and_different_texts_stay_different():
    texts = ["{ a / b } @", ";; (a)", "<F> a", "50 %", "50 %25", "%7B a", "(a", "a)"]
    written = [sclite.escaped(text) for text in texts]
    assert len(set(written)) == len(texts)
    assert not set("".join(written)) & set("{}/@();<>")
    assert sclite.escaped("x plus 7 = y, it's") == "x plus 7 = y, it's"


def test_a_speaker_ends_at_the_first_hyphen():
    names = [sclite.utterance_id(utterance(name, "a", "a", who)) for who, name in (("s-1_x", "u 1"), (None, "a-b (c)"))]
    assert names == ["s%2D1_x-u%201", "unknown-a-b%20%28c%29"]


def test_every_finished_evaluation_is_written(tmp_path):
    from dmlm.cli.main import app

    folder = write_grid(tmp_path, snrs_db=("clean", 0.0), utterances=5)
    grid = read_grid(folder)
    (grid.cells[0].evaluations[0].folder.path / "result.json").unlink()
    targets = [tmp_path / "trn", tmp_path / "stm"]
    outcome = CliRunner().invoke(
        app, ["grid", "export", str(folder), "--trn", str(targets[0]), "--stm", str(targets[1])]
    )
    assert outcome.output.count("transcripts of 3 evaluations") == 2
    found = sorted(path.name for target in targets for path in target.rglob("*.*") if path.is_file())
    assert found == sorted(["ref.trn", "hyp.trn", "ref.stm", "hyp.ctm"] * 3)
    evaluation = grid.cells[1].evaluations[1]
    text = (targets[0] / grid.cells[1].trial.path.name / evaluation.folder.path.name / "ref.trn").read_text("utf-8")
    assert text.splitlines()[0].startswith(evaluation.utterances[0].reference)


def counts_of(folder: Path, *files: str) -> list[list[int]]:
    """Substitutions, deletions and insertions of each utterance, as sclite counts them."""
    command = [str(SCLITE), "-s", "-e", "utf-8", *files, "-o", "pralign", "stdout"]
    printed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    return [list(map(int, found)) for found in re.findall(r"#I\) \d+ (\d+) (\d+) (\d+)", printed)]


TRN = ("-i", "spu_id", "-r", "ref.trn", "trn", "-h", "hyp.trn", "trn")
STM = ("-r", "ref.stm", "stm", "-h", "hyp.ctm", "ctm")


@pytest.mark.skipif(SCLITE is None, reason="sclite is not installed (apt install sctk)")
def test_sclite_counts_what_we_count(tmp_path):
    grid = read_grid(write_grid(tmp_path, snrs_db=("clean", 5.0), utterances=60))
    for timed, files in ((False, TRN), (True, STM)):
        sclite.write_all(grid, tmp_path / "out", timed)
        for cell in grid.cells:
            for evaluation in cell.evaluations:
                counts = counts_of(tmp_path / "out" / cell.trial.path.name / evaluation.folder.path.name, *files)
                assert len(counts) == 60
                assert sum(map(sum, counts)) == evaluation.result.errors


@pytest.mark.skipif(SCLITE is None, reason="sclite is not installed (apt install sctk)")
def test_sclite_reads_special_signs_as_words(tmp_path):
    signs = ["{", "}", "/", "@", "(x)", "(x", ";;", "<F>", "a{b", "é", "É", "X", "50%", "*", "a-", "\\"]
    for place, sign in enumerate(signs):
        other = [f"q {sign} b", "q x b", f"{sign} c", f"{sign}"]
        utterances = [
            utterance(f"u{n}", a, b, "s") for n, (a, b) in enumerate(zip(other, [*other[1:], other[0]], strict=True))
        ]
        ours = [sum(vars(count_errors(u.reference, u.hypothesis, NONE)).values()) for u in utterances]
        for form, names, files in (
            (sclite.trn, ("ref.trn", "hyp.trn"), TRN),
            (sclite.stm_and_ctm, ("ref.stm", "hyp.ctm"), STM),
        ):
            folder = tmp_path / str(place)
            folder.mkdir(exist_ok=True)
            for name, text in zip(names, form(utterances, NONE), strict=True):
                (folder / name).write_text(text, encoding="utf-8")
            counts = counts_of(folder, *files)
            words = [len(u.reference.split()) for u in utterances]
            assert [sum(count) + n for count, n in zip(counts, words, strict=True)] == ours, (sign, names)
