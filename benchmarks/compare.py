"""Compares the compiled kernels of the working tree with those of a git revision.

Both are built for the CPU. Calls alternate between base, working tree ("head") and the base's build a second time
("control", which shows what the comparison is worth here). Where a kernel's bindings are the same, all of them run in
one process with the working tree's Python code; otherwise in a process for each build, with its own Python code. A case
is reported when the 99 % interval of its median pair ratio lies above 1.05 (and above the control's), at three looks in
a row on freshly loaded builds. In one process equal builds differ by 1 %, in several by up to 5 % for calls that memory
bounds, since each has its operands elsewhere. Exit status: 0 nothing slower, 1 something slower, 2 no comparison.

    python benchmarks/compare.py --base main [--kernels "psf_convolve infonce_scores"] [--threads 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from compare_builds import (
    Build,
    CompareError,
    base_build,
    chosen_kernels,
    commit_of,
    kernels_of,
    same_bindings,
    use_tree,
    working_build,
)
from compare_timing import (
    BASE,
    CONTROL,
    HEAD,
    NARROW,
    Comparison,
    NotComparable,
    OneProcess,
    TwoProcesses,
    compared,
    let_threads_sleep,
    looks_until_settled,
    timed,
)
from peers.pair_ratios import OtherWork, PairRatio, keep_freed_memory

if TYPE_CHECKING:
    from compare_cases import Case

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one case: its looks, or why there are none."""

    case: str
    how: str
    looks: list[Comparison]
    problem: str = ""

    @property
    def slower(self) -> bool:
        return bool(self.looks) and self.looks[-1].slower

    @property
    def unsure(self) -> bool:
        """Whether the machine was too busy to tell."""
        return bool(self.looks) and not self.slower and self.looks[-1].head.high - self.looks[-1].head.low > NARROW


class Contest:
    """Looks at cases on freshly loaded builds each time."""

    def __init__(self, base: Build, head: Build, threads: int, scratch: Path) -> None:
        self._builds = {BASE: base, HEAD: head, CONTROL: base}
        self._threads = threads
        self._scratch = scratch
        self._loaded: dict[tuple[str, int], OneProcess | TwoProcesses] = {}

    def outcome(self, case: Case) -> Outcome:
        """All looks at a case: in one process where the bindings allow it."""
        how = OneProcess.how
        base, head = self._builds[BASE], self._builds[HEAD]
        if same_bindings(case.kernel, base.tree, head.tree):
            with contextlib.suppress(NotComparable):
                return Outcome(case.name, how, looks_until_settled(self._look(case, how)))
        how = TwoProcesses.how
        try:
            return Outcome(case.name, how, looks_until_settled(self._look(case, how)))
        except NotComparable as error:
            return Outcome(case.name, how, [], str(error))

    def close(self) -> None:
        for contestants in self._loaded.values():
            contestants.close()

    def _look(self, case: Case, how: str) -> Callable[[float], Comparison]:
        number = 0

        def look(seconds: float) -> Comparison:
            nonlocal number
            timers = self._contestants(how, number).timers(case)
            number += 1
            return compared(timed(timers, seconds, seed=number))

        return look

    def _contestants(self, how: str, look: int) -> OneProcess | TwoProcesses:
        """Those of the first look serve all cases, and so on."""
        if (how, look) not in self._loaded:
            scratch = self._scratch / f"{how} {look}"
            scratch.mkdir()
            if how == OneProcess.how:
                loaded = OneProcess({name: build.extension for name, build in self._builds.items()}, scratch)
            else:
                builds = {name: (build.tree, build.extension) for name, build in self._builds.items()}
                loaded = TwoProcesses(builds, self._threads, scratch)
            self._loaded[how, look] = loaded
        return self._loaded[how, look]


def line_of(outcome: Outcome) -> str:
    """One row of the table."""
    if not outcome.looks:
        return f"{outcome.case:<82} not comparable: {outcome.problem}"
    last = outcome.looks[-1]

    def text(ratio: PairRatio) -> str:
        return f"{ratio.median:5.3f} [{ratio.low:5.3f}, {ratio.high:5.3f}]"

    verdict = "SLOWER" if outcome.slower else "faster" if last.head.high < min(1 / 1.05, last.control.low) else ""
    again = f"look {len(outcome.looks)}" if len(outcome.looks) > 1 else ""
    return (
        f"{outcome.case:<82} {1e3 * last.base_seconds:7.2f} -> {1e3 * last.head_seconds:7.2f} ms"
        f"  {text(last.head)}  control {text(last.control)}  {outcome.how}  {verdict} {again}"
    ).rstrip()


def write_json(path: Path, report: object) -> None:
    """The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False) as file:
        try:
            json.dump(report, file, indent=2)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def as_data(outcome: Outcome) -> dict[str, object]:
    """An outcome for JSON."""
    looks = [
        {**look._asdict(), "head": look.head._asdict(), "control": look.control._asdict()} for look in outcome.looks
    ]
    return {
        "case": outcome.case,
        "how": outcome.how,
        "slower": outcome.slower,
        "problem": outcome.problem or None,
        "looks": looks,
    }


def run(base_revision: str, kernel_names: str | None, threads: int, json_path: Path | None) -> int:
    """Build, compare and report; the exit status."""
    commit = commit_of(ROOT, base_revision)
    kernels = chosen_kernels(kernel_names, kernels_of(ROOT))
    print(f"building base {commit[:10]} and the working tree", flush=True)
    base, head = base_build(ROOT, commit), working_build(ROOT)
    # Not before: `import bitlens` must find this tree's package.
    use_tree(ROOT)
    let_threads_sleep()
    import torch
    from tqdm import tqdm

    from compare_cases import cases_of

    cases = cases_of(kernels)
    missing = sorted(set(kernels) - {case.kernel for case in cases})
    if missing:
        raise CompareError(f"no cases for {', '.join(missing)}: add them to benchmarks/compare_cases.py")
    torch.set_num_threads(threads)
    keep_freed_memory()
    print(f"base {base.description}, head {head.description}, torch {torch.__version__}, {threads} threads")
    outcomes = []
    other = OtherWork()
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        contest = Contest(base, head, threads, Path(scratch))
        stack.callback(contest.close)
        for case in tqdm(cases, unit="case", disable=None):
            outcomes.append(contest.outcome(case))
            tqdm.write(line_of(outcomes[-1]))
    slower = [outcome.case for outcome in outcomes if outcome.slower]
    busy = other.cores()
    print(f"other processes used {busy:.2f} cores meanwhile")
    wide = sum(outcome.unsure for outcome in outcomes)
    if wide:
        print(f"the intervals of {wide} cases stayed wide: a slow-down of theirs may have gone unseen")
    print(f"{len(slower)} of {len(cases)} cases slower" + "".join(f"\n  {name}" for name in slower))
    if json_path is not None:
        write_json(
            json_path,
            {
                "base": commit,
                "head": head.description,
                "threads": threads,
                "other_cores": busy,
                "slower": slower,
                "cases": [as_data(outcome) for outcome in outcomes],
            },
        )
    return 1 if slower else 0


def main() -> int:
    """The exit status of the comparison that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True, help="git revision to compare with")
    parser.add_argument("--kernels", help="names, separated by blanks or commas; default all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the outcome to this file too")
    arguments = parser.parse_args()
    try:
        return run(arguments.base, arguments.kernels, arguments.threads, arguments.json)
    except CompareError as error:
        print(f"bench-compare: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
