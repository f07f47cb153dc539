"""Gradients of an adapter in bf16 and int8 beside those in fp32, layer by layer.

    python experiments/gradients.py RUN [--data CORPUS] [--sentences N] [--blocks]

RUN is a run of `finetune`. The first N sentences of train are one batch, dropout is off, and the adapter,
norms and head train. A row has the cosine and the relative error ‖g - g₃₂‖/‖g₃₂‖ of the gradients of one
layer's A and B together: mean and worst over the blocks, or with `--blocks` each block.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from colakit.config.data import DataSettings
from colakit.data.batches import Examples, micro_batches
from colakit.data.loading import load_dataset
from colakit.inference.classifier import load_classifier
from colakit.models.gpt.model import set_dropout
from colakit.models.lora import lora_layers
from colakit.runtime.device import prepare_cpu, resolve_compute
from colakit.training.objectives import classification
from colakit.utils.array_cache import default_cache
from colakit.utils.console import Reporter

PRECISIONS = ("bf16", "int8")
Gradients = dict[str, Tensor]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="run folder of finetune")
    parser.add_argument("--data", default="builtin", help="corpus, as of colakit")
    parser.add_argument("--sentences", type=int, default=32)
    parser.add_argument("--blocks", action="store_true", help="print each block")
    arguments = parser.parse_args()
    prepare_cpu()
    data = DataSettings(path=arguments.data)
    train = load_dataset(data, default_cache(), Reporter(), before_fetch=None).split("train")
    sentences, labels = train.sentences[: arguments.sentences], train.require_labels()[: arguments.sentences]
    exact = gradients(arguments.run, sentences, labels, "fp32")
    others = [gradients(arguments.run, sentences, labels, precision) for precision in PRECISIONS]
    print(f"| layer | layers | {' | '.join(f'{name}, cosine | worst | error' for name in PRECISIONS)} |")
    print(f"|---|---:|{'---:|---:|---:|' * len(PRECISIONS)}")
    rows = defaultdict(list)
    for name in exact:
        if name != "all":
            rows[name if arguments.blocks else re.sub(r"\.\d+\.", ".*.", name)].append(name)
    for row, names in [*rows.items(), ("all", ["all"])]:
        cells = " | ".join(compare([(exact[name], other[name]) for name in names]) for other in others)
        print(f"| {row} | {len(names)} | {cells} |")


def gradients(run: str, sentences: tuple[str, ...], labels: np.ndarray, precision: str) -> Gradients:
    """Return the gradients of a batch by adapted layer, and those of all trained parameters as `all`."""
    classifier = load_classifier(run)
    model = classifier.model
    trained = ("lora_", "norm", "ln_", "score", "classifier")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in trained))
    compute = resolve_compute("cpu", precision).with_kernels("auto", default_cache() / "native")
    compute.place(model)
    set_dropout(model, 0.0)
    for _, layer in lora_layers(model):
        layer.dropout = nn.Identity()
    examples = Examples(classifier.encode(sentences), labels.astype(np.int64))
    (batch,) = micro_batches(examples, np.arange(len(sentences)), len(sentences))
    with compute.autocast():
        loss = classification(model.train(), batch).total
    loss.backward()
    by_layer = {name: flat([layer.lora_a, layer.lora_b]) for name, layer in lora_layers(model)}
    return by_layer | {"all": flat(parameter for parameter in model.parameters() if parameter.requires_grad)}


def flat(parameters: Iterable[Tensor]) -> Tensor:
    """Return the gradients of the parameters that have one, as one vector."""
    return torch.cat([p.grad.float().flatten() for p in parameters if p.grad is not None])


def compare(pairs: list[tuple[Tensor, Tensor]]) -> str:
    """Return mean and smallest cosine, and the mean relative error, of (exact, other) gradients."""
    cosines = [torch.cosine_similarity(exact, other, dim=0).item() for exact, other in pairs]
    errors = [((other - exact).norm() / exact.norm()).item() for exact, other in pairs]
    return f"{np.mean(cosines):.4f} | {min(cosines):.4f} | {np.mean(errors):.3f}"


if __name__ == "__main__":
    main()
