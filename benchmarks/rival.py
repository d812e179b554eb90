"""One side of a comparison in a separate process, as a user would run it: `python rival.py MODULE SIDE CASE`.

MODULE has a function `contestant(side, case)` that returns a function without arguments. That function is called for
each line on standard input; its result is written to standard output as a line of JSON. Each side can use all cores, with
PyTorch's default number of threads. Our side does not return freed memory to the system, as in a trial.
"""

import importlib
import json
import os
import sys


def main() -> None:
    """Measure once for each line on standard input, until it ends."""
    module, side, case = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error
    import torch  # noqa: F401  # reads the environment variables of its threads now, before dmlm changes them

    if side == "ours":
        from dmlm import processes

        processes.keep_memory()
    measure = importlib.import_module(module).contestant(side, case)
    for _ in sys.stdin:
        print(json.dumps(measure()), file=answers, flush=True)


if __name__ == "__main__":
    main()
