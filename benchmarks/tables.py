"""Speed and memory of reading tables: `colakit data check` and `colakit predict` on files of a million rows.

    python benchmarks/tables.py [--rows N] [--formats csv json …] [--repeats N] [--out FILE]

Every command is a process of its own, measured from start to exit. A row has an id, a sentence of the
built-in corpus with its number, and a label. `predict` uses a student so small that reading and writing are
most of its work; it writes a file of the same format. pandas reads the same CSV for comparison.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path

from harness import (
    PEAK_MEMORY,
    Metric,
    Table,
    Variant,
    colakit_command,
    compare,
    make_parser,
    report,
    run_alternating,
    run_command,
)
from workspaces import make_workspace, save_random_student

from colakit.data.builtin.corpus import builtin_corpus
from colakit.data.table_writers import file_writer
from colakit.data.tables import table_format

FORMATS = ("tsv", "csv", "jsonl", "json", "parquet", "csv.gz", "csv.xz", "csv.zst")
ROW_RATE = Metric("rows_per_second", "rows/s", higher_is_better=True)
CHUNK = 10_000  # rows written at a time
COLUMNS = ("id", "text", "label")
PANDAS = "import sys, pandas; pandas.read_csv(sys.argv[1])"


def main() -> None:
    """Measure, print the tables, and write them as JSON."""
    parser = make_parser(__doc__, "tables", repeats=1)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of each file")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    arguments = parser.parse_args()
    tables: list[Table] = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        base, sizes = make_workspace(scratch, "small").base, {"embedding_size": 8, "hidden_size": 8}
        student = save_random_student(base, scratch / "student", **sizes)
        for command in ("data check", "predict"):
            variants = []
            for ending in arguments.formats:
                path = write_table(scratch / f"big.{ending}", arguments.rows)
                run = partial(run_on, command, path, student, arguments.rows)
                variants.append(Variant(ending, "fp32", run))
            if command == "data check" and "csv" in arguments.formats:
                words = [sys.executable, "-c", PANDAS, scratch / "big.csv"]
                variants.append(Variant("csv, pandas", "fp32", partial(run_timed, words, arguments.rows)))
            measurements = run_alternating(variants, arguments.repeats)
            title = f"`colakit {command}` of {arguments.rows:,} rows"
            tables += [
                compare(f"{title}: speed", variants, measurements, ROW_RATE),
                compare(f"{title}: memory", variants, measurements, PEAK_MEMORY),
            ]
    report(tables, vars(arguments), arguments.out)


def write_table(path: Path, num_rows: int) -> Path:
    """Write a table in the format of the file's name, unless it exists."""
    if path.exists():
        return path
    kind, rows = table_format(path.name) or "csv", table_rows(num_rows)
    delimiter = "\t" if kind == "tsv" else ","
    with file_writer(path, kind, COLUMNS, delimiter, quoted=True, ending=path.suffix) as write:
        while chunk := list(islice(rows, CHUNK)):
            write(chunk)
    return path


def table_rows(count: int) -> Iterator[dict[str, object]]:
    """Yield rows with sentences that differ."""
    train = builtin_corpus().split("train")
    examples = zip(train.sentences, train.require_labels().tolist(), strict=True)
    for number, (sentence, label) in zip(range(count), cycle(list(examples)), strict=False):
        yield {"id": number, "text": f'"{sentence}" she said, {number}', "label": label}


def run_on(command: str, path: Path, student: Path, num_rows: int) -> dict[str, float]:
    """Run a command on a table."""
    columns = ["--set", "data.text_column=text", "--set", "data.label_column=label", "--quiet"]
    words = ["--data", path] if command == "data check" else [path, "--model", student, "--device", "cpu"]
    if command == "predict":
        words += ["--output", path.with_name(f"out.{path.name}")]
    return run_timed(colakit_command(*command.split(), *words, *columns), num_rows)


def run_timed(words: list[object], num_rows: int) -> dict[str, float]:
    """Run a command; return rows a second and peak memory."""
    with tempfile.TemporaryDirectory() as cache:
        values = run_command(words, cache=Path(cache))
    return {**values, ROW_RATE.key: num_rows / values["seconds"]}


if __name__ == "__main__":
    main()
