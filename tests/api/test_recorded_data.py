"""A run finds its data from any folder, by content, with its columns; shared files name no folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]
VERBS = ("go", "run", "see", "eat", "try", "fit", "act", "cut", "dig", "win")
COLUMNS = ["--set", "data.text_column=text", "--set", "data.label_column=topic"]
MEASURED = ("num_examples", "accuracy", "mcc", "loss")
FILES = ["--set", "data.splits={train: train.csv, dev: ../%s/dev.csv}"]


def words(text: str) -> str:
    """The words of a message that the console wrapped."""
    return " ".join(text.split())


@pytest.fixture(scope="module")
def project(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders A and B with copies of the same tables, and a run in each that names its tables relatively."""
    from colakit.cli.app import main

    folder = tmp_path_factory.mktemp("project")
    rows = [(form.format(a, b), topic) for a in VERBS for b in VERBS[:4] for form, topic in FORMS.items()]
    for name in ("A", "B"):
        (folder / name).mkdir()
        for split, part in (("train", rows[:60]), ("dev", rows[60:]), ("test", rows[40:])):
            lines = "".join(f'"{text}",{topic}\n' for text, topic in part)
            (folder / name / f"{split}.csv").write_text(f"text,topic\n{lines}")
    shutil.copytree(toy / "base", folder / "own-base")
    quick = ["--epochs", "1", "--quiet", "--base", "../own-base", *COLUMNS, "--out", "run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "A")
        assert main(["finetune", *quick, FILES[0], FILES[1] % "A"]) == 0
        patch.chdir(folder / "B")
        assert main(["finetune", *quick, FILES[0], FILES[1] % "B", "--seed", "1"]) == 0
    return folder


FORMS = {"does it {} and {}?": "question", "{} it and {} it!": "order"}


def test_columns_travel_with_the_run(project: Path, colakit: Run) -> None:
    run = project / "A/run"
    code, out, err = colakit("evaluate", run, "--data", project / "A/test.csv", "--json")
    assert code == 0, err
    assert json.loads(out)["splits"]["train"]["models"][0]["metrics"]["num_examples"] == 40
    assert "columns text, topic, recorded by" in words(err)
    code, _, err = colakit("evaluate", run, "--data", project / "A/test.csv", "--set", "data.text_column=txt")
    assert code == 2
    assert "no column 'txt'" in words(err)  # a given column replaces the recorded one


def test_a_run_on_train_alone_is_measured_on_its_validation_split(
    project: Path, colakit: Run, tmp_path: Path
) -> None:
    table, run, other = project / "A/train.csv", tmp_path / "run", tmp_path / "other"
    quick = ["finetune", "--quiet", "--epochs", 1, "--base", project / "own-base", *COLUMNS, "--data", table]
    assert colakit(*quick, "--out", run)[0] == 0
    trained = json.loads((run / "summary.json").read_text())["splits"]["val"]
    code, out, err = colakit("evaluate", run, "--json")
    assert code == 0, err
    assert f"val: {trained['num_examples']} sentences left out of train" in words(err)
    (model,) = json.loads(out)["splits"].pop("val")["models"]
    assert {name: model["metrics"][name] for name in MEASURED} == {name: trained[name] for name in MEASURED}
    code, out, err = colakit("evaluate", run, "--split", "train", "--json")
    assert json.loads(out)["splits"]["train"]["models"][0]["metrics"]["num_examples"] == 60, err
    assert colakit(*quick, "--set", "data.val_seed=1", "--out", other)[0] == 0
    code, out, err = colakit("evaluate", run, other, "--json")
    assert code == 0, err
    assert list(json.loads(out)["splits"]) == ["train"]
    assert "trained on parts of train, and their validation splits differ" in words(err)


def test_a_run_with_dev_is_measured_on_its_validation_split_on_request(project: Path, colakit: Run) -> None:
    run = project / "A/run"
    trained = json.loads((run / "summary.json").read_text())["splits"]["val"]
    code, out, err = colakit("evaluate", run, "--split", "val", "--json")
    assert code == 0, err
    (model,) = json.loads(out)["splits"]["val"]["models"]
    assert {name: model["metrics"][name] for name in MEASURED} == {name: trained[name] for name in MEASURED}
    code, _, err = colakit("evaluate", run, "--data", project / "A/test.csv", "--split", "val")
    assert code == 2
    assert "no split 'val'" in words(err)  # the run was not trained on this table


def test_runs_on_equal_files_are_seeds_of_one_experiment(project: Path, colakit: Run) -> None:
    code, out, err = colakit("evaluate", project / "A/run", project / "B/run", "--json")
    assert code == 0, err
    (group,) = json.loads(out)["splits"]["dev"]["groups"]
    assert group["num_seeds"] == 2


def test_runs_on_different_files_are_refused_and_a_changed_file_is_reported(
    project: Path, colakit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(project, tmp_path / "copy")
    dev = copy / "B/dev.csv"
    dev.write_text(dev.read_text() + '"do it!",order\n')
    monkeypatch.chdir(copy / "B")
    other = ["finetune", "--base", "../own-base", "--epochs", 1, *COLUMNS, FILES[0], FILES[1] % "B"]
    assert colakit(*other, "--out", "new", "--quiet")[0] == 0
    code, _, err = colakit("evaluate", copy / "A/run", copy / "B/new")
    assert code == 2
    assert "Name the data: --data PATH" in words(err)
    dev.write_text(dev.read_text() + '"try it!",order\n')
    code, _, err = colakit("evaluate", copy / "B/new")
    assert code == 0
    assert "dev changed since" in words(err)


def test_a_run_is_resumed_and_evaluated_from_any_folder(project: Path, colakit: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(project / "A/run", tmp_path / "run")
    (copy / "summary.json").unlink()
    code, _, err = colakit("finetune", "--resume", "--out", copy)  # the working folder is another one
    assert code == 0, err
    for name in ("ckpt.pt", "predictions.json", "adapter/colakit.json", "adapter/adapter_config.json"):
        assert (copy / name).read_bytes() == (project / "A/run" / name).read_bytes(), name
    assert colakit("evaluate", copy / "adapter")[0] == 0


def test_shared_files_name_no_folder_of_this_machine(project: Path, colakit: Run, tmp_path: Path) -> None:
    run = project / "A/run"
    quick = ["--epochs", 1, "--transfer-size", 0, "--out", tmp_path / "student"]
    quick += ["--set", "distill.allow_teacher_below_chance=true"]
    assert colakit("distill", "--teacher", run, *quick, "--quiet")[0] == 0
    for path in (*run.glob("adapter/*"), run / "ckpt.pt", *tmp_path.glob("student/*.safetensors")):
        assert str(project).encode() not in path.read_bytes(), path
    assert (
        json.loads((run / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "own-base"
    )
    adapter = shutil.copytree(run / "adapter", tmp_path / "adapter")
    data = ["--data", project / "A/test.csv"]
    code, _, err = colakit("evaluate", adapter, *data)
    assert code == 2
    assert "own-base" in err
    assert "Name the base it was trained on with --base" in words(err)
    assert colakit("evaluate", adapter, *data, "--base", project / "own-base")[0] == 0


def test_folds_are_resumed_with_copies_of_data_and_base_but_not_with_others(
    toy: Path, colakit: Run, tmp_path: Path
) -> None:
    folds = ["finetune", "--folds", 2, "--out", tmp_path / "folds", "--quiet"]
    start = ["--base", toy / "base", "--data", toy / "corpus", "--epochs", 1]
    code, _, err = colakit(*folds, *start)
    assert code == 0, err
    corpus, base = (shutil.copytree(toy / name, tmp_path / name) for name in ("corpus", "base"))
    code, _, err = colakit(*folds, "--resume", "--data", corpus, "--base", base)
    assert code == 0, err
    dev = corpus / "in_domain_dev.tsv"
    dev.write_text(dev.read_text() + "x\t1\t\tOne more.\n")
    code, _, err = colakit(*folds, "--resume", "--data", corpus)
    assert code == 2
    assert "started differently: id_dev was" in words(err)
