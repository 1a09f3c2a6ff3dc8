"""The encoder–decoder of Vaswani et al. 2017 once more, in NumPy loops, as an oracle."""

import numpy as np


def softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def layer_norm(x, params, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return params["scale"] * centred / deviation + params["bias"]


def attention(x, context, params, visible):
    """``visible[i, j]``: whether position i of x sees position j of the context."""
    kernels = {name: params[name]["kernel"] for name in ("query", "key", "value", "output")}
    num_heads, size = kernels["query"].shape[1:]
    y = np.zeros((len(x), kernels["output"].shape[-1]))
    for head in range(num_heads):
        query, key, value = (
            source @ kernels[name][:, head]
            for name, source in (("query", x), ("key", context), ("value", context))
        )
        for i in range(len(x)):
            seen = [j for j in range(len(context)) if visible[i, j]]
            weights = softmax(np.array([query[i] @ key[j] / np.sqrt(size) for j in seen]))
            y[i] += sum(w * value[j] for w, j in zip(weights, seen, strict=True)) @ kernels["output"][head]
    return y


def feed_forward(x, params):
    hidden = np.maximum(x @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0)
    return hidden @ params["output"]["kernel"] + params["output"]["bias"]


def embed(tokens, table, positions):
    d_model = table.shape[1]
    x = np.array([table[token] * np.sqrt(d_model) for token in tokens])
    for row, place in enumerate(range(len(tokens))):
        for i in range(d_model):
            if positions is None:
                angle = place / 10_000 ** ((i - i % 2) / d_model)
                x[row, i] += np.cos(angle) if i % 2 else np.sin(angle)
            else:
                x[row, i] += positions[place, i]
    return x


def stack(x, params, config, visible, context=None):
    scanned = params.get("layers")
    num_layers = (
        len(scanned["feedforward_norm"]["scale"])
        if scanned
        else sum(name.startswith("layer_") for name in params)
    )
    for number in range(num_layers):
        layer = take(scanned, number) if scanned else params[f"layer_{number}"]
        x = block(x, layer, config, visible, context)
    if config.norm_position == "pre":
        x = layer_norm(x, params["final_norm"], config.norm_epsilon)
    return x


def block(x, layer, config, visible, context):
    def residual(x, name, sublayer):
        norm = layer[f"{name}_norm"]
        if config.norm_position == "pre":
            return x + sublayer(layer_norm(x, norm, config.norm_epsilon))
        return layer_norm(x + sublayer(x), norm, config.norm_epsilon)

    x = residual(x, "self_attention", lambda x: attention(x, x, layer["self_attention"], visible))
    if context is not None:
        everything = np.ones((len(x), len(context)))
        x = residual(
            x, "context_attention", lambda x: attention(x, context, layer["context_attention"], everything)
        )
    return residual(x, "feedforward", lambda x: feed_forward(x, layer["feedforward"]))


def take(tree, index):
    return {key: take(value, index) for key, value in tree.items()} if isinstance(tree, dict) else tree[index]


def logits(params, config, source, target):
    """Logits (L, V) of one unpadded pair."""
    table = params["embedding"]["embedding"]
    shifted = [config.decoder_start_id, *target[:-1]]
    learned = "embed_inputs" in params
    positions = [
        params[f"embed_{s}"]["positions"]["embedding"] if learned else None for s in ("inputs", "targets")
    ]
    encoded = stack(
        embed(source, table, positions[0]), params["encoder"], config, np.ones((len(source), len(source)))
    )
    causal = np.tril(np.ones((len(target), len(target))))
    decoded = stack(embed(shifted, table, positions[1]), params["decoder"], config, causal, encoded)
    return decoded @ table.T
