"""Wrong derivatives, off-by-one windows, swapped gates: each must fail a test.

`make mutants`, or `python tests/soak/mutants.py --only gru --json FILE` for a few. Each
mutation of `soak.mutations` is made by itself in a copy of the tree, where the tests
that should catch it run; a failed assertion catches it, an exception or a crash does
not. The report is JSON; the exit code is 1 where a mutation survived.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from soak.mutations import ALL, Mutation

ROOT = Path(__file__).parents[2]
LONGEST_S = 300  # a mutant may go round for ever
_LINES = re.MULTILINE | re.IGNORECASE


class Tree:
    """A copy of the tracked files, with a native core of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        tracked = _output("git", "-C", ROOT, "ls-files", "-z", "src", "tests")
        for name in [*tracked.split("\0")[:-1], "CMakeLists.txt", "pyproject.toml"]:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, path / name)
        nanobind = _output(sys.executable, "-m", "nanobind", "--cmake_dir")
        # -O1 builds in a third of the time.
        _output(
            "cmake",
            *("-S", path, "-B", path / "build"),
            *("-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dnanobind_DIR={nanobind}",
        )

    def build(self) -> None:
        """Compile what has changed; RuntimeError where it does not compile."""
        _output("cmake", "--build", self.path / "build", "--target", "_native")
        (core,) = (self.path / "build").glob("_native.*.so")
        shutil.copy(core, self.path / "src/bptt/kernels")

    def test(self, tests: Iterable[str]) -> tuple[int, str]:
        """Pytest's exit code and what it printed, 124 where it did not end."""
        # Without `site`, no editable install's hook leads back to the original.
        installed = [path for path in sys.path if path.endswith("-packages")]
        words = ["-x", "-q", "-rf", "--tb=no", "-p", "no:cacheprovider"]
        words.append("--hypothesis-seed=0")
        try:
            ran = subprocess.run(
                [sys.executable, "-S", "-m", "pytest", *words, *tests],
                cwd=self.path / "tests",
                env={
                    **os.environ,
                    "COLUMNS": "500",
                    "OMP_NUM_THREADS": "1",
                    "PYTHONPATH": os.pathsep.join([f"{self.path}/src", *installed]),
                },
                capture_output=True,
                text=True,
                timeout=LONGEST_S,
            )
        except subprocess.TimeoutExpired:
            return 124, f"not done after {LONGEST_S} s"
        return ran.returncode, ran.stdout + ran.stderr


def _output(*words: object) -> str:
    ran = subprocess.run([str(w) for w in words], capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"{words[0]} failed:\n{(ran.stdout + ran.stderr)[-2000:]}")
    return ran.stdout.strip()


def mutated(mutation: Mutation, text: str) -> str:
    """The file's text with the mutation; ValueError where it is no longer one."""
    found = text.count(mutation.source)
    if found != 1:
        raise ValueError(
            f"the mutation no longer applies: {mutation.file} has {found} times what "
            f"is replaced for {mutation.words!r}:\n{mutation.source}"
        )
    return text.replace(mutation.source, mutation.replacement)


def outcome(tree: Tree, mutation: Mutation) -> dict[str, Any]:
    """Make the mutation, test, and take it back."""
    started_s = time.monotonic()
    path = tree.path / "src/bptt" / mutation.file
    text = path.read_text()
    path.write_text(mutated(mutation, text))
    caught, by, how = False, "", ""
    try:
        tree.build()
        code, printed = tree.test(mutation.tests)
        failed = re.search(r"^FAILED (.*?) - (assert.*)$", printed, _LINES)
        if code == 1 and failed:
            caught, by, how = True, failed[1], failed[2]
        else:
            how = f"pytest ended with {code}: {printed[-1000:]}" if code else "passed"
    except RuntimeError as error:  # not built
        how = str(error)
    finally:
        path.write_text(text)
    return {
        "file": mutation.file,
        "words": mutation.words,
        "caught": caught,
        "by": by,
        "how": how,
        "seconds": round(time.monotonic() - started_s, 1),
    }


def control(trees: Sequence[Tree], mutations: Sequence[Mutation]) -> None:
    """Without a mutation all of the tests pass, or RuntimeError."""
    tests = list(dict.fromkeys(test for m in mutations for test in m.tests))

    def run(at: int) -> None:
        trees[at].build()
        share = tests[at :: len(trees)]
        code, printed = trees[at].test(share) if share else (0, "")
        if code:
            raise RuntimeError(f"tests fail without a mutation:\n{printed[-3000:]}")

    with ThreadPoolExecutor(len(trees)) as pool:
        list(pool.map(run, range(len(trees))))


def run(mutations: Sequence[Mutation], workers: int) -> list[dict[str, Any]]:
    """The outcome of each mutation, in their order."""
    for mutation in mutations:
        mutated(mutation, (ROOT / "src/bptt" / mutation.file).read_text())
    with tempfile.TemporaryDirectory() as name:
        trees = [Tree(Path(name, str(at))) for at in range(workers)]
        control(trees, mutations)
        idle: SimpleQueue[Tree] = SimpleQueue()
        for tree in trees:
            idle.put(tree)

        def one(mutation: Mutation) -> dict[str, Any]:
            tree = idle.get()
            try:
                found = outcome(tree, mutation)
            finally:
                idle.put(tree)
            said = f"caught by {found['by']}" if found["caught"] else "SURVIVED"
            name = f"{mutation.file}: {mutation.words}"
            sys.stderr.write(f"{found['seconds']:6.1f} s  {name}: {said}\n")
            return found

        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(one, mutations))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where the report goes, not stdout")
    parser.add_argument("--only", default="", help="those with this in file or words")
    parser.add_argument("--part", default="1/1", help="2/5: the second of five parts")
    parser.add_argument("--workers", type=int, default=2, help="mutants at a time")
    given = parser.parse_args()
    part, parts = map(int, given.part.split("/"))
    chosen = [m for m in ALL if given.only in f"{m.file}: {m.words}"]
    chosen = chosen[part - 1 :: parts]
    if not chosen:
        parser.error(f"no mutation has {given.only!r} in its file's name or its words")
    started_s = time.monotonic()
    found = run(chosen, given.workers)
    survived = [f"{f['file']}: {f['words']}" for f in found if not f["caught"]]
    report = {
        "mutations": found,
        "caught": len(found) - len(survived),
        "survived": survived,
        "seconds": round(time.monotonic() - started_s, 1),
    }
    text = json.dumps(report, indent=1) + "\n"
    if given.json:
        given.json.write_text(text)
    else:
        sys.stdout.write(text)
    return int(bool(survived))


if __name__ == "__main__":
    sys.exit(main())
