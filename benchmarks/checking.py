"""Checking a corpus: every file read to its end once, against a loop that decodes each file and looks at nothing.

A corpus of many short recordings with lips is written first (about 2 GB for 20,000 files). What is compared is what one would
write instead: `soundfile.read` and PyAV over the files, with as many processes. Then the second check, which reads
nothing, and the opening of a manifest of 100,000 lines.

    python benchmarks/checking.py                  # 2,000 files
    python benchmarks/checking.py --files 20000
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dmlm import processes
from dmlm.corpus.manifest import Utterance, read_corpus, write_corpus
from dmlm.corpus.media import write_video

ROOT = Path(__file__).resolve().parent.parent
LINES = 100_000
SECONDS = 3.0
RATE_HZ = 16_000
DIFFERENT = 200  # recordings and videos; the others are these with another first sample or comment


def write(folder: Path, count: int) -> None:
    """Write a corpus of `count` recordings and half as many videos, all different."""
    rng = np.random.default_rng(0)
    clips = rng.normal(0, 0.1, (DIFFERENT, round(SECONDS * RATE_HZ))).clip(-0.9, 0.9).astype(np.float32)
    films = []
    for _ in range(DIFFERENT // 10):
        write_video(folder / "film.mp4", rng.integers(0, 255, (75, 96, 96), dtype=np.uint8) // 64 * 64)
        films.append((folder / "film.mp4").read_bytes())
    (folder / "film.mp4").unlink()
    utterances = []
    for number in range(count * 2 // 3):
        clip = clips[number % DIFFERENT]
        clip[0] = number / count
        soundfile.write(folder / f"{number}.flac", clip, RATE_HZ)
        split, text = ("train", "one two") if number % 10 else ("test", "two one")
        fields = {"id": str(number), "split": split, "text": text, "audio": f"{number}.flac", "duration_s": SECONDS}
        if number % 2:
            fields["lips"] = f"{number}.mp4"
            free = len(f"{number}".encode()) + 8  # an ISO box of type `free`: other bytes, the same film
            box = free.to_bytes(4, "big") + b"free" + f"{number}".encode()
            (folder / fields["lips"]).write_bytes(films[number % len(films)] + box)
        utterances.append(Utterance(**fields))
    write_corpus(folder, utterances, {"name": "many", "version": "1", "licence": "CC0-1.0"})


def decode(path: Path) -> int:
    """Decode a file, as one would in a loop of one's own."""
    import av

    if path.suffix == ".flac":
        return len(soundfile.read(path)[0])
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def measured(work: str, folder: Path) -> tuple[float, float]:
    """Run `work` in a fresh Python, on the corpus `folder`; return its seconds and the peak of the process in MiB."""
    program = (
        "import re, time\nfrom pathlib import Path\nfrom dmlm import processes\n"
        "from dmlm.corpus.check import check_corpus\nfrom dmlm.corpus.manifest import read_corpus\n"
        f"start = time.perf_counter()\n{work}\n"
        "peak = re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())  # Linux; ru_maxrss has the parent's\n"
        "print(time.perf_counter() - start, int(peak[1]) / 1024)"
    )
    command = [sys.executable, "-c", program.replace("FOLDER", f"Path({str(folder)!r})")]
    printed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    seconds, peak_mib = printed.split()
    return float(seconds), float(peak_mib)


def write_manifest(folder: Path) -> None:
    """Write a manifest of 100,000 lines as a corpus has it; there are no media."""
    lines = (
        {
            "id": f"clip-{number:06d}", "split": "train", "text": f"a sentence of some words, number {number}",
            "audio": f"audio/clip-{number:06d}.flac", "lips": f"lips/clip-{number:06d}.mp4", "speaker": f"s{number % 100}",
            "duration_s": 3.0, "spans": [[0.5, 2.5]],
        }
        for number in range(LINES)
    )  # fmt: skip
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    card = {"name": "long", "digest": "0" * 64, "utterances": {"train": LINES}}
    (folder / "corpus.json").write_text(json.dumps(card))


def main() -> None:
    """Measure, and record the results."""
    from harness import record, row, seconds  # here: every worker imports this file, and would import torch with it

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=2000)
    count = parser.parse_args().files
    folder = Path(tempfile.mkdtemp())
    os.environ["DMLM_HOME"] = str(folder / "home")
    try:
        (folder / "long").mkdir()
        write_manifest(folder / "long")
        opening_s, opening_mib = measured("read_corpus(FOLDER)", folder / "long")
        (folder / "many").mkdir()
        write(folder / "many", count)
        corpus = read_corpus(folder / "many")
        paths = [folder / "many" / name for u in corpus.utterances for name in u.media.values()]
        with ProcessPoolExecutor(processes.count()) as pool:
            plain_s = seconds(lambda: list(pool.map(decode, paths, chunksize=64)))
        check = "check_corpus(read_corpus(FOLDER), ['audio', 'lips'], processes.run)"
        first_s, first_mib = measured(check, folder / "many")
        again_s, again_mib = measured(check, folder / "many")
        name, rate = f"checking {len(paths):,} files", len(paths)
        record(
            [
                row(f"{name}, against decoding them", rate / first_s, rate / plain_s, "files/s", 0.5),
                row(f"{name} again, against decoding them", rate / again_s, rate / plain_s, "files/s", 10.0),
                row(f"{name}: peak of the main process", first_mib, None, "MiB", None),
                row(f"opening a manifest of {LINES:,} lines", opening_s, None, "s", None),
                row(f"opening a manifest of {LINES:,} lines: peak", opening_mib, None, "MiB", None),
            ]
        )
        print(f"{first_s:.0f} s, then {again_s:.1f} s and {again_mib:.0f} MiB")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
