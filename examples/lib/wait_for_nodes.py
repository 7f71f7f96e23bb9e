"""Waits until a Ray cluster has enough machines: wait_for_nodes.py ADDRESS NODES SECONDS. Status 1 if it never has."""

import sys
import time

import ray


def main(address: str, nodes: int, seconds: float) -> int:
    end, found = time.monotonic() + seconds, -1
    while True:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
            alive = sum(node["Alive"] for node in ray.nodes())
        except ConnectionError:
            alive = 0
        if alive != found:
            found = alive
            print(f"[launch] {found} of {nodes} machines", flush=True)
        if found >= nodes:
            return 0
        if time.monotonic() > end:
            print(
                f"[launch] only {found} of {nodes} machines after {seconds:g} s: start workers, or set NODES, WAIT_S",
                file=sys.stderr,
            )
            return 1
        time.sleep(2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
