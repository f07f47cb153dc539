"""`data corrupt`: a table of real sentences of running text and a corrupted copy of each."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from colakit.api.pretrain import with_texts
from colakit.api.pretrain_real_fake import LABELS, load_real_fake_data
from colakit.api.session import Session
from colakit.data.table_writers import file_writer
from colakit.data.tables import table_format
from colakit.errors import ColakitError
from colakit.utils.files import replacing

NAMES = {"text": "sentence", "label": "label"}  # of the columns
COLUMNS = tuple(NAMES.values())


def corrupt(session: Session, *, texts: Sequence[Path] = ()) -> dict[str, Any]:
    """Write a table of real sentences and a corrupted copy of each, with a header; return their number.

    Its format follows from the name of the file: TSV, CSV, JSON lines, JSON or Parquet, also packed.
    """
    if session.out is None:
        raise ColakitError("data corrupt: no file given", hint="Name one with --out, such as real-fake.tsv.")
    file_format = table_format(session.out.name)
    if file_format is None:
        raise ColakitError(f"--out {session.out}: is not the name of a table", hint="Name it FILE.tsv.")
    changes = {"pretrain": with_texts(session.settings.pretrain, texts)}
    session.resolved = replace(session.resolved, settings=session.settings.model_copy(update=changes))
    task = load_real_fake_data(session)
    rows = [
        {"sentence": sentence, "label": LABELS[label]}
        for split in (task.train, task.val)
        for sentence, label in zip(split.sentences, split.require_labels().tolist(), strict=True)
    ]
    if not session.dry_run:
        session.out.parent.mkdir(parents=True, exist_ok=True)
        delimiter = "\t" if file_format == "tsv" else ","
        with replacing(session.out) as path:
            writer = file_writer(
                path, file_format, COLUMNS, delimiter, quoted=True, ending=session.out.suffix
            )
            with writer as write:
                write(rows)
    verb = "would write" if session.dry_run else "wrote"
    session.reporter.result(f"{verb} {len(rows):,} sentences, half of them corrupted, to {session.out}")
    columns = " ".join(f"--set data.{kind}_column={name}" for kind, name in NAMES.items())
    session.reporter.result(
        f"next: colakit train-scratch --data {shlex.quote(str(session.out))} {columns} --epochs 1 "
        "--set train_scratch.budget=epochs"
    )
    return {"file": str(session.out), "sentences": len(rows)}
