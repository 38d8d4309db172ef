"""HTTP clients that cost as little as Python can: requests made once, answers cut at their length, nothing parsed twice.

A full client library would be the slowest part of what is measured, and it shares the two cores with the server.
"""

import asyncio
import re
import time

import uvloop

import measure

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Client(asyncio.Protocol):
    """One connection that is kept, with at most one request on it."""

    def __init__(self):
        self.answer, self.done = b"", None

    def connection_made(self, transport):
        self.transport = transport

    def ask(self, request, done):
        """Sends it; `done(status and headers, body)` follows, unless the connection breaks."""
        self.done = done
        self.transport.write(request)

    def data_received(self, data):
        self.answer += data
        head, found, body = self.answer.partition(b"\r\n\r\n")
        if found and len(body) == int(LENGTH.search(head)[1]):
            self.answer = b""
            self.done(head, body)


def drive(args, port, path, body, settings):
    """What `measure.drive` is for the brokers: the window is the number of clients."""
    uvloop.run(_drive(args, port, path, body, settings))


async def _drive(args, port, path, body, settings):
    head = f"POST {path} HTTP/1.1\r\nhost: peer\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    request, loop = head.encode() + body, asyncio.get_running_loop()
    clients = [(await loop.create_connection(Client, "127.0.0.1", port))[1] for _ in range(args.window)]
    await closed_loop(measure.WARM_UP, clients, request)
    cpu, began = measure.cpu_s(), time.perf_counter()
    if args.mode == "rate":
        took = await open_loop(args.jobs, args.rate, clients, request)
    else:
        took = await closed_loop(args.jobs, clients, request)
    measure.report(args, time.perf_counter() - began, took, measure.cpu_s() - cpu, {**settings, "clients": args.window})


async def closed_loop(jobs, clients, request):
    """Each client asks again as soon as it is answered."""
    run, left = Run(jobs), jobs

    def ask(client):
        nonlocal left
        if left:
            left -= 1
            run.ask(client, request, time.perf_counter(), lambda: ask(client))

    for client in clients:
        ask(client)
    return await run.end()


async def open_loop(jobs, rate, clients, request):
    """Job n is due at n / rate seconds and timed from then, also when it has to wait for a client."""
    run, idle, overdue = Run(jobs), list(clients), []
    began = time.perf_counter()

    def free(client):
        idle.append(client)
        if overdue:
            ask(overdue.pop(0))

    def ask(due):
        client = idle.pop()
        run.ask(client, request, due, lambda: free(client))

    for number in range(jobs):
        due = began + number / rate
        await asyncio.sleep(due - time.perf_counter())
        ask(due) if idle else overdue.append(due)
    return await run.end()


class Run:
    """Jobs under way and the milliseconds that the answered ones took; one that is refused is lost."""

    def __init__(self, jobs):
        self.left, self.took, self.ended = jobs, [], asyncio.Event()

    def ask(self, client, request, since, after):
        def done(head, body):
            if head.startswith(b"HTTP/1.1 200 ") and measure.PAYLOAD.encode() in body:
                self.took.append((time.perf_counter() - since) * 1000)
            self.left -= 1
            if not self.left:
                self.ended.set()
            after()

        client.ask(request, done)

    async def end(self):
        try:
            await asyncio.wait_for(self.ended.wait(), measure.patience_s)
        except TimeoutError:
            pass
        return self.took
