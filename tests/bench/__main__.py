"""Runs the benchmarks: `make bench`, or `python -m tests.bench [NAME ...] [--repeats N]`.

`fill_gpu` wants a GPU, and runs only where it is named.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

from tests.bench import bridge, fill, gate, merge, order, protocol, resume, server

BENCHMARKS = {
    "fill": fill.measure,
    "bridge": bridge.measure,
    "order": order.measure,
    "gate": gate.measure,
    "merge": merge.measure,
    "protocol": protocol.measure,
    "resume": resume.measure,
    "server": server.measure,
    "fill_gpu": fill.measure_gpu,
}
DEFAULT = [name for name in BENCHMARKS if name != "fill_gpu"]


def main() -> int:
    """Runs what was asked for and writes `results/<name>.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="all but fill_gpu by default")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    for name in options.names or DEFAULT:
        result = {
            "benchmark": name,
            "command": f"python -m tests.bench {name} --repeats {options.repeats}",
            "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
            "date": time.strftime("%Y-%m-%d"),
            **BENCHMARKS[name](options.repeats),
        }
        path = Path(__file__).parent / "results" / f"{name}.json"
        path.write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
