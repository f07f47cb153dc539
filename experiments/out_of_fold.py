"""Differences between trainings out of fold: each sentence of train, by the model that left it out.

    python experiments/out_of_fold.py FOLDS FOLDS…

Each FOLDS is a folder of `colakit finetune --folds K` with the same data. Prints MCC and accuracy of each,
and the difference of each to the first, paired over sentences, with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from colakit.evaluation.metrics import Bootstrap, Interval, mcnemar
from colakit.evaluation.tables import format_interval
from colakit.storage.run_folder import RunFolder


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folds", nargs="+", type=Path, help="folders of finetune --folds")
    folders = parser.parse_args().folds
    read = [RunFolder(folder).read_predictions()["out_of_fold"] for folder in folders]
    labels, predictions = read[0][0], [predicted for _, predicted in read]
    if not all(np.array_equal(labels, own) for own, _ in read):
        parser.error("the folders have other labels")
    sample = Bootstrap(labels, predictions, int(labels.max()) + 1)

    def cells(accuracy: Interval, mcc: Interval) -> str:
        return f"{format_interval(accuracy, 100, 2)} | {format_interval(mcc, 1, 3)}"

    print(f"| {len(labels):,} sentences | accuracy % | MCC |\n|---|---|---|")
    for index, folder in enumerate(folders):
        print(f"| {folder.name} | {cells(sample.mean('accuracy', [index]), sample.mean('mcc', [index]))} |")
    print("\n| difference | accuracy, points | MCC | McNemar p |\n|---|---|---|---|")
    for index, folder in enumerate(folders[1:], start=1):
        accuracy, mcc = (sample.difference(name, [index], [0]) for name in ("accuracy", "mcc"))
        p = mcnemar(labels, predictions[index], predictions[0])
        print(f"| {folder.name} - {folders[0].name} | {cells(accuracy, mcc)} | {p:.2g} |")


if __name__ == "__main__":
    main()
