"""LitServe: a model server over HTTP on FastAPI, its front and its workers Python processes."""

import json
import sys

import litserve

import measure

SETTINGS = {
    "best": {
        # ZeroMQ between front and workers in place of a managed queue, which is what the docs name for high throughput.
        "server": {"workers_per_device": 2, "fast_queue": True},
        "run": {"num_api_servers": 2},
        "summary": "two workers, two API servers, fast queue; nothing is stored",
    },
    "defaults": {"server": {}, "run": {}, "summary": "one worker, one API server; nothing is stored"},
}


class Echo(litserve.LitAPI):
    def setup(self, device):
        pass

    def decode_request(self, request):
        return request["input"]

    def predict(self, data):
        return data

    def encode_response(self, output):
        return {"output": output}


def serve(setting, port):
    server = litserve.LitServer(Echo(), accelerator="cpu", **SETTINGS[setting]["server"])
    # A line of log for each request would be measured too.
    run = {"generate_client_file": False, "access_log": False, **SETTINGS[setting]["run"]}
    server.run(host="127.0.0.1", port=port, log_level="info", **run)


def main():
    import http_clients

    args = measure.arguments(__doc__, window=64)
    setting, port = SETTINGS[args.setting], measure.free_port()
    command = [sys.executable, __file__, "serve", args.setting, str(port)]
    body = json.dumps({"input": measure.PAYLOAD}).encode()
    with measure.workers(command, {"Application startup complete": setting["run"].get("num_api_servers", 1)}):
        settings = {"version": litserve.__version__, **setting}
        http_clients.drive(args, port, "/predict", body, settings)


if __name__ == "__main__":
    serve(sys.argv[2], int(sys.argv[3])) if sys.argv[1:2] == ["serve"] else main()
