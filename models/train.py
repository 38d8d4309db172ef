#!/usr/bin/env python3
"""Trains the two digit classifiers and writes them as ONNX files.

Owns the split of the data, the two networks and the graphs that are shipped. The held-out images are
written first, to data/digits-heldout.csv, and no line below looks at them again: neither network is
selected, stopped or scaled by them. Judging is validate.py's work.

Both graphs take raw pixel values (0..16) and scale them inside, so that no caller has to know how a
model was trained; both count examples in their first dimension, which is left open.

    train.py             everything, about six minutes of processor time
    train.py --only mlp  one step: data, mlp or conv
"""

import argparse
import os
from pathlib import Path

# Sums of floats depend on how the work is cut, so the cut must not depend on the machine's cores.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
HELD_OUT = HERE / "data" / "digits-heldout.csv"
SIDE = 8
CLASSES = 10
PIXEL_MAX = 16.0
SEED = 20_260_401
# Old enough for every runtime that a worker may use, new enough for plain operators only.
OPSET, IR_VERSION = 17, 8


# --- data ---------------------------------------------------------------------------------------


def load_split():
    """The digits as (training images, labels, held-out images, labels), images as rows of 64 pixels.

    Every fourth image of each digit is held out: stratified, and fixed without a generator of random
    numbers whose stream a later version could change.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    held_out = np.zeros(len(labels), dtype=bool)
    for digit in range(CLASSES):
        held_out[np.flatnonzero(labels == digit)[::4]] = True
    images = images.astype(np.float32)
    return images[~held_out], labels[~held_out], images[held_out], labels[held_out]


def write_held_out(images, labels):
    """One image a line: 64 pixels row by row as integers, then the label."""
    header = ",".join([f"p{i}" for i in range(SIDE * SIDE)] + ["label"])
    rows = np.column_stack([images.astype(int), labels])
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    HELD_OUT.write_text("\n".join(lines) + "\n")


# --- graphs -------------------------------------------------------------------------------------


class Graph:
    """Collects nodes and weights in order; each method appends one operator and returns its output's name."""

    def __init__(self):
        self.nodes, self.weights = [], []

    def weight(self, name, value):
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def op(self, kind, name, *inputs, **attributes):
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"{name}/{kind}", **attributes))
        return name

    def dense(self, name, x, weight, bias):
        weight, bias = self.weight(f"{name}.weight", weight), self.weight(f"{name}.bias", bias)
        return self.op("Gemm", name, x, weight, bias)

    def conv3x3(self, name, x, weight, bias):
        """Weights come as jax keeps them (height, width, in, out); ONNX wants (out, in, height, width)."""
        weight = self.weight(f"{name}.weight", np.transpose(weight, (3, 2, 0, 1)))
        bias = self.weight(f"{name}.bias", bias)
        return self.op("Conv", name, x, weight, bias, kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    def save(self, path, name, description):
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", SIDE * SIDE])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", CLASSES])],
            initializer=self.weights,
        )
        model = helper.make_model(
            graph,
            producer_name="straightline",
            doc_string=description,
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
        )
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString(deterministic=True))
        print(f"{path.relative_to(HERE)}: {path.stat().st_size:,} bytes")


# --- pictures -----------------------------------------------------------------------------------

MARGIN = 1
CANVAS = SIDE + 2 * MARGIN


def sample(images, turn, stretch, down=0.0, right=0.0):
    """The images on a canvas with a margin, each turned (radians), stretched and moved (pixels).

    Bilinear, and so a linear map of the pixels: sampling the 64 unit images gives that map as a matrix.
    """
    padded = np.pad(images.reshape(-1, SIDE, SIDE), ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)))
    n, middle = len(padded), (CANVAS - 1) / 2
    turn, stretch, down, right = (np.broadcast_to(v, n)[:, None, None] for v in (turn, stretch, down, right))
    y, x = np.meshgrid(np.arange(CANVAS) - middle, np.arange(CANVAS) - middle, indexing="ij")
    cos, sin = np.cos(turn) / stretch, np.sin(turn) / stretch
    y, x = cos * y - sin * x + middle - down, sin * y + cos * x + middle - right
    y, x = np.clip(y, 0, CANVAS - 1), np.clip(x, 0, CANVAS - 1)
    top, left = (np.minimum(c.astype(int), CANVAS - 2) for c in (y, x))
    y, x, each = y - top, x - left, np.arange(n)[:, None, None]
    upper = padded[each, top, left] * (1 - x) + padded[each, top, left + 1] * x
    lower = padded[each, top + 1, left] * (1 - x) + padded[each, top + 1, left + 1] * x
    return (upper * (1 - y) + lower * y).astype(np.float32)


