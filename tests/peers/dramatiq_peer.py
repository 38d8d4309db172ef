"""Dramatiq over RabbitMQ: a job is a message with a 1 KiB string, which comes back as its result.

One file is the program, and the module that its worker processes load. Dramatiq acknowledges late, and its queues are durable
and its messages persistent, whatever the settings; it has none for quorum queues.
"""

import os
import sys

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

import measure

#: Threads of the client: of 4, 8 and 16 the quickest.
CLIENTS = 16
#: A process a core and eight threads in each are the defaults; written down, since the first depends on the machine.
WORKERS = ["--processes", "2", "--threads", "8"]

SETTINGS = {
    "durable": {
        "confirm": True,
        # The default of two for each thread leaves the worker waiting for the broker between short jobs.
        "environment": {"dramatiq_queue_prefetch": "128"},
        "summary": "classic queue, confirms, late acknowledgement, prefetch 128 per process, results in Redis",
    },
    "defaults": {
        "confirm": False,
        "environment": {},
        "summary": "classic queue, no confirms, late acknowledgement, results in Redis",
    },
}


def application(setting, broker, state):
    broker = RabbitmqBroker(url=broker, confirm_delivery=SETTINGS[setting]["confirm"])
    # Off by default; Redis is the backend that the guide recommends.
    broker.add_middleware(Results(backend=RedisBackend(url=state)))
    dramatiq.set_broker(broker)

    @dramatiq.actor(store_results=True)
    def echo(payload):
        return payload

    return echo


def main():
    args = measure.arguments(__doc__)
    setting = SETTINGS[args.setting]
    where = {"PEER_SETTING": args.setting, "PEER_BROKER": args.broker, "PEER_STATE": args.state}
    command = [sys.executable, "-m", "dramatiq", "dramatiq_peer", *WORKERS]
    echo = application(args.setting, args.broker, args.state)
    with measure.workers(command, {"Worker process is ready for action.": 2}, **where, **setting["environment"]):
        measure.drive(
            args,
            CLIENTS,
            echo.send,
            lambda message, seconds: message.get_result(block=True, timeout=int(seconds * 1000)),
            {"version": dramatiq.__version__, "summary": setting["summary"], "environment": setting["environment"]},
        )


if __name__ == "__main__":
    main()
elif "PEER_BROKER" in os.environ:
    application(os.environ["PEER_SETTING"], os.environ["PEER_BROKER"], os.environ["PEER_STATE"])
