"""One side of a comparison in a process of its own, as its user would run it: `python rival.py MODULE SIDE CASE`.

MODULE has a function `contestant(side, case)` that returns a function without arguments. It is called for each line on
standard input, and what it returns goes to standard output as a line of JSON. Our side runs as a trial does: idle
threads sleep, freed memory is kept. The other side runs with PyTorch's and glibc's own settings.
"""

import importlib
import json
import os
import sys


def main() -> None:
    """Serve until standard input ends."""
    module, side, case = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to standard error
    if side == "ours":
        from dmlm import workers

        workers.keep_memory()
    import torch  # noqa: F401  # reads the environment of its threads now, before dmlm can change it

    run = importlib.import_module(module).contestant(side, case)
    for _ in sys.stdin:
        print(json.dumps(run()), file=answers, flush=True)


if __name__ == "__main__":
    main()