def bend(images, rng):
    """Each image sampled a little askew, by chance: what a hand might have written as well."""
    n = len(images)
    turn, stretch = rng.uniform(-0.2, 0.2, n), rng.uniform(0.85, 1.15, n)
    down, right = rng.uniform(-0.75, 0.75, (2, n))
    return sample(images, turn, stretch, down, right)


# --- digits: a small perceptron ------------------------------------------------------------------


BENT_COPIES = 9


def train_mlp(images, labels):
    """Fits on every image and some bent copies of it; the copies halve its errors."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(SEED)
    inside = slice(MARGIN, MARGIN + SIDE)
    copies = [bend(images, rng)[:, inside, inside].reshape(images.shape) for _ in range(BENT_COPIES)]
    pipeline = make_pipeline(
        MinMaxScaler(),
        MLPClassifier(hidden_layer_sizes=(128, 64), alpha=1e-3, max_iter=400, random_state=SEED),
    )
    with threadpool_limits(limits=1):
        pipeline.fit(np.concatenate([images, *copies]).astype(np.float64), np.tile(labels, BENT_COPIES + 1))
    return pipeline


def mlp_graph(pipeline):
    scaler, mlp = (step for _, step in pipeline.steps)
    graph = Graph()
    scale = graph.weight("scale", scaler.scale_.astype(np.float32))
    offset = graph.weight("offset", scaler.min_.astype(np.float32))
    x = graph.op("Add", "scaled", graph.op("Mul", "stretched", "image", scale), offset)
    layers = list(zip(mlp.coefs_, mlp.intercepts_))
    for i, (weight, bias) in enumerate(layers, start=1):
        x = graph.dense(f"dense{i}", x, weight.astype(np.float32), bias.astype(np.float32))
        if i < len(layers):
            x = graph.op("Relu", f"relu{i}", x)
    graph.op("Softmax", "probabilities", x, axis=1)
    return graph


# --- digits-conv: a residual network that takes its time -----------------------------------------

# An image costs 18 × VIEWS × CANVAS² × CHANNELS² × BLOCKS multiplications, here 221 million: enough time for
# lanes to be told apart by, in a file that is small because one weight serves every pixel of every view.
VIEWS = [(0.0, 1.0), (-0.15, 0.95), (-0.15, 1.05), (0.15, 0.95), (0.15, 1.05)]  # turn, stretch
CHANNELS, BLOCKS = 64, 6
EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 40, 32, 1e-3, 1e-2


def init_conv(rng):
    """He initialisation; each block starts close to the identity, so that depth needs no batch normalisation."""

    def conv(inputs, gain=1.0):
        std = gain * np.sqrt(2.0 / (9 * inputs))
        weight = rng.normal(0.0, std, (3, 3, inputs, CHANNELS))
        return {"weight": weight.astype(np.float32), "bias": np.zeros(CHANNELS, np.float32)}

    head = rng.normal(0.0, np.sqrt(1.0 / CHANNELS), (CHANNELS, CLASSES))
    return {
        "stem": conv(1),
        "blocks": [{"a": conv(CHANNELS), "b": conv(CHANNELS, gain=1 / BLOCKS)} for _ in range(BLOCKS)],
        "head": {"weight": head.astype(np.float32), "bias": np.zeros(CLASSES, np.float32)},
    }


def train_conv(images, labels):
    """Adam with decoupled weight decay under a rate that warms up and fades, on pictures bent afresh each epoch."""
    import jax
    import jax.numpy as jnp

    def conv(layer, x):
        shape = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, layer["weight"], (1, 1), "SAME", dimension_numbers=shape)
        return y + layer["bias"]

    def logits(params, x):
        x = jax.nn.relu(conv(params["stem"], x))
        for block in params["blocks"]:
            x = jax.nn.relu(x + conv(block["b"], jax.nn.relu(conv(block["a"], x))))
        return x.mean(axis=(1, 2)) @ params["head"]["weight"] + params["head"]["bias"]

    def loss(params, x, y):
        return -jnp.take_along_axis(jax.nn.log_softmax(logits(params, x)), y[:, None], axis=1).mean()

    @jax.jit
    def step(state, t, rate, x, y):
        params, mean, square = state
        value, grad = jax.value_and_grad(loss)(params, x, y)
        norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(grad)))
        grad = jax.tree.map(lambda g: g * jnp.minimum(1.0, 1.0 / norm), grad)
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, grad)
        square = jax.tree.map(lambda s, g: 0.99 * s + 0.01 * g * g, square, grad)

        def update(p, m, s):
            direction = (m / (1 - 0.9**t)) / (jnp.sqrt(s / (1 - 0.99**t)) + 1e-8)
            return p - rate * (direction + WEIGHT_DECAY * p)

        return (jax.tree.map(update, params, mean, square), mean, square), value

    rng = np.random.default_rng(SEED)
    params = init_conv(rng)
    zeros = jax.tree.map(np.zeros_like, params)
    state, t = (params, zeros, zeros), 0
    steps = EPOCHS * (len(labels) // BATCH)
    for epoch in range(EPOCHS):
        order = rng.permutation(len(labels))
        pictures = bend(images / PIXEL_MAX, rng)[..., None]
        losses = []
        # The last few images of a shuffled epoch are left over, so that every batch has one shape.
        for start in range(0, len(labels) - BATCH + 1, BATCH):
            pick = order[start : start + BATCH]
            done = t / steps
            rate = LEARNING_RATE * min(done / 0.1, 0.5 * (1 + np.cos(np.pi * done)))
            t += 1
            state, value = step(state, float(t), rate, pictures[pick], labels[pick])
            losses.append(value)
        print(f"epoch {epoch + 1}/{EPOCHS}: training loss {np.mean(losses):.4f}", flush=True)
    return jax.tree.map(np.asarray, state[0])


def conv_graph(params):
    """Every view of the image goes through the network; the mean of their logits decides."""
    graph = Graph()
    units = np.eye(SIDE * SIDE, dtype=np.float32) / PIXEL_MAX
    views = np.stack([sample(units, *view).reshape(len(units), -1) for view in VIEWS], axis=1)
    views = graph.weight("views.weight", views.reshape(len(units), -1))
    x = graph.op("MatMul", "views", "image", views)
    canvases = graph.weight("canvases.shape", np.array([-1, 1, CANVAS, CANVAS], np.int64))
    x = graph.op("Reshape", "canvases", x, canvases)
    x = graph.op("Relu", "stem.relu", graph.conv3x3("stem", x, **params["stem"]))
    for i, block in enumerate(params["blocks"], start=1):
        y = graph.op("Relu", f"block{i}.a.relu", graph.conv3x3(f"block{i}.a", x, **block["a"]))
        y = graph.op("Add", f"block{i}.sum", x, graph.conv3x3(f"block{i}.b", y, **block["b"]))
        x = graph.op("Relu", f"block{i}", y)
    x = graph.op("Flatten", "features", graph.op("GlobalAveragePool", "average", x))
    x = graph.dense("head", x, **params["head"])
    opinions = graph.weight("opinions.shape", np.array([-1, len(VIEWS), CLASSES], np.int64))
    x = graph.op("Reshape", "opinions", x, opinions)
    x = graph.op("ReduceMean", "verdict", x, axes=[1], keepdims=0)
    graph.op("Softmax", "probabilities", x, axis=1)
    return graph


# --- the program ---------------------------------------------------------------------------------


STEPS = ["data", "mlp", "conv"]


def main():
    parser = argparse.ArgumentParser(description="train the digit classifiers")
    parser.add_argument("--only", choices=STEPS, help="one step in place of all")
    only = parser.parse_args().only
    steps = [only] if only else STEPS
    images, labels, held_out_images, held_out_labels = load_split()
    print(f"{len(labels)} images to train on, {len(held_out_labels)} held out")
    if "data" in steps:
        write_held_out(held_out_images, held_out_labels)
    if "mlp" in steps:
        graph = mlp_graph(train_mlp(images, labels))
        graph.save(HERE / "digits" / "model.onnx", "digits", "Handwritten digits, 8x8: a perceptron of 128 and 64.")
    if "conv" in steps:
        graph = conv_graph(train_conv(images, labels))
        about = f"Handwritten digits, 8x8: a residual network of {BLOCKS} blocks, {CHANNELS} channels."
        graph.save(HERE / "digits-conv" / "model.onnx", "digits-conv", about)


if __name__ == "__main__":
    main()
