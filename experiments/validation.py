"""Area under the ROC curve of runs on `val`, and their agreement with a teacher there.

    python experiments/validation.py RUN… [--teacher RUN]

Reads the stored predictions of runs with two classes and the same validation split. The area depends on no
threshold and varies less over seeds than MCC. Agreement is the MCC of a run's most probable labels against
the teacher's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from sklearn.metrics import matthews_corrcoef, roc_auc_score

from colakit.inference.model_names import distinct_names
from colakit.storage.run_folder import RunFolder


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--teacher", type=Path, help="run folder of a teacher")
    arguments = parser.parse_args()
    paths = [*arguments.runs, *([arguments.teacher] if arguments.teacher else [])]
    texts = [RunFolder(path).predictions.read_text(encoding="utf-8") for path in paths]
    splits = [json.loads(text)["splits"]["val"] for text in texts]
    if any(split["labels"] != splits[0]["labels"] for split in splits):
        parser.error("the runs have other validation splits")
    probabilities = [np.array(split["probabilities"]) for split in splits]
    predicted = [rows.argmax(axis=1) for rows in probabilities]
    print("| run | ROC AUC | MCC against the teacher |\n|---|---|---|")
    for name, rows, labels in zip(distinct_names(paths), probabilities, predicted, strict=True):
        area = roc_auc_score(splits[0]["labels"], rows[:, 1])
        agreement = f"{matthews_corrcoef(predicted[-1], labels):.3f}" if arguments.teacher else ""
        print(f"| {name} | {area:.3f} | {agreement} |")


if __name__ == "__main__":
    main()
