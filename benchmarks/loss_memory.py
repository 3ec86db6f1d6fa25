"""Peak memory of the completion loss, forward and backward, against the naive [tokens, vocabulary] form.

    python benchmarks/loss_memory.py [--tokens 4096] [--hidden 576]

Every figure is the rise of the peak resident set of a fresh process over what it held before the loss. The head is
frozen, as under LoRA; the gradient goes to the hidden states.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

from peak_memory import peak_mib, reset_peak_mib

VOCABULARIES = (49152, 151936)
TOP_K = 10


def measure(form: str, tokens: int, hidden: int, vocabulary: int) -> dict[str, float]:
    """Runs one form in this process: peak rise in MiB and seconds."""
    import torch

    from proxykd.losses.head import Head

    torch.manual_seed(0)
    head = torch.nn.Linear(hidden, vocabulary, bias=False).requires_grad_(False)
    states = torch.randn(tokens, hidden, requires_grad=True)
    labels = torch.randint(vocabulary, (tokens,))
    ids = (labels[:, None] + torch.arange(1, TOP_K + 1)) % vocabulary
    before = reset_peak_mib()
    began = time.perf_counter()
    if form == "naive":
        logps = head(states).float().log_softmax(-1)
        top = logps.gather(1, ids)
        loss = -logps.gather(1, labels[:, None]).sum() - top.sum() + torch.log1p(-top.exp().sum(-1)).sum()
    else:
        text, top, tail = Head(head, vocabulary).token_logps(states, labels, ids)
        loss = -text.sum() - top.sum() + tail.sum()
    loss.backward()
    return {"mib": peak_mib() - before, "seconds": time.perf_counter() - began, "gradient": float(states.grad.norm())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--one", nargs=2, metavar=("FORM", "VOCABULARY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        form, vocabulary = arguments.one[0], int(arguments.one[1])
        print(json.dumps(measure(form, arguments.tokens, arguments.hidden, vocabulary)))
        return
    import torch

    print(f"{platform.machine()}, torch {torch.__version__}, {arguments.tokens} tokens, hidden {arguments.hidden}")
    for vocabulary in VOCABULARIES:
        results = {}
        for form in ("naive", "chunked"):
            command = [sys.executable, str(Path(__file__)), "--one", form, str(vocabulary)]
            command += ["--tokens", str(arguments.tokens), "--hidden", str(arguments.hidden)]
            results[form] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        naive, chunked = results["naive"], results["chunked"]
        print(
            f"vocabulary {vocabulary:>6}: naive {naive['mib']:7.0f} MiB {naive['seconds']:5.1f} s | chunked "
            f"{chunked['mib']:6.0f} MiB {chunked['seconds']:5.1f} s | 1/{naive['mib'] / chunked['mib']:.1f} of the "
            f"memory, gradients differ by {abs(naive['gradient'] / chunked['gradient'] - 1):.1e}"
        )


if __name__ == "__main__":
    main()
