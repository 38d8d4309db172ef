"""A model behind Flask, for the local lane's second way: any HTTP server that speaks the Open Inference Protocol will do.

    pip install flask onnxruntime
    MODEL=models/digits python workers/examples/flask_app.py 9000

and in the worker's configuration:

    [worker.server]
    url = "http://127.0.0.1:9000"
    models = ["digits"]

The folder in MODEL holds model.onnx and model.toml, as `straightline --models` has them. Flask's own server is for one
machine; put gunicorn or waitress in front of `app` for more.
"""

import os
import sys
import tomllib
from pathlib import Path

import numpy
import onnxruntime
from flask import Flask, jsonify, request

NUMPY = {
    "FP32": numpy.float32,
    "FP64": numpy.float64,
    "INT32": numpy.int32,
    "INT64": numpy.int64,
    "UINT8": numpy.uint8,
    "BOOL": numpy.bool_,
}

folder = Path(os.environ.get("MODEL", "models/digits"))
contract = tomllib.loads((folder / "model.toml").read_text())
session = onnxruntime.InferenceSession(folder / contract.get("file", "model.onnx"))
app = Flask(__name__)


class BadRequest(ValueError):
    """What the caller got wrong: no other server would take it either."""


class NotHere(LookupError):
    """What another server may have."""


@app.errorhandler(BadRequest)
def bad_request(error):
    return jsonify(error=str(error)), 400


@app.errorhandler(NotHere)
def not_here(error):
    return jsonify(error=str(error)), 404


@app.get("/v2/health/live")
@app.get("/v2/health/ready")
def health():
    return jsonify(ready=True)


@app.get("/v2/models/<name>")
def metadata(name):
    known(name)
    return jsonify(name=name, platform="onnx", inputs=contract["inputs"], outputs=contract["outputs"])


@app.post("/v2/models/<name>/infer")
def infer(name):
    known(name)
    asked = request.get_json(silent=True)
    if not isinstance(asked, dict) or not isinstance(asked.get("inputs"), list):
        raise BadRequest("the body is no inference request: inputs is missing")
    given = {tensor["name"]: array(tensor) for tensor in asked["inputs"]}
    missing = [tensor["name"] for tensor in contract["inputs"] if tensor["name"] not in given]
    if missing or len(given) != len(contract["inputs"]):
        raise BadRequest(f"inputs are {sorted(given)}: {name} takes {[t['name'] for t in contract['inputs']]}")
    computed = [tensor for tensor in contract["outputs"] if "argmax_of" not in tensor]
    names = [tensor["name"] for tensor in computed]
    try:
        found = dict(zip(names, session.run(names, given)))
    except onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument as error:
        raise BadRequest(str(error).splitlines()[0]) from error
    for tensor in contract["outputs"]:
        if "argmax_of" in tensor:
            found[tensor["name"]] = found[tensor["argmax_of"]].argmax(axis=-1).astype(numpy.int64)
    wanted = [output["name"] for output in asked.get("outputs", [])] or list(found)
    return jsonify(
        model_name=name,
        id=asked.get("id", ""),
        outputs=[
            {
                "name": tensor["name"],
                "datatype": tensor["datatype"],
                "shape": list(found[tensor["name"]].shape),
                "data": found[tensor["name"]].ravel().tolist(),
            }
            for tensor in contract["outputs"]
            if tensor["name"] in wanted
        ],
    )


def known(name):
    if name != contract["name"]:
        raise NotHere(f"model {name} is not here: {contract['name']} is")


def array(tensor):
    try:
        return numpy.array(tensor["data"], dtype=NUMPY[tensor["datatype"]]).reshape(tensor["shape"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadRequest(f"input {tensor.get('name', '?')} is no tensor: {error}") from error


if __name__ == "__main__":
    app.run(host="127.0.0.1", port=int(sys.argv[1]) if len(sys.argv) > 1 else 9000, threaded=True)
