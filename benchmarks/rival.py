"""One side of a comparison in a process of its own, as its user would run it: `python rival.py MODULE SIDE CASE`.

MODULE has a function `contestant(side, case)` that returns a function without arguments. It is called for each line on
standard input, and what it returns goes to standard output as a line of JSON. Both sides have all cores to themselves,
and PyTorch's own settings for its threads; ours keeps freed memory, as it does in a trial.
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
    import torch  # noqa: F401  # reads the environment of its threads now, before dmlm changes it

    if side == "ours":
        from dmlm import processes

        processes.keep_memory()
    run = importlib.import_module(module).contestant(side, case)
    for _ in sys.stdin:
        print(json.dumps(run()), file=answers, flush=True)


if __name__ == "__main__":
    main()
