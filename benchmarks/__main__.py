"""Lists the benchmarks, or runs those of speed and memory on this machine, one after the other.

python -m benchmarks                                  # the list
python -m benchmarks all [--bf16] [--out FOLDER]      # runs them

Needs:  the peers: pip install -e '.[dev,peers]'.
Prints: the tables of benchmarks.start, overhead, training, memory, sampling and scaling.
Takes:  about half an hour on two CPU cores.
"""

import argparse
import ast
import subprocess
import sys
from pathlib import Path

IN_FLOAT32 = ("start", "overhead")
IN_EITHER = ("training", "memory", "sampling", "scaling")


def summaries() -> dict[str, str]:
    """The first line of each benchmark's docstring, by name. Imports none of them."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        tree = ast.parse(path.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def list_all() -> None:
    lines = summaries()
    width = max(map(len, lines))
    for name, summary in lines.items():
        print(f"python -m benchmarks.{name:{width}}  {summary}")
    print("\npython -m benchmarks.NAME --help: what it needs, prints and how long it takes")
    print(f"python -m benchmarks all: runs {', '.join((*IN_FLOAT32, *IN_EITHER))}")


def run_all(bf16: bool, out: str) -> None:
    for name in (*IN_FLOAT32, *IN_EITHER):
        print(f"\n## {name}", flush=True)
        words = ["--bf16"] if bf16 and name in IN_EITHER else []
        words += ["--out", out] if name != "overhead" else []
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *words], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["all"], help="runs them; without it, lists all benchmarks")
    parser.add_argument("--bf16", action="store_true", help="run the networks in bfloat16 autocast where possible")
    parser.add_argument("--out", default="benchmark_results", help="folder for the tables as CSV and as plots")
    given = parser.parse_args()
    if given.what == "all":
        run_all(given.bf16, given.out)
    else:
        list_all()


if __name__ == "__main__":
    main()
