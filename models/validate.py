#!/usr/bin/env python3
"""Judges every model of this folder: its contract, and its accuracy on the held-out images.

Reads model.toml and model.onnx as a worker would and runs them with onnxruntime, one image at a time and
all at once. Exits 1 when a file does not keep its contract or an accuracy is below the floor.

    validate.py              a table
    validate.py --json       one object on standard output
"""

import argparse
import json
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent
FLOOR = 0.95
# The same image alone and among others may differ by the order of sums, not by more.
BATCH_TOLERANCE = 1e-4
DATATYPES = {"FP32": "tensor(float)", "INT64": "tensor(int64)"}


class Broken(Exception):
    """The file does not do what its model.toml says."""


def read_held_out():
    rows = np.loadtxt(HERE / "data" / "digits-heldout.csv", delimiter=",", skiprows=1, dtype=np.int64)
    images, labels = rows[:, :-1].astype(np.float32), rows[:, -1]
    if len(rows) < 450 or images.min() < 0 or images.max() > 16 or set(labels) != set(range(10)):
        raise Broken("held-out data: at least 450 images of pixels 0..16 with labels 0..9 expected")
    return images, labels


def check_tensors(session, contract):
    """The tensors that the contract names, less those the worker computes, are exactly the file's."""
    said = {
        "inputs": contract["inputs"],
        "outputs": [tensor for tensor in contract["outputs"] if "argmax_of" not in tensor],
    }
    found = {"inputs": session.get_inputs(), "outputs": session.get_outputs()}
    for side, tensors in said.items():
        # A name or None in place of a dimension is an open one.
        has = [(t.name, t.type, [d if isinstance(d, int) else -1 for d in t.shape]) for t in found[side]]
        wants = [(t["name"], DATATYPES[t["datatype"]], t["shape"]) for t in tensors]
        if has != wants:
            raise Broken(f"{side} are {has}, model.toml says {wants}")
    names = {tensor["name"] for tensor in said["outputs"]}
    for tensor in contract["outputs"]:
        if tensor.get("argmax_of", next(iter(names))) not in names:
            raise Broken(f"output {tensor['name']} is the argmax of {tensor['argmax_of']}, which is no output")


def judge(folder, images, labels):
    contract = tomllib.loads((folder / "model.toml").read_text())
    if contract["name"] != folder.name:
        raise Broken(f"model.toml is named {contract['name']}")
    path = folder / contract["file"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    check_tensors(session, contract)

    def run(batch):
        return session.run(["probabilities"], {"image": batch})[0]

    together = run(images)
    run(images[:1])
    alone, took = [], []
    for image in images:
        start = time.perf_counter()
        alone.append(run(image[None])[0])
        took.append((time.perf_counter() - start) * 1e3)
    if together.shape != (len(images), 10) or not np.allclose(together.sum(axis=1), 1, atol=1e-4):
        raise Broken("probabilities do not sum to 1 over ten classes")
    apart = float(np.abs(together - np.array(alone)).max())
    if apart > BATCH_TOLERANCE:
        raise Broken(f"an image alone and in a batch differ by {apart:.1e}")
    return {
        "images": len(labels),
        "accuracy": round(float((together.argmax(axis=1) == labels).mean()), 4),
        "bytes": path.stat().st_size,
        "p50_ms": round(float(np.median(took)), 3),
    }


def main():
    parser = argparse.ArgumentParser(description="validate the models of this folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    as_json = parser.parse_args().json
    images, labels = read_held_out()
    results, failures = {}, []
    for folder in sorted(path.parent for path in HERE.glob("*/model.toml")):
        try:
            result = results[folder.name] = judge(folder, images, labels)
            if result["accuracy"] < FLOOR:
                failures.append(f"{folder.name}: accuracy {result['accuracy']} is below {FLOOR}")
        except Exception as error:  # whatever a damaged file provokes is a verdict on that file
            failures.append(f"{folder.name}: {error}")
    if not results and not failures:
        failures.append("no model found")
    if as_json:
        print(json.dumps({"models": results, "failures": failures}))
    else:
        for name, r in results.items():
            judged = f"accuracy {r['accuracy']:.4f} of {r['images']}"
            print(f"{name:12} {judged}  {r['bytes']:>9,} bytes  {r['p50_ms']:.3f} ms")
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
