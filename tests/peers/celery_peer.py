"""Celery over RabbitMQ: a job is a task with a 1 KiB string, which comes back as its result.

One file is the program, and the application that its worker processes load.
"""

import os
import sys

from celery import Celery, __version__

import measure

#: Threads of the client: of 2, 8 and 16 the quickest.
CLIENTS = 8

DURABLE = {
    # Replicated queues; every publish is confirmed before the next; a task is acknowledged once it has run, and one whose
    # process dies goes back.
    "task_default_queue_type": "quorum",
    "broker_transport_options": {"confirm_publish": True},
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    # The optimising guide: "64, or 128" for many short tasks in place of 4.
    "worker_prefetch_multiplier": 128,
    # A connection for each client thread; with the default of 10 they would wait for one another.
    "broker_pool_limit": 64,
    # Nobody listens to it: one queue and one connection less for each worker.
    "worker_enable_remote_control": False,
}
#: Results in Redis outlive their client. `rpc://` is what the first steps show where the broker is RabbitMQ.
SETTINGS = {
    "durable": {
        "conf": DURABLE,
        "results": None,
        # As many processes as cores, which is the default too; workers do not talk to one another.
        "options": ["--concurrency", "2", "--without-gossip", "--without-mingle", "--without-heartbeat"],
        "summary": "quorum queue, confirms, late acknowledgement, prefetch 128 per process, results in Redis",
    },
    "defaults": {
        "conf": {},
        "results": "rpc://",
        "options": [],
        "summary": "durable classic queue, no confirms, early acknowledgement, transient results over RabbitMQ",
    },
}


def application(setting, broker, state):
    app = Celery("celery_peer", broker=broker, backend=SETTINGS[setting]["results"] or state)
    app.conf.update(SETTINGS[setting]["conf"])
    return app


def main():
    args = measure.arguments(__doc__)
    setting = SETTINGS[args.setting]
    where = {"PEER_SETTING": args.setting, "PEER_BROKER": args.broker, "PEER_STATE": args.state}
    command = [sys.executable, "-m", "celery", "--app", "celery_peer", "worker", "--loglevel", "INFO", *setting["options"]]
    # Sent by name, as from any program that does not have the worker's code.
    client = application(args.setting, args.broker, args.state)
    with measure.workers(command, {" ready.": 1}, **where):
        measure.drive(
            args,
            CLIENTS,
            lambda payload: client.send_task("celery_peer.echo", [payload]),
            lambda handle, seconds: handle.get(timeout=seconds),
            {"version": __version__, "summary": setting["summary"], "conf": setting["conf"]},
        )


if __name__ == "__main__":
    main()
elif "PEER_BROKER" in os.environ:
    app = application(os.environ["PEER_SETTING"], os.environ["PEER_BROKER"], os.environ["PEER_STATE"])

    @app.task(name="celery_peer.echo")
    def echo(payload):
        return payload
