"""The model card of an exported folder: metadata for the hub, results, and how to use the files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colakit import __version__
from colakit.errors import ColakitError
from colakit.evaluation.calibration import Calibration
from colakit.evaluation.metrics import Interval, Metrics
from colakit.evaluation.tables import Table, format_interval, markdown_rows

LICENCES = {  # of bases that have no model card here
    "builtin": "mit",
    "smollm2": "apache-2.0",
    **dict.fromkeys(("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"), "mit"),
    "distilgpt2": "apache-2.0",
}
HUB_NAMES = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class CardFacts:
    """What a model card says.

    Attributes:
        name: of the folder.
        kind: of the model, such as `distill (lstm)`.
        base: name of its base; None if unknown.
        licence: SPDX id.
        corpus, split: what was measured.
        metrics, intervals: on the split, by the model's threshold.
        seeds: mean, sd and number of seeds of `accuracy` and `mcc`, if the run is one of several.
        threshold, temperature: of the run.
        folded: whether argmax is the threshold's decision.
    """

    name: str
    kind: str
    base: str | None
    licence: str
    corpus: str
    split: str
    label_names: tuple[str, ...]
    metrics: Metrics
    intervals: Mapping[str, Sequence[float]]
    calibration: Calibration
    seeds: Mapping[str, Mapping[str, Any]]
    threshold: float | None
    temperature: float
    folded: bool
    library: str
    parity: Sequence[Table]


def base_licence(base: str | None, given: str | None) -> str:
    """Return the licence of a model tuned from `base`.

    Args:
        given: by the user; replaces that of the base.

    Raises:
        ColakitError: if there is none.
    """
    if given:
        return given
    licence = LICENCES.get(str(base).removeprefix("openai-community/"))
    readme = Path(str(base)).expanduser() / "README.md"
    if licence is None and base and readme.is_file():
        from huggingface_hub import ModelCard

        licence = ModelCard.load(readme, ignore_metadata_errors=True).data.license
    if not licence:
        raise ColakitError(
            f"the base {base} has no licence for the model card",
            hint="Name it with --license, by its SPDX id in small letters, such as mit or apache-2.0.",
        )
    return str(licence)


def hub_name(base: str | None) -> str | None:
    """Return the hub id of a base, or None if it is none or may be a local folder."""
    if base is None or base == "builtin" or Path(base).expanduser().exists():
        return None
    return HUB_NAMES.get(base) or (base if HUB_NAME.fullmatch(base) else None)


def model_card(facts: CardFacts) -> str:
    """Return the content of README.md: YAML metadata, and the text."""
    from huggingface_hub import EvalResult, ModelCardData

    values = {"matthews_correlation": facts.metrics.mcc, "accuracy": facts.metrics.accuracy}
    keys = {"matthews_correlation": "mcc", "accuracy": "accuracy"}
    results = []
    for metric, value in values.items():
        seeds = facts.seeds.get(keys[metric])
        named = f"{metric}, mean over {seeds['seeds']} seeds" if seeds else metric
        results.append(
            EvalResult(
                task_type="text-classification",
                dataset_type=re.sub(r"[^a-z0-9]+", "-", facts.corpus.lower()).strip("-"),
                dataset_name=facts.corpus,
                dataset_split=facts.split,
                metric_type=metric,
                metric_name=named,
                metric_value=round(seeds["mean"] if seeds else value, 4),
                metric_args={k: round(v, 4) for k, v in seeds.items() if k != "mean"} if seeds else None,
            )
        )
    data = ModelCardData(
        license=facts.licence,
        base_model=hub_name(facts.base),
        library_name=facts.library,
        pipeline_tag="text-classification",
        tags=["colakit", "onnx"],
        metrics=list(values),
        model_name=facts.name,
        eval_results=results,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_body(facts)}"


def _body(facts: CardFacts) -> str:
    metrics, calibration = facts.metrics, facts.calibration
    accuracy = _interval(metrics.accuracy, facts.intervals["accuracy_interval"], 100, 2)
    mcc = _interval(metrics.mcc, facts.intervals["mcc_interval"], 1, 3)
    base = f", base `{Path(facts.base).name}`" if facts.base else ""
    if facts.threshold is None:
        rule = "The most probable label is predicted."
    else:
        rule = f"`{facts.label_names[1]}` is predicted from a probability of {facts.threshold:.4f}"
        rule += (
            "; a bias moves this threshold to 0.5, so the largest logit decides, and the softmax of the "
            "logits is no longer calibrated."
            if facts.folded
            else ". Programs that take the largest logit decide otherwise: see `argmax MCC` below; an export "
            "with `--fold-threshold` suits them."
        )
    seeds = [
        f"- {name} over {each['seeds']} seeds: {each['mean']:.3f} ± {each['sd']:.3f}"
        for name, each in facts.seeds.items()
    ]
    (parity, columns, rows), (_, speed_columns, speeds) = facts.parity
    lines = [
        f"# {facts.name}",
        "",
        f"A classifier of sentences into {', '.join(f'`{name}`' for name in facts.label_names)}: "
        f"{facts.kind}{base}. Written by colakit {__version__}.",
        "",
        "## Results",
        "",
        f"On {facts.split} of {facts.corpus} ({metrics.num_examples:,} sentences), with 95 % intervals:",
        "",
        f"- accuracy {accuracy} %; the most frequent label has {100 * metrics.majority_rate:.2f} %",
        f"- Matthews correlation {mcc}",
        *seeds,
        f"- calibration: negative log-likelihood {format_interval(calibration.nll, 1, 3)}, Brier score "
        f"{format_interval(calibration.brier, 1, 3)}, expected calibration error "
        f"{format_interval(calibration.ece, 1, 3)}",
        "",
        "## Decision",
        "",
        f"The logits are divided by the temperature {facts.temperature:.3f}, fitted on the validation split. "
        f"{rule}",
        "",
        "## Parity",
        "",
        f"{parity}; `colakit` is the trained run itself, on one CPU.",
        "",
        *markdown_rows(columns, rows),
        "",
        *markdown_rows(speed_columns, speeds),
        "",
        "## Limits",
        "",
        "Accuracy and calibration are unknown for other languages, lengths and topics than those of the "
        "training data. The intervals are over sentences; another seed may differ by more.",
        "",
        "## Use",
        "",
        "```sh",
        'echo "The cat sleeps." | colakit predict --model .    # needs colakit[export]',
        "```",
        "",
        *_snippet(facts),
    ]
    return "\n".join(lines) + "\n"


def _snippet(facts: CardFacts) -> list[str]:
    if facts.library == "peft":
        return [
            "```python",
            "from peft import PeftModel",
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
            "",
            'base = AutoModelForSequenceClassification.from_pretrained("base")  # its head is zero',
            'model = PeftModel.from_pretrained(base, ".").eval()',
            'tokenizer = AutoTokenizer.from_pretrained(".")',
            "```",
        ]
    if facts.library != "transformers":
        return ["`web/` labels sentences in a browser and in Node; its `README.md` has the commands."]
    return [
        "```python",
        "from transformers import pipeline",
        "",
        'classify = pipeline("text-classification", model=".")',
        'classify("The cat sleeps.", truncation=True)',
        "```",
        "",
        "`web/` labels sentences in a browser and in Node; its `README.md` has the commands.",
    ]


def _interval(value: float, ends: Sequence[float], factor: float, digits: int) -> str:
    return format_interval(Interval(value, *ends), factor, digits)
