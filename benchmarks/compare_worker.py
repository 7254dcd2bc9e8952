"""One build's side of `compare.TwoProcesses`: prepares cases and times single calls, as lines of JSON ask for.

python benchmarks/compare_worker.py TREE EXTENSION THREADS
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from compare_builds import use_tree


def main() -> None:
    """Answer until the input ends."""
    tree, extension, threads = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    # Answers have the output to themselves, whatever a library prints.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    use_tree(tree)
    import torch

    from bitlens.kernels import _compiled
    from compare_cases import CASES
    from compare_timing import load_extension
    from peers.pair_ratios import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(threads)
    _compiled._native = load_extension(extension, "build")
    cases = {case.name: case for case in CASES}

    def call() -> object:
        raise RuntimeError("no case was prepared")

    for line in sys.stdin:
        question = json.loads(line)
        try:
            if "prepare" in question:
                call = cases[question["prepare"]].prepare()
                call()
                answer: dict[str, object] = {}
            else:
                begin = time.perf_counter()
                call()
                answer = {"seconds": time.perf_counter() - begin}
        except Exception as error:  # whatever an older package says is the answer
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
