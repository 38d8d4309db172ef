#!/usr/bin/env python3
"""A StraightLine client in plain Python: pika and msgpack are all it needs.

It submits jobs to the exchange `sl.jobs`, reads results from a reply queue of its own, and drops what it has seen:
a result may come twice, so a client keeps the ids it still waits for.

    pip install pika msgpack
    python client.py amqp://guest:guest@localhost:5672/%2f jobs.jsonl > results.jsonl

Each line of the input is {"model": …, "inputs": [{"name", "datatype", "shape", "data"}, …]}, optionally with "class",
"deadline_ms" and "id". Each line of the output is {"id", "status", "lane", "reason", "output" or "error"}. Exits 0 when
every job succeeded.
"""

import json
import sys
import time
import uuid

import msgpack
import pika
import pika.exceptions

WINDOW = 500  # jobs under way at once
PATIENCE_S = 300  # how long to wait for any further result


class BadInput(Exception):
    """A line that is no job."""


def read_jobs(lines):
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            job = json.loads(line)
        except ValueError as error:
            raise BadInput(f"line {number} is not JSON: {error}") from error
        for field in ("model", "inputs"):
            if not isinstance(job, dict) or field not in job:
                raise BadInput(f'line {number} has no "{field}"')
        yield job


def publish(channel, user, reply_to, job):
    """Publishes one job; an unroutable or refused one raises."""
    job_id = job.get("id") or str(uuid.uuid4())
    headers = {"sl-model": job["model"]}
    if "deadline_ms" in job:
        headers["sl-deadline-ms"] = job["deadline_ms"]
    channel.basic_publish(
        exchange="sl.jobs",
        routing_key=job.get("class", "normal"),
        body=msgpack.packb({"version": 1, "input": {"tensors": job["inputs"]}}),
        properties=pika.BasicProperties(
            delivery_mode=2,
            content_type="application/msgpack",
            correlation_id=job_id,
            reply_to=reply_to,
            user_id=user,
            headers=headers,
        ),
        mandatory=True,
    )
    return job_id


def values(tensor):
    """The values of an output tensor: raw little-endian bytes on the wire."""
    formats = {"FP32": "f", "FP64": "d", "INT64": "q", "INT32": "i", "UINT8": "B", "BOOL": "?"}
    view = memoryview(tensor["data"])
    return view.cast(formats[tensor["datatype"]]).tolist()


def printable(result):
    line = {key: result.get(key) for key in ("id", "status", "lane", "reason")}
    if "error" in result:
        line["error"] = result["error"]
    tensors = (result.get("output") or {}).get("tensors", [])
    line["output"] = {tensor["name"]: values(tensor) for tensor in tensors}
    return json.dumps(line)


def main(parameters, lines):
    connection = pika.BlockingConnection(parameters)
    user = parameters.credentials.username
    submitting = connection.channel()
    submitting.confirm_delivery()
    replies = connection.channel()
    # The name says whose it is: the dispatcher refuses a reply queue that belongs to another login. The arguments are
    # those that StraightLine's own clients use; a reply queue that nobody reads goes away after an hour.
    reply_to = f"reply.{user}.{uuid.uuid4()}"
    replies.queue_declare(
        reply_to,
        durable=True,
        arguments={"x-expires": 3_600_000, "x-max-length": 200_000, "x-overflow": "reject-publish"},
    )
    replies.basic_qos(prefetch_count=WINDOW)
    waiting = {}
    failed = repeated = 0
    last = time.monotonic()

    def receive(channel, method, properties, body):
        nonlocal failed, repeated, last
        channel.basic_ack(method.delivery_tag)
        # Not waited for, or seen already: the first one was the result.
        if waiting.pop(properties.correlation_id, None) is None:
            repeated += 1
            return
        last = time.monotonic()
        result = msgpack.unpackb(body)
        failed += result["status"] != "succeeded"
        print(printable(result))

    replies.basic_consume(reply_to, receive, exclusive=True)
    jobs = read_jobs(lines)
    submitted, more = 0, True
    while more or waiting:
        while more and len(waiting) < WINDOW:
            job = next(jobs, None)
            if job is None:
                more = False
                break
            job_id = job.setdefault("id", str(uuid.uuid4()))
            waiting[job_id] = True  # before it is published: its result may come at once
            publish(submitting, user, reply_to, job)
            submitted += 1
        connection.process_data_events(time_limit=0.05)
        if time.monotonic() - last > PATIENCE_S:
            sys.exit(f"{len(waiting)} jobs have no result after {PATIENCE_S} s of silence")
    replies.queue_delete(reply_to)
    connection.close()
    print(f"{submitted} jobs, {failed} failed, {repeated} results dropped as repeated", file=sys.stderr)
    return 1 if failed else 0


def run(url, path):
    """Runs `main`; what a user can mend is one line on standard error and code 1."""
    try:
        parameters = pika.URLParameters(url)
    except (ValueError, TypeError, IndexError):  # whichever way pika stumbles over it
        return "the URL is none: use amqp://USER:PASSWORD@HOST:PORT/VHOST, such as amqp://guest:guest@localhost:5672/%2f"
    try:
        lines = sys.stdin if path == "-" else open(path, encoding="utf-8")
    except OSError as error:
        return f"{path}: {error.strerror}"
    try:
        with lines:
            return main(parameters, lines)
    except UnicodeDecodeError as error:
        return f"{path} is not UTF-8: {error}"
    except BadInput as error:
        return f"{path}: {error}; jobs of earlier lines run on"
    except (pika.exceptions.UnroutableError, pika.exceptions.NackError):
        return "the broker took a job back: is StraightLine running over it, and is there room in its queues?"
    except pika.exceptions.ProbableAuthenticationError:
        return "the broker does not know this user or password"
    except (pika.exceptions.AMQPError, OSError) as error:
        return f"the broker cannot be used: is it at the host and port of the URL? ({error!r})"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(run(sys.argv[1], sys.argv[2]))
