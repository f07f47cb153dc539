"""Every command on the toy base, and the message, hint and exit code of every error."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from colakit.cli.app import app
from colakit.config.resolve import resolve
from colakit.data import sentences

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def runs(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One finished run of each training command."""
    from colakit.cli.app import main

    folder = tmp_path_factory.mktemp("runs")
    shared = ["--base", str(toy / "base"), "--data", str(toy / "corpus"), "--epochs", "3", "--quiet"]
    found = {name: folder / name for name in ("finetune", "distill", "train-scratch")}
    for name, path in found.items():
        teacher = ["--teacher", str(found["finetune"] / "ckpt.pt")] if name == "distill" else []
        assert main([name, *shared, *teacher, "--out", str(path)]) == 0
    return found


def test_help_lists_every_command(colakit: Run) -> None:
    code, out, _ = colakit("--help")
    assert code == 0
    commands = ("generate", "finetune", "distill", "train-scratch", "evaluate", "plot", "predict", "doctor")
    for name in (*commands, "data", "config"):
        assert name in out


def test_without_a_command_the_help_is_shown(colakit: Run) -> None:
    code, out, err = colakit()
    assert code == 2
    assert "finetune" in out + err


def test_help_does_not_import_torch() -> None:
    script = (
        "import sys; from colakit.cli.app import main; main(['--help']); "
        "heavy = {'torch', 'transformers', 'numpy', 'sklearn', 'matplotlib', 'yaml', 'rich.progress'}; "
        "heavy &= set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_builds_no_validators() -> None:
    script = (
        "import sys; from colakit.cli.app import main; main(['--help']); "
        "from colakit.config.section import Section; "
        "built = [each.__name__ for each in Section.__subclasses__() if each.__pydantic_complete__]; "
        "sys.exit(f'built {built}' if built else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_predicting_with_a_student_imports_neither_torch_nor_transformers(
    runs: dict[str, Path],
) -> None:
    script = (
        "import sys; from colakit.cli.app import main; "
        f"main(['predict', '--model', {str(runs['distill'])!r}]); "
        "heavy = {'torch', 'transformers', 'sklearn', 'scipy', 'matplotlib'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input="The cat sleeps.\n", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 2  # the header and one sentence


@pytest.mark.parametrize(
    ("command", "flags"),
    {
        "generate": "--base --adapter --prompt --max-new-tokens --temperature --top-k --top-p --num-samples "
        "--rank",
        "finetune": "--base --data --rank --alpha --lora-dropout --target-modules --layers-to-transform "
        "--epochs --lr --batch-size --folds --resume",
        "distill": "--teacher --temperature --kd-weight --cell --hidden-size --epochs --lr --batch-size "
        "--resume",
        "train-scratch": "--cell --hidden-size --epochs --lr --batch-size --resume",
        "evaluate": "--data --split --group-by --annotations",
        "plot": "--format",
        "predict": "--model --batch-size",
        "data check": "--strict",
        "data write": "--data --out --dry-run",
    }.items(),
)
def test_documented_flags_exist(
    command: str, flags: str, colakit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = colakit(*command.split(), "--help")
    assert code == 0
    common = "--config --set --out --seed --device --precision --json --dry-run --quiet"
    for flag in f"{flags} {common}".split():
        assert flag in out, flag


@pytest.mark.parametrize(
    "words",
    [
        ["finetune", "--base", "builtin", "--base", "nowhere"],
        ["finetune", "--base", "nowhere", "--out", "a", "--rank", "8", "--out=b"],
        ["evaluate", "run", "--seed", "1", "--seed", "2"],
        ["data", "check", "--data", "a", "--data", "b"],
    ],
    ids=" ".join,
)
def test_last_value_of_a_repeated_option_is_used_with_a_warning(words: list[str], colakit: Run) -> None:
    _, out, err = colakit(*words)
    option = next(word for word in words if words.count(word) == 2 or word == "--out")
    said = f"warning: {option} was given 2 times; the last value is used"
    assert " ".join(err.split()).count(said) == 1
    assert "warning" not in out
    assert not out


def test_options_of_several_values_and_switches_may_be_repeated(toy: Path, colakit: Run) -> None:
    words = ["--set", "seed=1", "--set", "lora.rank=2", "--dry-run", "--dry-run", "--json"]
    words += ["--target-modules", "c_fc", "--target-modules", "c_attn"]
    code, out, err = colakit("finetune", "--base", toy / "base", "--data", toy / "corpus", *words)
    assert code == 0, err
    settings = json.loads(out)["settings"]
    assert "the last value is used" not in err
    assert (settings["seed"], settings["lora"]["rank"]) == (1, 2)
    assert settings["lora"]["target_modules"] == ["c_fc", "c_attn"]


def test_every_command_has_help_and_a_summary() -> None:
    names = [command.name for command in app.registered_commands]
    assert len(names) == 15  # and the groups data and config
    assert all(command.help for command in app.registered_commands)


def test_evaluate_writes_the_printed_comparison(
    runs: dict[str, Path], toy: Path, colakit: Run, tmp_path: Path
) -> None:
    paths = list(runs.values())
    code, out, err = colakit(
        "evaluate", *paths, "--data", toy / "corpus", "--out", tmp_path / "eval", "--json"
    )
    assert code == 0, err
    answer = json.loads(out)
    assert answer == json.loads((tmp_path / "eval/evaluation.json").read_text())
    assert set(answer["splits"]) == {"id_dev", "ood_dev", "dev"}
    dev = answer["splits"]["dev"]
    assert [row["model"] for row in dev["models"]] == ["finetune", "distill", "train-scratch"]
    assert len(dev["pairs"]) == 3
    for row in dev["models"]:
        assert row["mcc"]["low"] <= row["mcc"]["value"] <= row["mcc"]["high"]
        assert row["metrics"]["majority_rate"] >= 0.5
    summary = json.loads((runs["distill"] / "summary.json").read_text())
    split = next(row for row in answer["splits"]["id_dev"]["models"] if row["model"] == "distill")
    assert split["metrics"]["mcc"] == pytest.approx(summary["splits"]["id_dev"]["mcc"])


def test_model_given_twice_counts_once(runs: dict[str, Path], toy: Path, colakit: Run) -> None:
    tuned = runs["finetune"]
    code, out, err = colakit("evaluate", tuned, tuned / "adapter", "--data", toy / "corpus", "--json")
    assert code == 0, err
    groups = json.loads(out)["splits"]["dev"]["groups"]
    assert [group["num_seeds"] for group in groups] == [1, 1]
    assert [group["mcc_sd"] for group in groups] == [None, None]


def test_evaluate_accepts_adapter_folders_and_single_splits(
    runs: dict[str, Path], toy: Path, colakit: Run
) -> None:
    adapter = runs["finetune"] / "adapter"
    code, out, err = colakit("evaluate", adapter, "--data", toy / "corpus", "--split", "ood_dev", "--json")
    assert code == 0, err
    assert set(json.loads(out)["splits"]) == {"ood_dev"}


@pytest.mark.parametrize("model", ["{}", "{}/ckpt.pt", "{}/adapter"])
def test_evaluate_uses_the_recorded_data(model: str, runs: dict[str, Path], toy: Path, colakit: Run) -> None:
    code, out, err = colakit("evaluate", model.format(runs["finetune"]), "--json")
    assert code == 0, err
    assert json.loads(out)["corpus"] == str(toy / "corpus")
    assert f"data: {toy}/corpus, recorded by {model.format(runs['finetune'])}" in err


def test_data_option_overrides_the_recorded_data(
    runs: dict[str, Path], toy: Path, colakit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(toy / "corpus", copy)
    (tmp_path / "data.yaml").write_text(f"data: {{path: {copy}}}\n")
    (tmp_path / "other.yaml").write_text("data: {val_fraction: 0.2}\nlora: {rank: 4}\n")
    for flags in (["--data", copy], ["--set", f"data.path={copy}"], ["--config", tmp_path / "data.yaml"]):
        code, out, err = colakit("evaluate", runs["finetune"], *flags, "--json")
        assert code == 0, err
        assert json.loads(out)["corpus"] == str(copy)
        assert "recorded by" not in err
    _, out, _ = colakit("evaluate", runs["finetune"], "--config", tmp_path / "other.yaml", "--json")
    assert json.loads(out)["corpus"] == str(toy / "corpus")
    monkeypatch.setenv("COLAKIT_DATA__PATH", str(copy))
    assert json.loads(colakit("evaluate", runs["finetune"], "--json")[1])["corpus"] == str(copy)


def test_runs_on_different_data_need_the_data_option(
    runs: dict[str, Path], toy: Path, colakit: Run, tmp_path: Path
) -> None:
    copy, run = tmp_path / "copy", tmp_path / "run"
    shutil.copytree(toy / "corpus", copy)
    with (copy / "in_domain_dev.tsv").open("a", encoding="utf-8") as file:
        file.write("toy\t1\t\tOne more sentence.\n")
    train = ["train-scratch", "--base", toy / "base", "--data", copy, "--epochs", 1, "--out", run]
    assert colakit(*train)[0] == 0
    for extra in ([], ["--dry-run"]):
        code, _, err = colakit("evaluate", runs["finetune"], run, *extra)
        assert code == 2
        assert f"was trained on {toy}/corpus, {run} on {copy}" in " ".join(err.split())
        assert "--data PATH" in err
    assert colakit("evaluate", runs["finetune"], run, "--data", copy)[0] == 0
    shutil.rmtree(copy)
    code, _, err = colakit("evaluate", run)
    assert code == 2
    assert f"{copy}: file not found" in err
    assert "--data replaces it" in " ".join(err.split())


def test_model_without_recorded_data_uses_that_of_the_others(
    runs: dict[str, Path], toy: Path, colakit: Run, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(runs["finetune"] / "adapter", foreign)
    (foreign / "colakit.json").unlink()
    code, out, err = colakit("evaluate", foreign, runs["finetune"], "--base", toy / "base", "--json")
    assert code == 0, err
    assert json.loads(out)["corpus"] == str(toy / "corpus")
    code, _, err = colakit("evaluate", foreign, "--dry-run")
    assert code == 2
    assert "CoLA is not downloaded" in err


@pytest.mark.parametrize("form", ["png", "svg", "pdf"])
def test_plot_writes_curves_and_comparisons(
    form: str, runs: dict[str, Path], colakit: Run, tmp_path: Path
) -> None:
    code, out, err = colakit(
        "plot", *runs.values(), "--format", form, "--out", tmp_path / "figures", "--json"
    )
    assert code == 0, err
    figures = [Path(path) for path in json.loads(out)["figures"]]
    expected = {run / f"plots/curves.{form}" for run in runs.values()}
    expected |= {tmp_path / f"figures/{name}.{form}" for name in ("overlay", "comparison")}
    assert set(figures) == expected
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert all(path.read_bytes().startswith(starts[form]) for path in figures)
    code, out, err = colakit("plot", runs["finetune"], "--format", form)
    assert "replaced " in out


def test_predict_labels_a_file_as_tsv_and_as_json_lines(
    runs: dict[str, Path], colakit: Run, tmp_path: Path
) -> None:
    sentences = ["The cat sleeps.", "Cat the sleeps.", "", "Ünïcödé “quotes”\tand a tab"]
    file = tmp_path / "sentences.txt"
    file.write_bytes("\r\n".join(sentences).encode("utf-8-sig"))
    code, out, err = colakit("predict", file, "--model", runs["distill"])
    assert code == 0, err
    rows = list(csv.reader(out.splitlines(), delimiter="\t"))[1:]
    assert [row[3] for row in rows] == sentences
    assert all(len(row) == 4 and sum(map(float, row[1:3])) == pytest.approx(1, abs=1e-5) for row in rows)
    _, jsonl, _ = colakit("predict", file, "--model", runs["distill"], "--jsonl")
    parsed = [json.loads(line) for line in jsonl.splitlines()]
    assert [row["sentence"] for row in parsed] == sentences
    assert [row["label"] for row in parsed] == [row[0] for row in rows]


def test_batch_size_never_changes_a_prediction(runs: dict[str, Path], colakit: Run, tmp_path: Path) -> None:
    file = tmp_path / "sentences.txt"
    file.write_text("".join(f"The {'old ' * i}cat sleeps.\n" for i in range(40)))
    outputs = [
        colakit("predict", file, "--model", runs["distill"], "--batch-size", size)[1] for size in (1, 7, 128)
    ]
    columns = [[row.split("\t")[1] for row in out.splitlines()[1:]] for out in outputs]
    for column in columns[1:]:
        # six printed digits; sums of other shapes may differ in the last one
        assert [float(p) for p in column] == pytest.approx([float(p) for p in columns[0]], abs=2e-6)


def test_student_uses_bf16_only_on_request(runs: dict[str, Path], colakit: Run, tmp_path: Path) -> None:
    file = tmp_path / "sentences.txt"
    file.write_text("The cat sleeps.\nCat the sleeps.\nThe old cat sees the dogs.\n")
    told, probs = ["predict", file, "--model", runs["distill"], "--device", "cpu"], {}
    for precision in ("auto", "fp32", "bf16"):
        code, out, err = colakit(*told, "--precision", precision)
        assert code == 0, err
        probs[precision] = [float(row.split("\t")[1]) for row in out.splitlines()[1:]]
    assert probs["auto"] == probs["fp32"] != probs["bf16"]
    assert probs["bf16"] == pytest.approx(probs["fp32"], abs=0.01)


def test_generate_continues_a_prompt_and_untrained_adapters_change_nothing(toy: Path, colakit: Run) -> None:
    common = ["generate", "--base", toy / "base", "--prompt", "The old", "--max-new-tokens", 8, "--seed", 3]
    code, plain, err = colakit(*common)
    assert code == 0, err
    assert plain.startswith("The old")
    assert colakit(*common, "--rank", 8)[1] == plain
    assert colakit(*common)[1] == plain
    _, answer, _ = colakit(*common, "--num-samples", 3, "--json")
    assert len(json.loads(answer)["texts"]) == 3


@pytest.mark.parametrize("adapter", ["adapter", "ckpt.pt", "."])
def test_generate_accepts_a_finetuned_model(
    adapter: str, toy: Path, runs: dict[str, Path], colakit: Run
) -> None:
    code, out, err = colakit(
        "generate", "--adapter", runs["finetune"] / adapter, "--prompt", "The", "--max-new-tokens", 5
    )
    assert code == 0, err
    assert out.startswith("The")


def test_generate_refuses_a_student(runs: dict[str, Path], colakit: Run) -> None:
    code, _, err = colakit("generate", "--adapter", runs["distill"], "--prompt", "The")
    assert code == 2
    assert "recurrent student" in err


@pytest.mark.parametrize("command", ["finetune", "train-scratch", "distill"])
def test_dry_run_prints_the_plan_and_writes_nothing(
    command: str, toy: Path, runs: dict[str, Path], colakit: Run, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    teacher = ["--teacher", runs["finetune"]] if command == "distill" else []
    code, out, err = colakit(
        command,
        "--base",
        toy / "base",
        "--data",
        toy / "corpus",
        *teacher,
        "--dry-run",
        "--out",
        tmp_path / "run",
    )
    assert code == 0, err
    assert "parameters train" in out
    assert ("parameters train, except embeddings of tokens outside" in out) == (command != "finetune")
    assert "(-" not in out
    assert "dry run: nothing was written" in err
    assert "216 train, 24 val, 60 id_dev, 60 ood_dev" in out
    assert sorted(tmp_path.rglob("*")) == before


def test_json_prints_one_object_to_stdout(toy: Path, colakit: Run, tmp_path: Path) -> None:
    for arguments in (
        ["data", "check", "--data", toy / "corpus"],
        ["config", "show"],
        ["config", "schema"],
        [
            "train-scratch",
            "--base",
            toy / "base",
            "--data",
            toy / "corpus",
            "--epochs",
            1,
            "--out",
            tmp_path / "r",
        ],
    ):
        code, out, err = colakit(*arguments, "--json")
        assert code == 0, err
        assert isinstance(json.loads(out), dict)


def test_no_control_codes_reach_a_pipe(toy: Path, colakit: Run, tmp_path: Path) -> None:
    _, out, err = colakit(
        "train-scratch",
        "--base",
        toy / "base",
        "--data",
        toy / "corpus",
        "--epochs",
        1,
        "--out",
        tmp_path / "r",
    )
    assert "\x1b" not in out + err
    assert "\r" not in out + err
    assert "1 of 2: training: 27/27" in err


def test_config_show_prints_the_origin_of_values(
    colakit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text("lora:\n  rank: 3\nfinetune:\n  lr: 3e-4\n")
    monkeypatch.setenv("COLAKIT_STUDENT__CELL", "gru")
    code, out, err = colakit("config", "show", "--config", file, "--set", "finetune.epochs=7", "--seed", 9)
    assert code == 0, err
    for line in (
        "seed: 9  # --seed",
        f"  rank: 3  # {file}",
        f"  lr: 0.0003  # {file}",
        "  cell: gru  # COLAKIT_STUDENT__CELL",
        "  epochs: 7  # --set finetune.epochs=7",
        "  alpha: 16.0  # default",
    ):
        assert line in out.splitlines(), line
    (tmp_path / "again.yaml").write_text(out)
    assert colakit("config", "show", "--config", tmp_path / "again.yaml")[0] == 0


def test_config_show_is_valid_yaml_for_any_value(colakit: Run, tmp_path: Path) -> None:
    long = "a folder with spaces and a long name " * 5 + "# and a hash"
    code, out, err = colakit("config", "show", "--set", f"cache='{long}'", "--set", 'base="one\\ntwo"')
    assert code == 0, err
    (tmp_path / "shown.yaml").write_text(out, encoding="utf-8")
    settings = resolve(config=tmp_path / "shown.yaml", environment={}).settings
    assert (settings.cache, settings.base) == (long, "one\ntwo")


def test_doctor_compiles_nothing_in_a_dry_run(colakit: Run, tmp_path: Path) -> None:
    code, _, err = colakit("doctor", "--dry-run", "--set", f"cache={tmp_path / 'unused'}")
    assert code == 0, err
    assert not (tmp_path / "unused").exists()


def test_section_error_names_only_the_settings_that_were_set(colakit: Run) -> None:
    micro = ["--set", "finetune.micro_batch_size=3"]
    code, _, err = colakit("finetune", "--batch-size", 8, *micro, "--rank", 4, "--epochs", 2, "--dry-run")
    assert code == 2
    said = " ".join(err.split())
    assert "--batch-size, --set finetune.micro_batch_size=3: finetune: batch_size (=8) must be" in said
    assert "--epochs" not in said


def test_a_micro_batch_may_be_larger_than_the_batch() -> None:
    assert resolve(assignments=["pretrain.batch_size=2"], environment={}).settings.pretrain.batch_size == 2


def test_plot_writes_the_curves_of_one_run_to_the_given_folder(
    runs: dict[str, Path], colakit: Run, tmp_path: Path
) -> None:
    code, out, err = colakit("plot", runs["finetune"], "--out", tmp_path / "figures")
    assert code == 0, err
    assert (tmp_path / "figures" / "curves.png").is_file()
    assert str(tmp_path / "figures") in "".join(out.split())


def test_predict_writes_utf_8_whatever_the_locale(runs: dict[str, Path]) -> None:
    words = [sys.executable, "-m", "colakit", "predict", "--model", str(runs["distill"])]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    sentence = "Naïve cafés — 中."
    done = subprocess.run(words, input=sentence.encode(), capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert sentence in done.stdout.decode("utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="file names are any bytes there")
def test_undecodable_file_name_is_an_error_without_traceback() -> None:
    words = [sys.executable, "-m", "colakit", "evaluate", b"no-\xff-model", "--data", "builtin"]
    done = subprocess.run(words, capture_output=True, check=False)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"error: argument 'no-\\udcff-model': is not UTF-8" in done.stderr


def test_doctor_prints_device_and_reason(colakit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colakit.cli.commands.doctor._answers", lambda url: "not asked in a test")
    code, out, err = colakit("doctor", "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["torch"] == torch.__version__
    assert facts["device"] == "cpu" or torch.cuda.is_available()
    assert facts["why"]
    if facts["device"] == "cpu":
        assert re.match(rf"\d+\.\d times {facts['precision']} in a frozen layer", facts["int8"])


FAULTS = {
    "misspelt setting": (
        ["finetune", "--set", "lora.rnak=3"],
        "lora.rnak is not a setting. Did you mean lora.rank?",
    ),
    "setting without its section": (["finetune", "--set", "rank=3"], "Did you mean lora.rank?"),
    "setting of other sections": (["finetune", "--set", "lora.lr=3"], "Did you mean finetune.lr or "),
    "misspelt choice": (["distill", "--cell", "lsmt"], "Did you mean lstm?"),
    "misspelt boolean": (["finetune", "--set", "lora.dora=ture"], "Did you mean true?"),
    "misspelt built-in base": (
        ["finetune", "--base", "bultin", "--data", "builtin"],
        "Did you mean builtin?",
    ),
    "misspelt hub base": (["finetune", "--base", "gtp2", "--data", "builtin"], "Did you mean gpt2?"),
    "misspelt corpus": (["finetune", "--data", "bultin"], "Did you mean builtin?"),
    "flag by its meaning": (["finetune", "--learning-rate", "1"], "Did you mean --lr?"),
    "flag by its setting": (["finetune", "--dropout", "0.1"], "Did you mean --lora-dropout?"),
    "setting without a flag": (
        ["finetune", "--weight-decay", "0.1"],
        "Did you mean --set finetune.weight_decay=VALUE?",
    ),
    "misspelt flag": (["finetune", "--epoch", "1"], "Did you mean --epochs?"),
    "misspelt command": (["finetun"], "Did you mean 'finetune'?"),
    "rank of zero": (["finetune", "--rank", "0"], "--rank: lora.rank"),
    "text for a number": (
        ["finetune", "--lr", "fast"],
        "--lr: finetune.lr: must be a number (got 'fast') hint: `colakit finetune --help` lists",
    ),
    "value of a nested command": (
        ["data", "check", "--seed", "x"],
        "hint: `colakit data check --help` lists",
    ),
    "value of --set": (["finetune", "--set", "seed=x"], "hint: `colakit config reference` lists"),
    "too few folds": (["finetune", "--folds", "1"], "'--folds': must be at least 2"),
    "cell unknown": (["distill", "--cell", "lsmt"], "--cell: student.cell"),
    "missing config": (["finetune", "--config", "no.yaml"], "no.yaml"),
    "missing data": (["data", "check", "--data", "nowhere.zip"], "nowhere.zip: file not found"),
    "missing base": (["finetune", "--base", "./nowhere", "--data", "{toy}/corpus"], "./nowhere"),
    "base not on the hub": (["finetune", "--base", "gpt2", "--data", "{toy}/corpus"], "put config.json"),
    "base a file": (["finetune", "--base", "{toy}/base/config.json", "--data", "{toy}/corpus"], "is a file"),
    "no teacher": (["distill"], "--teacher PATH"),  # before any download of data
    "no base": (["finetune", "--base", "./nowhere"], "--base: './nowhere' not found"),
    "no base of the control": (["train-scratch", "--base", "./nowhere"], "--base: './nowhere' not found"),
    "no base of folds": (
        ["finetune", "--folds", "2", "--base", "./nowhere"],
        "--base: './nowhere' not found",
    ),
    "control like nothing": (["train-scratch", "--like", "runs/nope"], "--like runs/nope: is not a run"),
    "missing teacher": (
        ["distill", "--data", "{toy}/corpus", "--teacher", "no.pt"],
        "no.pt: file or folder not found",
    ),
    "teacher is a corpus": (["distill", "--data", "{toy}/corpus", "--teacher", "{toy}/corpus"], "ckpt.pt"),
    "unmatched target": (
        ["finetune", "--base", "{toy}/base", "--data", "{toy}/corpus", "--target-modules", "c_atn"],
        "Did you mean c_attn?",
    ),
    "no such split": (
        ["evaluate", "{run}", "--data", "{toy}/corpus", "--split", "dve"],
        "no split 'dve'",
    ),
    "no such device": (["finetune", "--device", "cuda:99", "--data", "{toy}/corpus"], "--device cuda:99"),
    "plot of nothing": (["plot", "{toy}"], "is not a finished run"),
    "resume of nothing": (
        ["finetune", "--resume", "--out", "empty", "--base", "{toy}/base", "--data", "{toy}/corpus"],
        "nothing to resume",
    ),
    "resume of which run": (["finetune", "--resume", "--data", "{toy}/corpus"], "--out"),
    "out is not empty": (
        ["finetune", "--out", "{toy}", "--base", "{toy}/base", "--data", "{toy}/corpus"],
        "is not empty",
    ),
    "out holds a finished run": (
        ["finetune", "--out", "{run}", "--base", "{toy}/base", "--data", "{toy}/corpus"],
        "{run}: folder is not empty: its run is finished hint: Choose another folder.",
    ),
    "out is a file": (
        ["finetune", "--out", "{toy}/base/config.json", "--base", "{toy}/base", "--data", "{toy}/corpus"],
        "is a file",
    ),
    "strict check": (["data", "check", "--data", "{toy}/corpus", "--strict"], "--strict"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named_with_exit_code_2(
    name: str, toy: Path, runs: dict[str, Path], colakit: Run, tmp_path: Path
) -> None:
    arguments, expected = FAULTS[name]
    before = sorted(tmp_path.rglob("*"))
    code, _, err = colakit(*(a.format(toy=toy, run=runs["finetune"]) for a in arguments))
    assert code == 2, err
    assert expected.format(run=runs["finetune"]) in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_labels_of_another_task_are_refused(runs: dict[str, Path], colakit: Run, tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_text(
        "text,mood\n" + "".join(f'"sentence {i}",{"good" if i % 2 else "bad"}\n' for i in range(40))
    )
    own = [
        "--set",
        f"data.splits={{train: {file}}}",
        "--set",
        "data.text_column=text",
        "--set",
        "data.label_column=mood",
    ]
    for command in (["evaluate", runs["finetune"]], ["distill", "--teacher", runs["finetune"]]):
        code, _, err = colakit(*command, *own)
        assert code == 2
        assert "bad, good" in err
        assert "unacceptable, acceptable" in err


VERBS = ("go", "run", "see", "eat", "try", "fit", "act", "cut", "dig", "win")


def test_custom_task_with_three_classes(toy: Path, colakit: Run, tmp_path: Path) -> None:
    kinds = {"question": "does it {}?", "order": "{} it now!", "statement": "it can {}."}
    rows = [(text.format(verb), kind) for verb in VERBS * 4 for kind, text in kinds.items()]
    for split, part in (("train", rows[:90]), ("dev", rows[90:])):
        (tmp_path / f"{split}.tsv").write_text("sentence\tkind\n" + "".join(f"{t}\t{k}\n" for t, k in part))
    own = [
        "--set",
        f"data.splits.train={tmp_path}/train.tsv",
        "--set",
        f"data.splits.dev={tmp_path}/dev.tsv",
        "--set",
        "data.text_column=sentence",
        "--set",
        "data.label_column=kind",
        "--base",
        toy / "base",
    ]
    code, out, err = colakit(
        "train-scratch", *own, "--epochs", 30, "--lr", 1e-2, "--out", tmp_path / "run", "--json"
    )
    assert code == 0, err
    summary = json.loads(out)
    assert summary["labels"] == ["order", "question", "statement"]
    assert summary["threshold"] is None
    assert summary["splits"]["dev"]["accuracy"] > 0.9
    for data in (own, []):
        code, out, err = colakit("evaluate", tmp_path / "run", *data, "--json")
        assert code == 0, err
        assert set(json.loads(out)["splits"]) == {"dev"}
    for dry_run in ([], ["--dry-run"]):
        code, _, err = colakit("predict", "--model", tmp_path / "run", "--threshold", 0.7, *dry_run)
        assert code == 2
        assert "threshold 0.7: the model has 3 labels; a threshold is for two" in " ".join(err.split())


def test_a_collapsed_model_is_reported(toy: Path, colakit: Run, tmp_path: Path) -> None:
    code, _, err = colakit(
        "train-scratch",
        *(
            "--base",
            toy / "base",
            "--data",
            toy / "corpus",
            "--epochs",
            1,
            "--lr",
            1e-9,
            "--out",
            tmp_path / "run",
        ),
        *("--set", "student_training.threshold=argmax"),
    )
    assert code == 0
    assert "for every sentence: MCC 0" in err
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["splits"]["id_dev"]["collapsed"]
    assert summary["splits"]["id_dev"]["mcc"] == 0


def test_a_malicious_checkpoint_never_runs(toy: Path, colakit: Run, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (canary,)  # type: ignore[return-value]

    torch.save({"format": 1, "kind": "rnn", "tensors": Payload()}, tmp_path / "ckpt.pt")
    for command in (
        ["predict", "--model", tmp_path],
        ["evaluate", tmp_path, "--data", toy / "corpus"],
        ["generate", "--adapter", tmp_path / "ckpt.pt"],
    ):
        code, _, err = colakit(*command)
        assert code == 2, err
        assert "it must contain only tensors and plain data" in err
    assert not canary.exists()


@pytest.mark.parametrize("cut", [0.0, 0.3, 0.99])
def test_a_truncated_checkpoint_is_refused(
    cut: float, runs: dict[str, Path], colakit: Run, tmp_path: Path
) -> None:
    whole = (runs["distill"] / "ckpt.pt").read_bytes()
    (tmp_path / "ckpt.pt").write_bytes(whole[: int(len(whole) * cut)])
    code, _, err = colakit("predict", "--model", tmp_path / "ckpt.pt")
    assert code == 2
    assert "ckpt.pt" in err


def test_a_model_file_of_another_format_asks_for_an_upgrade(
    runs: dict[str, Path], colakit: Run, tmp_path: Path
) -> None:
    content = torch.load(runs["distill"] / "ckpt.pt", weights_only=True)
    torch.save({**content, "format": 99}, tmp_path / "ckpt.pt")
    code, _, err = colakit("predict", "--model", tmp_path / "ckpt.pt")
    assert code == 2
    assert "upgrade colakit" in err


def test_new_run_folders_are_numbered(toy: Path, colakit: Run) -> None:
    for number in ("001", "002"):
        _, out, _ = colakit(
            "train-scratch", "--base", toy / "base", "--data", toy / "corpus", "--epochs", 1, "--json"
        )
        assert json.loads(out)["run"] == f"runs/train-scratch-{number}"


def test_a_prompt_that_is_not_text_is_refused(toy: Path) -> None:
    command = [sys.executable, "-m", "colakit", "generate", "--base", str(toy / "base")]
    done = subprocess.run(command, input=b"\xff\xfe", capture_output=True, check=False)
    assert done.returncode == 2
    assert b"stdin: not UTF-8 at byte 0" in done.stderr


def test_predict_with_json_returns_predictions_without_the_sentences(
    runs: dict[str, Path], colakit: Run, tmp_path: Path
) -> None:
    (tmp_path / "sentences.txt").write_text("The cat sleeps.\nThe cats sleep.\n")
    command = ["predict", tmp_path / "sentences.txt", "--model", runs["distill"], "--json"]
    code, out, err = colakit(*command)
    assert code == 0, err
    result = json.loads(out)
    assert result["sentences"] == 2
    assert [row["index"] for row in result["predictions"]] == [0, 1]
    names = ["unacceptable", "acceptable"]
    for row in result["predictions"]:
        assert list(row["probabilities"]) == names
        assert row["label"] == names[row["probabilities"]["acceptable"] >= result["threshold"]]
    assert "The cat" not in out + err
    assert colakit(*command, "--out", tmp_path / "labels", "--jsonl")[0] == 0
    assert len((tmp_path / "labels/predictions.jsonl").read_text().splitlines()) == 2
    code, _, err = colakit(*command, "--out", tmp_path / "sentences.txt")
    assert code == 2
    assert "is a file" in err


def test_threshold_of_predict_replaces_the_model_s(
    runs: dict[str, Path], colakit: Run, tmp_path: Path
) -> None:
    (tmp_path / "sentences.txt").write_text("The cat sleeps.\nThe cats sleep.\n")
    for run in (runs["distill"], runs["finetune"]):
        for threshold, label in ((0, "acceptable"), (1, "unacceptable")):
            command = ["predict", tmp_path / "sentences.txt", "--model", run, "--threshold", threshold]
            code, out, err = colakit(*command, "--json")
            assert code == 0, err
            assert json.loads(out)["labels"][label] == 2
            assert "(threshold given)" in " ".join(err.split())


def test_a_line_of_ten_megabytes_is_cut_counted_and_reported(
    runs: dict[str, Path], colakit: Run, tmp_path: Path
) -> None:
    path = tmp_path / "long.txt"
    path.write_text("The old dog sees the cat.\n" + "The old dog " * 900_000 + "\nThe cat sees the dog.\n")
    tracemalloc.start()
    code, out, err = colakit("predict", "--model", runs["distill"], path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert code == 0, err
    assert len(out.splitlines()) == 4
    assert "1 sentences are longer than" in " ".join(err.split())
    assert peak < 200 * 2**20


def test_overlong_line_is_refused(
    runs: dict[str, Path], colakit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentences, "MAX_LINE", 2**20)
    path = tmp_path / "long.txt"
    path.write_bytes(b"ok\n" + b"a" * 2**21)
    code, _, err = colakit("predict", "--model", runs["distill"], path)
    assert code == 2
    assert "long.txt:2: a line is longer than 1 Mi characters" in " ".join(err.split())
