"""One training step of Mamba (forward and backward) at 128, 512 and 2,048 tokens: this project against transformers.

It is compared with `MambaForCausalLM` of transformers without kernels; with the same and its option `use_mambapy`; and,
on CUDA and if they are installed, with the kernels of mamba-ssm.

    python benchmarks/mamba_step.py
"""

import importlib.util
import sys
from collections.abc import Callable

import torch
from harness import VOCABULARY, alternate, device, model, record, row, seconds

from dmlm.model import scan_choice
from dmlm.model.layout import Layout
from dmlm.model.loss import modality_loss
from dmlm.sequence.template import ROLES

SIDES = {"theirs": "transformers without kernels", "mambapy": "transformers with mambapy"}
if torch.cuda.is_available() and importlib.util.find_spec("mamba_ssm"):
    SIDES["mamba-ssm"] = "mamba-ssm kernels"  # in our model, so that only the scan differs


def contestant(side: str, case: str) -> Callable[[], float]:
    """Return a function that does one step and returns its seconds."""
    name, batch, length = case.split()[0], *map(int, case.split()[1:])
    net = model(name, VOCABULARY).to(device()).train()
    scans = dict(scan_choice.candidates(device().type))
    if side != "mamba-ssm":
        scans.pop("mamba-ssm", None)
    scan_name = "mamba-ssm" if side == "mamba-ssm" else next(iter(scans))
    scan_choice.fastest_scan = lambda device_type: (scan_name, scans[scan_name]())
    net.config.use_mambapy = side == "mambapy"
    for layer in net.backbone.layers:
        layer.mixer.use_mambapy = side == "mambapy"
    ids = torch.randint(0, VOCABULARY.text_size, (batch, length), device=device())
    roles = torch.full_like(ids, ROLES.index("T"))
    roles[:, 0] = -1
    layout, lambdas = Layout([length] * batch, device()), torch.ones(len(ROLES), device=device())

    def ours() -> None:
        modality_loss(net, ids.flatten(), roles.flatten(), layout, lambdas)[0].backward()

    def theirs() -> None:
        net(input_ids=ids, labels=ids).loss.backward()

    def step() -> float:
        net.zero_grad()
        return seconds(ours if side in ("ours", "mamba-ssm") else theirs)

    return step


def main() -> None:
    """Measure the cases given on the command line, or the default ones."""
    for case in sys.argv[1:] or ["mamba-tiny 4 128", "mamba-tiny 4 512", "mamba-tiny 1 2048"]:
        name, batch, length = case.split()
        for rival, description in SIDES.items():
            ours, theirs = alternate(__file__, case, ("ours", rival), rounds=5)
            target = {"theirs": 20.0, "mamba-ssm": 0.8}.get(rival)
            title = f"{name} training step, {batch} x {length} tokens, against {description}"
            record([row(title, ours, theirs, "s", target)])


if __name__ == "__main__":
    main()
