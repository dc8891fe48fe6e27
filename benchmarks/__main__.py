"""All measurements of training and sampling on this machine, one after the other.

python -m benchmarks [--bf16] [--out FOLDER]
"""

import argparse
import subprocess
import sys

IN_FLOAT32 = ("start", "overhead")
IN_EITHER = ("training", "memory", "sampling", "scaling")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bf16", action="store_true", help="the networks in bfloat16 autocast")
    parser.add_argument("--out", default="benchmark_results", help="folder for the tables as CSV, and their plots")
    given = parser.parse_args()
    for name in (*IN_FLOAT32, *IN_EITHER):
        print(f"\n## {name}", flush=True)
        words = ["--bf16"] if given.bf16 and name in IN_EITHER else []
        words += ["--out", given.out] if name != "overhead" else []
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *words], check=True)


if __name__ == "__main__":
    main()
