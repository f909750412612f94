"""Long runs: mixed random work on one ring, on each backend over each driver.

Each of them is a process of its own, with a peer in another; all drivers of a backend run at once.
It fails if something grows, is never released, or arrives wrong.
"""

from __future__ import annotations

import argparse
import json
import secrets
import subprocess
import sys

BACKENDS = ["asyncio", "uvloop", "trio"]
DRIVERS = ["io_uring", "msg_zerocopy", "copy"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="of the whole run (10)")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--drivers", nargs="+", choices=DRIVERS, default=DRIVERS)
    parser.add_argument("--seed", default=secrets.token_hex(4), help="of an earlier run")
    arguments = parser.parse_args()
    seconds = arguments.minutes * 60 / len(arguments.backends)
    print(f"soak: --seed {arguments.seed}, {seconds:.0f} s on each backend", flush=True)
    failed = False
    for backend in arguments.backends:
        command = [sys.executable, "-W", "error", "-m", "tests.soak.run", backend]
        options = ["--seconds", str(seconds), "--seed", arguments.seed]
        runs = {
            driver: subprocess.Popen(
                [*command, driver, *options],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for driver in arguments.drivers
        }
        for driver, run in runs.items():
            output, _ = run.communicate()
            if run.returncode:
                failed = True
                print(f"soak: {backend}, {driver}: FAILED\n{output}", flush=True)
                continue
            print(f"soak: {backend}, {driver}:")
            for name, value in json.loads(output).items():
                print(f"    {name}: {value}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
