"""Mosec: a model server over HTTP, its front in Rust and its workers Python processes."""

import importlib.metadata
import json
import sys

from mosec import Server, Worker

import measure

SETTINGS = {
    "single": {
        # A process a core.
        "options": {"num": 2},
        "summary": "two workers, a request at a time; nothing is stored",
    },
    "batching": {
        # Up to all 64 clients' requests travel together; one millisecond is the shortest wait for more.
        "options": {"num": 2, "max_batch_size": 64, "max_wait_time": 1},
        "summary": "two workers, up to 64 requests at a time; nothing is stored",
    },
}


class Echo(Worker):
    """Called with one request's data, or with a list of them: both come back as they are."""

    def forward(self, data):
        return data


def serve(setting):
    server = Server()
    server.append_worker(Echo, **SETTINGS[setting]["options"])
    # It reads its address and port from the command line.
    server.run()


def main():
    import http_clients

    args = measure.arguments(__doc__, window=64)
    setting, port = SETTINGS[args.setting], measure.free_port()
    command = [sys.executable, __file__, "serve", args.setting, "--address", "127.0.0.1", "--port", str(port)]
    ready = {"http service is running": 1, "> socket connected": setting["options"]["num"]}
    body = json.dumps({"input": measure.PAYLOAD}).encode()
    with measure.workers(command, ready):
        settings = {"version": importlib.metadata.version("mosec"), **setting}
        http_clients.drive(args, port, "/inference", body, settings)


if __name__ == "__main__":
    serve(sys.argv[2]) if sys.argv[1:2] == ["serve"] else main()
