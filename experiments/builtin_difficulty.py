"""Difficulty of the built-in corpus for n-gram classifiers and for a base that is not fine-tuned.

    python experiments/builtin_difficulty.py [--base FOLDER]

The first table is the MCC of logistic regressions on word n-grams and sentence length. The second is the
share of dev pairs whose acceptable sentence has the higher summed log-probability under the base, after an
end-of-text token; chance is 50 %.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import matthews_corrcoef

from colakit.data.batches import pad
from colakit.data.builtin.corpus import builtin_corpus, builtin_pairs
from colakit.data.corpora import Split
from colakit.data.tokenizer import SentenceTokenizer
from colakit.data.tokens import plan_inference
from colakit.storage.gpt2 import load_gpt


def main() -> None:
    """Print the n-gram table and, with `--base`, the table of pairs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", type=Path, help="folder of a GPT-2")
    parser.add_argument("--paradigms", action="store_true", help="group by paradigm, not phenomenon")
    arguments = parser.parse_args()
    print("n-grams up to\tid_dev MCC\tood_dev MCC")
    for longest in (1, 2, 3):
        print(longest, *(f"{mcc:.3f}" for mcc in ngram_mcc(longest)), sep="\t")
    if arguments.base:
        print_pairs(arguments.base, by_paradigm=arguments.paradigms)


def ngram_mcc(longest: int) -> list[float]:
    """Return the MCC on id_dev and ood_dev of a logistic regression fitted on train."""
    corpus = builtin_corpus()
    counter = CountVectorizer(ngram_range=(1, longest), token_pattern=r"[\w']+|[.,?]")  # noqa: S106
    counter.fit(corpus.splits["train"].sentences)

    def features(split: Split) -> csr_matrix:
        lengths = [[len(re.findall(r"\w+", sentence)) / 10] for sentence in split.sentences]
        return hstack([counter.transform(split.sentences), np.array(lengths)]).tocsr()

    train = corpus.splits["train"]
    model = LogisticRegression(max_iter=3000).fit(features(train), train.require_labels())
    dev = [corpus.splits[name] for name in ("id_dev", "ood_dev")]
    return [float(matthews_corrcoef(split.require_labels(), model.predict(features(split)))) for split in dev]


def print_pairs(base: Path, *, by_paradigm: bool) -> None:
    """Print the base's accuracy on the dev pairs, in percent."""
    pairs = [pair for pair in builtin_pairs() if pair.split != "train"]
    good = log_probability(base, [pair.sentence_good for pair in pairs])
    bad = log_probability(base, [pair.sentence_bad for pair in pairs])
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for pair, won in zip(pairs, (good > bad).tolist(), strict=True):
        row = f"{pair.phenomenon}: {pair.paradigm}" if by_paradigm else pair.phenomenon
        for name in (row, "all"):
            right[name][pair.split].append(won)
    print("\nphenomenon\tpairs\tid_dev %\tood_dev %")
    for name, splits in sorted(right.items()):
        shares = (f"{100 * np.mean(splits[split]):.1f}" for split in ("id_dev", "ood_dev"))
        print(name, sum(map(len, splits.values())), *shares, sep="\t")


@torch.inference_mode()
def log_probability(base: Path, sentences: Sequence[str]) -> np.ndarray:
    """Return (N,) summed log-probabilities of N sentences, in nats."""
    model = load_gpt(base).eval()
    tokens = SentenceTokenizer.from_base(base, prefix=True).encode(sentences)
    totals = np.empty(len(tokens))
    for index in plan_inference(tokens.lengths, 64):
        input_ids, mask = pad(tokens, index)
        logprobs = model(input_ids).float().log_softmax(-1)[:, :-1]  # (B, T - 1, V)
        of_tokens = logprobs.gather(-1, input_ids[:, 1:, None])[..., 0]
        totals[index] = (of_tokens * mask[:, 1:]).sum(-1).double().numpy()
    return totals


if __name__ == "__main__":
    main()
