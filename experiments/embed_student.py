"""Write the student of a run in fp16, as the one that `student.init_from: builtin` names.

    python experiments/embed_student.py runs/start colakit/assets/student

The folder must exist.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from colakit.storage.model_file import STUDENT_NAME, read_student_file, write_student_file


def main() -> None:
    """Write `student.safetensors` with weights of half the size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="run folder of train-scratch")
    parser.add_argument("out", type=Path, help="folder to write to")
    words = parser.parse_args()
    metadata, arrays = read_student_file(words.run / STUDENT_NAME)
    content = metadata.model_dump(mode="json", exclude={"checkpoint_sha256", "format", "colakit"})
    write_student_file(words.out, content, {name: array.astype(np.float16) for name, array in arrays.items()})


if __name__ == "__main__":
    main()
