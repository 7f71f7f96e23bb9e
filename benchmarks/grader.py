"""Throughput, overhead, hostile rows, oversubscription and kills; one JSON line.

    python benchmarks/grader.py --data rows.jsonl [--data more.jsonl] [--rows 2048] [--output FILE]

``--data`` rows have ``answer`` (a reference). Answers are rewritten references and other rows'
references, so about half are right. Nothing else should run on the machine; the result names the
machine and its load. It has CPU seconds, those of the workers included, and wall seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from grader_rows import HOSTILE, pairs, response, rewritten

from openrlhf_orz.reward import Grader

BARE = """
import json, sys, time, logging
logging.disable(logging.CRITICAL)
from math_verify import parse, verify
rows = json.load(sys.stdin)
begin, cpu = time.perf_counter(), time.process_time()
box = lambda text: parse("\\\\boxed{" + text + "}")
right = [bool(verify(box(gold), box(answer))) for gold, answer in rows]
print(json.dumps({"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu, "right": right}))
"""


def bare(rows: list[tuple[str, str]]) -> dict:
    """Bare Math-Verify with its own time-outs, in the main thread of one process."""
    return json.loads(
        subprocess.run(
            [sys.executable, "-c", BARE], input=json.dumps(rows), capture_output=True, text=True, check=True
        ).stdout
    )


def cpu_of(pids: list[int]) -> float:
    """CPU seconds of these processes and of the children that they have waited for."""
    total = 0.0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        except OSError:
            pass
    return total


def run(grader: Grader, rows: list[tuple[str, str]], threads: int = 16) -> tuple[float, list]:
    with ThreadPoolExecutor(threads) as pool:
        begin = time.perf_counter()
        grades = list(pool.map(lambda row: grader.grade(response(row[1]), row[0]), rows))
        return time.perf_counter() - begin, grades


def warm(workers: int, **options) -> Grader:
    grader = Grader(workers=workers, **options)
    for n in range(4 * workers):
        grader.grade(response(rf"\sqrt{{{n}}}"), rf"\sqrt{{{n + 1}}}")
    return grader


def throughput(rows: list[tuple[str, str]], workers: int) -> dict:
    alone = bare(rows)
    result = {
        "rows": len(rows),
        "bare_rows_per_cpu_second": len(rows) / alone["cpu_seconds"],
        "bare_rows_per_second": len(rows) / alone["seconds"],
    }
    for name, plain in (("rules", False), ("plain", True)):
        with warm(workers, plain=plain) as grader:
            own, children = time.process_time(), cpu_of(grader.pool.pids)
            seconds, grades = run(grader, rows)
            cpu = time.process_time() - own + cpu_of(grader.pool.pids) - children
        result[name] = {
            "rows_per_second": len(rows) / seconds,
            "rows_per_cpu_second": len(rows) / cpu,
            "per_core_against_bare": alone["cpu_seconds"] / cpu,
            "per_core_against_bare_wall": (len(rows) / seconds / workers) / (len(rows) / alone["seconds"]),
            "p50_ms": statistics.median(g.ms for g in grades),
            "agrees_with_bare": sum((g.reward == 1) == right for g, right in zip(grades, alone["right"])) / len(rows),
        }
    return result


def repeated(rows: list[tuple[str, str]], workers: int, samples: int) -> dict:
    """Rollouts: each reference with ``samples`` answers, most of them equal (Zipf over 6 answers)."""
    chance = random.Random(1)
    rollouts = []
    for gold, _ in rows[:: max(1, len(rows) // 64)]:
        answers = [rewritten(gold, chance), *(chance.choice(rows)[0] for _ in range(5))]
        rollouts += [(gold, chance.choices(answers, [1 / (n + 1) ** 2 for n in range(6)])[0]) for _ in range(samples)]
    alone = bare(rollouts)
    with warm(workers) as grader:
        own, children = time.process_time(), cpu_of(grader.pool.pids)
        seconds, _ = run(grader, rollouts)
        cpu = time.process_time() - own + cpu_of(grader.pool.pids) - children
    return {
        "rows": len(rollouts),
        "rows_per_second": len(rollouts) / seconds,
        "per_core_against_bare": alone["cpu_seconds"] / cpu,
    }


def overhead(workers: int) -> dict:
    """Wall time of a verdict on a number, which parses at once: distinct integers, one thread."""
    with warm(workers) as grader:
        times = [grader.grade(response(str(n)), "7.5").ms for n in range(500)]
    return {"p50_ms": statistics.median(times), "p99_ms": sorted(times)[495]}


def hostile(rows: list[tuple[str, str]], workers: int) -> dict:
    chance = random.Random(2)
    planted = list(rows)
    places = chance.sample(range(len(rows)), len(rows) // 100)
    for count, place in enumerate(places):
        planted[place] = (rows[place][0], HOSTILE[count % len(HOSTILE)])
    with warm(workers) as grader:
        without, clean = run(grader, rows)
    with warm(workers) as grader:
        peak, stop = [0], threading.Event()

        def watch() -> None:
            while not stop.wait(0.05):
                for pid in grader.pool.pids:
                    try:
                        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                        peak[0] = max(peak[0], pages * os.sysconf("SC_PAGE_SIZE") >> 20)
                    except OSError:
                        pass

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        seconds, grades = run(grader, planted)
        stop.set()
        # one at a time, so that no time is spent in the queue
        with warm(workers) as fresh:
            alone = [fresh.grade(response(answer), "73").ms for answer in HOSTILE]
    bad = set(places)
    return {
        "rows": len(rows),
        "hostile_rows": len(places),
        "throughput_ratio": without / seconds,
        "same_rewards_for_the_rest": all(
            a.reward == b.reward for n, (a, b) in enumerate(zip(clean, grades)) if n not in bad
        ),
        "hostile_right": sum(grades[n].reward for n in bad),
        "slowest_hostile_seconds": max(alone) / 1e3,
        "slowest_of_the_rest_seconds": max(g.ms for n, g in enumerate(grades) if n not in bad) / 1e3,
        "worker_peak_mib": peak[0],
    }


def oversubscribed(rows: list[tuple[str, str]], workers: int) -> dict:
    with warm(workers) as grader:
        _, calm = run(grader, rows)
    burners = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3 * len(os.sched_getaffinity(0)))
    ]
    try:
        with warm(workers) as grader:
            _, busy = run(grader, rows)
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    return {"rows": len(rows), "same_rewards": [g.reward for g in calm] == [g.reward for g in busy]}


def killed(rows: list[tuple[str, str]], workers: int) -> dict:
    with warm(workers) as grader:
        _, calm = run(grader, rows)
    chance, stop, kills = random.Random(3), threading.Event(), [0]
    with warm(workers) as grader:

        def kill() -> None:
            while not stop.wait(0.1):
                pids = grader.pool.pids
                if len(pids) > 1:  # a keeper that starts is alone, and takes 0.8 s of CPU
                    try:
                        os.kill(chance.choice(pids), signal.SIGKILL)
                        kills[0] += 1
                    except ProcessLookupError:
                        pass

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        _, disturbed = run(grader, rows)
        stop.set()
        killer.join()
    return {
        "rows": len(rows),
        "kills": kills[0],
        "same_verdicts": [g.verdict for g in calm] == [g.verdict for g in disturbed],
    }


def event_loop(rows: list[tuple[str, str]], workers: int) -> dict:
    """The longest stall of an asyncio loop whose threads grade, three bombs among the rows."""
    with warm(workers) as grader:

        async def main() -> float:
            longest, running = 0.0, True

            async def tick() -> None:
                nonlocal longest
                while running:
                    begin = time.perf_counter()
                    await asyncio.sleep(0.001)
                    longest = max(longest, time.perf_counter() - begin - 0.001)

            task = asyncio.create_task(tick())
            chosen = [*rows[:200], ("73", "9" * 1_000_000), ("73", "(x+y+z)^{999}"), ("73", "9^{9^9}")]
            await asyncio.gather(*(asyncio.to_thread(grader.grade, response(a), g) for g, a in chosen))
            running = False
            await task
            return longest

        return {"longest_stall_ms": 1e3 * asyncio.run(main())}


PARTS = ("throughput", "repeated", "overhead", "hostile", "oversubscribed", "killed", "event_loop")


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, help="JSON lines with `answer`; may be repeated")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--output", help="also write the line here")
    options = parser.parse_args()
    rows = pairs(options.data, options.rows)
    result = {
        "benchmark": "grader",
        "cores": len(os.sched_getaffinity(0)),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
        "workers": options.workers,
    }
    small = rows[: min(len(rows), 1024)]
    jobs = {
        "throughput": lambda: throughput(small, options.workers),
        "repeated": lambda: repeated(rows, options.workers, 64),
        "overhead": lambda: overhead(options.workers),
        "hostile": lambda: hostile(rows, options.workers),
        "oversubscribed": lambda: oversubscribed(small, options.workers),
        "killed": lambda: killed(rows[:2000], options.workers),
        "event_loop": lambda: event_loop(rows, options.workers),
    }
    for part in options.parts.split(","):
        result[part] = jobs[part]()
    result["load_after"] = os.getloadavg()[0]
    result["max_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    line = json.dumps(rounded(result))
    print(line)
    if options.output:
        Path(options.output).write_text(line + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
