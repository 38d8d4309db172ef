"""What the Python peers have in common: their arguments, their worker, the clock, and the one JSON object that they print.

A peer says how a job is sent and how its result is waited for. Here several client threads drive that, as a service that
uses the peer would: a thread of one connection that waits for each confirm in turn is no measure of a broker.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque

PAYLOAD = "x" * 1024
#: How long a result may take before its job counts as lost.
patience_s = 30.0
#: A rate's clients are all idle but for one or two; more are there for when results are late.
RATE_CLIENTS = 32
WARM_UP = 320


def arguments(description, window=1000):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--setting", required=True, help="which of the peer's settings")
    parser.add_argument("--broker", default="", help="URL of RabbitMQ")
    parser.add_argument("--state", default="", help="URL of Redis")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--window", type=int, default=window, help="jobs outstanding at once, or HTTP clients")
    parser.add_argument("--mode", choices=["saturate", "rate"], default="saturate")
    parser.add_argument("--rate", type=float, default=200.0, help="jobs a second, on a fixed schedule")
    return parser.parse_args()


@contextlib.contextmanager
def workers(command, ready, **environment):
    """The peer's worker processes: there once each text of `ready` was printed as often as it says, gone afterwards."""
    with tempfile.TemporaryFile() as log:
        environment = {**os.environ, **environment}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=os.path.dirname(__file__))
        try:
            until = time.monotonic() + 60
            while any((printed := _read(log)).count(text) < times for text, times in ready.items()):
                if process.poll() is not None or time.monotonic() > until:
                    sys.exit(f"the workers did not start ({process.poll()}):\n{printed[-2000:]}")
                time.sleep(0.05)
            yield
        finally:
            # Some leave their own children behind when they are asked to end.
            family = descendants(process.pid)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _read(log):
    # Not through the file's position, which the workers share.
    return os.pread(log.fileno(), 1 << 20, 0).decode(errors="replace")


def descendants(root):
    """The process and all it started, directly or not."""
    children = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            children.setdefault(int(_stat(pid)[1]), []).append(int(pid))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _stat(pid):
    with open(f"/proc/{pid}/stat") as file:
        # The name, in parentheses, may hold anything.
        return file.read().rpartition(")")[2].split()


def cpu_s():
    """CPU seconds of this process and all it started, those that have ended included: user and system."""
    ticks = 0
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            ticks += sum(map(int, _stat(pid)[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def drive(args, clients, send, wait, settings):
    """Sends jobs, waits for their results, from several threads at once, and prints what that took.

    `send(payload)` gives a handle, `wait(handle, seconds)` its result or an exception. Every thread gets some jobs through
    before any is timed: connections are then open, the workers' too.
    """
    count = RATE_CLIENTS if args.mode == "rate" else clients
    warm, go = threading.Barrier(count + 1), threading.Barrier(count + 1)
    numbers, took = iter(range(args.jobs)), []
    began = 0.0

    def client(index):
        closed_loop(WARM_UP // count, 4, send, wait, [])
        warm.wait()
        go.wait()
        if args.mode == "rate":
            open_loop(numbers, args.rate, began, send, wait, took)
        else:
            jobs = args.jobs // count + (index < args.jobs % count)
            closed_loop(jobs, max(1, args.window // count), send, wait, took)

    threads = [threading.Thread(target=client, args=[index], daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    warm.wait(timeout=60)
    cpu, began = cpu_s(), time.perf_counter()
    go.wait()
    for thread in threads:
        thread.join()
    report(args, time.perf_counter() - began, took, cpu_s() - cpu, {**settings, "client_threads": count})


def closed_loop(jobs, window, send, wait, took):
    """So many jobs with at most `window` outstanding; the oldest is waited for."""
    outstanding = deque()
    while jobs or outstanding:
        if jobs and len(outstanding) < window:
            outstanding.append((time.perf_counter(), send(PAYLOAD)))
            jobs -= 1
        else:
            finish(*outstanding.popleft(), wait, took)


def open_loop(numbers, rate, began, send, wait, took):
    """Job n is due at n / rate seconds, whatever became of the others, and timed from when it was due."""
    # One C call, so no two threads get the same number.
    while (number := next(numbers, None)) is not None:
        due = began + number / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        finish(due, send(PAYLOAD), wait, took)


def finish(since, handle, wait, took):
    global patience_s
    try:
        result = wait(handle, patience_s)
    except Exception as error:
        # Whatever else is missing has had its time by now.
        patience_s = 1.0
        print(f"lost: {error!r}", file=sys.stderr)
        return
    assert result == PAYLOAD, "a result that is not its job's"
    took.append((time.perf_counter() - since) * 1000)


def report(args, elapsed, took, cpu, settings):
    """`took` holds the milliseconds of each job whose result came."""
    took.sort()

    def at(share):
        return round(took[min(int(len(took) * share), len(took) - 1)], 3) if took else None

    measured = {
        "jobs": args.jobs,
        "jobs_per_s": round(len(took) / elapsed, 1),
        "p50_ms": at(0.50),
        "p99_ms": at(0.99),
        "lost": args.jobs - len(took),
        "cpu_s": round(cpu, 2),
        "settings": settings,
    }
    print(json.dumps(measured))


def free_port():
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
