"""Speed and size of a trained student beside its teacher, on sentences of CoLA's train.

    python benchmarks/trained.py --student RUN --teacher RUN [--data CORPUS] [--out FILE]

The student labels in numpy (as `colakit predict` runs it) and in ONNX Runtime; the teacher labels in every
precision of this machine. Times run from text to label inside one process. Sizes are those of the run's own
file and of the exported ONNX models, which contain the base.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from harness import (
    SENTENCE_RATE,
    Table,
    Variant,
    available_precisions,
    compare,
    make_parser,
    measure,
    report,
    run_alternating,
)
from inference import (
    SIZE,
    STUDENT,
    STUDENT_INT8,
    STUDENT_ONNX,
    Labeller,
    labelling_rates,
    megabytes,
    onnx_files,
)
from workspaces import read_corpus

from colakit.inference.classifier import load_classifier
from colakit.inference.numpy_predictor import StudentPredictor
from colakit.inference.onnx_predictor import OnnxPredictor
from colakit.inference.predictor import Predictor
from colakit.runtime.device import resolve_compute
from colakit.storage.model_file import STUDENT_NAME
from colakit.utils.array_cache import default_cache

STUDENT_SENTENCES = 2**14
TEACHER_SENTENCES = 2**10


def main() -> None:
    """Measure, print the tables, and write them as JSON."""
    parser = make_parser(__doc__, "trained", data=None, repeats=5)
    parser.add_argument("--student", type=Path, required=True, help="run folder of the student")
    parser.add_argument("--teacher", type=Path, required=True, help="run folder of the teacher")
    arguments = parser.parse_args()
    sentences = read_corpus(arguments.data).split("train").sentences
    with tempfile.TemporaryDirectory() as name:
        tables = compare_models(
            arguments.student, arguments.teacher, sentences, Path(name), arguments.repeats
        )
    report(tables, vars(arguments), arguments.out)


def compare_models(
    student: Path, teacher: Path, sentences: Sequence[str], scratch: Path, repeats: int
) -> list[Table]:
    """Return a table of rates and one of sizes; a ratio is how much faster the student is in ONNX int8."""
    files = onnx_files(load_classifier(str(student)), scratch / "student")
    students: dict[str, Labeller] = {STUDENT: StudentPredictor(student)}
    students |= {name: OnnxPredictor(path) for name, path in files.items()}
    rates = [
        Variant(
            name,
            "int8" if name == STUDENT_INT8 else "fp32",
            partial(labelling_rates, label, sentences, STUDENT_SENTENCES),
        )
        for name, label in students.items()
    ]
    for precision in teacher_precisions():
        compute = resolve_compute("auto", precision).with_kernels("auto", default_cache() / "native")
        label = Predictor(load_classifier(str(teacher)), compute)
        run = partial(labelling_rates, label, sentences, TEACHER_SENTENCES)
        rates.append(Variant(f"teacher, {precision}", precision, run, STUDENT_INT8))
    exported = onnx_files(load_classifier(str(teacher)), scratch / "teacher")
    sizes = {
        "student, its own file": student / STUDENT_NAME,
        **files,
        "teacher, ONNX": exported[STUDENT_ONNX],
        "teacher, ONNX int8": exported[STUDENT_INT8],
    }
    return [
        compare(
            "Many sentences, from text to label",
            rates,
            run_alternating(rates, repeats),
            SENTENCE_RATE,
            reference="the student in int8",
            target="200 times the teacher's rate",
        ),
        measure(
            "Files", [Variant(name, "", partial(megabytes, path)) for name, path in sizes.items()], 1, SIZE
        ),
    ]


def teacher_precisions() -> list[str]:
    """Return the precisions of this machine, with int8 on a CPU."""
    on_cpu = resolve_compute("auto", "auto").device.type == "cpu"
    return [*available_precisions(), *(["int8"] if on_cpu else [])]


if __name__ == "__main__":
    main()
