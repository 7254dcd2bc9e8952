"""Source trees and builds for `compare.py`: the working tree's, and that of a git revision, kept by commit."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class CompareError(RuntimeError):
    """Something to tell the user in a line: a revision, a kernel or a build that is not there."""


class Build(NamedTuple):
    """A source tree and the extension module made from it."""

    description: str
    tree: Path
    extension: Path


def commit_of(root: Path, revision: str) -> str:
    """The full hash of a revision."""
    if not revision:
        raise CompareError("no revision to compare with: make bench-compare BASE=main")
    try:
        return _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}").strip()
    except subprocess.CalledProcessError as error:
        raise CompareError(f"unknown revision {revision!r} in {root}") from error


def kernels_of(tree: Path) -> list[str]:
    """The list of kernels in CMakeLists.txt."""
    found = re.search(r"set\(BITLENS_KERNELS\s([^)]*)\)", (tree / "CMakeLists.txt").read_text())
    if found is None:
        raise CompareError(f"no list BITLENS_KERNELS in {tree / 'CMakeLists.txt'}")
    return found[1].split()


def chosen_kernels(text: str | None, known: list[str]) -> list[str]:
    """The kernels named in `text`, separated by blanks or commas; all of them for None."""
    if text is None:
        return known
    names = text.replace(",", " ").split()
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        problem = f"no kernel {', '.join(unknown)}" if unknown else "KERNELS is empty"
        raise CompareError(f"{problem}; there are {', '.join(known)}")
    return names


def same_bindings(kernel: str, first: Path, second: Path) -> bool:
    """Whether a kernel's arguments mean the same in two trees: the same declarations, comments apart."""
    folder = Path("csrc", "kernels", kernel)
    names = (folder / "bind.cpp", folder / "kernel.h", Path("csrc", "common", "bind.h"))
    return all(_code_of(first / name) == _code_of(second / name) for name in names)


def base_build(root: Path, commit: str) -> Build:
    """The build of a commit, made once under build/bench_compare/<commit>."""
    folder = root / "build" / "bench_compare" / commit
    with _one_at_a_time(folder.parent):
        tree = folder / "source"
        if not tree.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            archive = subprocess.run(["git", "-C", root, "archive", commit], check=True, capture_output=True).stdout
            # Renamed when complete, so that an interruption leaves no half of a tree.
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                with tarfile.open(fileobj=io.BytesIO(archive)) as files:
                    files.extractall(Path(scratch, "source"), filter="data")
                Path(scratch, "source").rename(tree)
        build = folder / _build_name()
        built = build / "built"
        if not built.exists():
            _compile(tree, build, f"base {commit[:10]}")
            built.touch()
        return Build(commit[:10], tree, _extension_in(build))


def working_build(root: Path) -> Build:
    """The build of the working tree as it is now; only what changed is compiled."""
    folder = root / "build" / "bench_compare" / "working_tree" / _build_name()
    with _one_at_a_time(folder.parents[1]):
        _compile(root, folder, "the working tree")
    return Build(_git(root, "describe", "--always", "--dirty").strip(), root, _extension_in(folder))


def use_tree(tree: Path) -> None:
    """Let `import bitlens` find the package of this source tree, whatever is installed.

    An editable installation puts a finder of its own before the path.
    """
    sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__name__.startswith("ScikitBuild")]
    sys.path.insert(0, str(tree / "python"))
    import bitlens

    if not Path(bitlens.__file__).resolve().is_relative_to(tree.resolve()):
        raise CompareError(f"bitlens comes from {bitlens.__file__}, not from {tree}")


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", root, *arguments], check=True, capture_output=True, text=True).stdout


def _code_of(path: Path) -> str | None:
    """A C++ file without comments and layout; None where there is no such file."""
    if not path.exists():
        return None
    return " ".join(re.sub(r"//[^\n]*|/\*.*?\*/", " ", path.read_text(), flags=re.DOTALL).split())


def _build_name() -> str:
    return f"build-{sys.implementation.cache_tag}"


def _extension_in(folder: Path) -> Path:
    found = sorted(folder.glob("_native.*.so"))
    if len(found) != 1:
        raise CompareError(f"need one extension module in {folder}, got {len(found)}")
    return found[0]


def _compile(tree: Path, folder: Path, name: str) -> None:
    """Configure and build the CPU extension, with the tools of this virtual environment first."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    cmake, ninja = shutil.which("cmake", path=path), shutil.which("ninja", path=path)
    if cmake is None:
        raise CompareError("no cmake to build with")
    import pybind11

    cache = folder / "CMakeCache.txt"
    if cache.exists() and f"CMAKE_CACHEFILE_DIR:INTERNAL={folder}\n" not in cache.read_text():
        shutil.rmtree(folder)  # the tree was moved, and CMake refuses to build
    folder.mkdir(parents=True, exist_ok=True)
    configure = [
        *(cmake, "-S", tree, "-B", folder),
        *(("-G", "Ninja") if ninja else ()),
        "-DCMAKE_BUILD_TYPE=Release",
        "-DBITLENS_CUDA=OFF",
        "-DBITLENS_TEST_MODULES=OFF",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    log = folder / "build.log"
    with log.open("w") as output:
        for command in (configure, [cmake, "--build", folder, "--target", "_native", "--parallel"]):
            options = {"stdout": output, "stderr": subprocess.STDOUT, "env": {**os.environ, "PATH": path}}
            if subprocess.run(command, check=False, **options).returncode != 0:
                errors = [line for line in log.read_text().splitlines() if "error" in line.lower()]
                message = f": {errors[0].strip()}" if errors else ""
                raise CompareError(f"{name} does not build{message} (all of it in {log})")


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Another comparison in the same tree waits for its turn to build."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
