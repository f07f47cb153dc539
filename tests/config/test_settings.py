"""Precedence, validation and error messages of settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from colakit.config.resolve import Resolved, resolve
from colakit.config.settings import Settings, describe_type, leaf_fields
from colakit.config.yaml import read_yaml, to_yaml
from colakit.errors import ColakitError

LAWS = settings(max_examples=300, deadline=None)
CONFIG = Path("cola.yaml")


def from_yaml(text: str, **sources: Any) -> Resolved:
    CONFIG.write_text(text, encoding="utf-8")
    return resolve(config=CONFIG, **{"environment": {}, **sources})


def setting(key: str, resolved: Resolved) -> Any:
    value: Any = resolved.settings
    for name in key.split("."):
        value = getattr(value, name)
    return value


def settings_or_fault(read: Callable[[], Resolved]) -> Settings | ColakitError:
    try:
        return read().settings
    except ColakitError as error:
        return error


def faults_of(read: Callable[[], object]) -> list[str]:
    """The lines of the one error that `read` ends in."""
    with pytest.raises(ColakitError) as caught:
        read()
    assert caught.value.exit_code == 2
    return caught.value.message.splitlines()


def test_flag_beats_set_beats_environment_beats_yaml_beats_default() -> None:
    sources: list[tuple[str, dict[str, Any], int, str | None]] = [
        ("yaml", {"config": CONFIG}, 2, "cola.yaml"),
        ("environment", {"environment": {"COLAKIT_LORA__RANK": "3"}}, 3, "COLAKIT_LORA__RANK"),
        ("set", {"assignments": ["lora.rank=4"]}, 4, "--set lora.rank=4"),
        ("flag", {"flags": {"lora.rank": ("--rank", 5)}}, 5, "--rank"),
    ]
    CONFIG.write_text("lora:\n  rank: 2\n")
    given_so_far: dict[str, Any] = {"environment": {}}
    untouched = resolve(**given_so_far)
    assert untouched.settings.lora.rank == 8
    assert untouched.origins == {}
    assert not untouched.was_typed("lora.rank")
    for _, source, value, origin in sources:
        given_so_far |= source
        actual = resolve(**given_so_far)
        assert actual.settings.lora.rank == value
        assert actual.origins == {"lora.rank": origin}
        assert actual.was_typed("lora.rank") == origin.startswith("--")


def test_settings_from_different_sources_are_merged() -> None:
    actual = from_yaml(
        "seed: 1\nlora: {rank: 2, alpha: 7}\n",
        environment={
            "COLAKIT_FINETUNE__LR": "1e-3",
            "HOME": "x",
            "COLAKIT_CACHE": "own-cache",
            "COLAKIT_SHARED": "x",
        },
        assignments=["lora.rank=4", "data.path=own.tsv"],
        flags={"device": ("--device", "cpu")},
    )
    assert actual.origins == {
        "seed": "cola.yaml",
        "lora.rank": "--set lora.rank=4",
        "lora.alpha": "cola.yaml",
        "cache": "COLAKIT_CACHE",
        "finetune.lr": "COLAKIT_FINETUNE__LR",
        "data.path": "--set data.path=own.tsv",
        "device": "--device",
    }
    assert [setting(key, actual) for key in actual.origins] == [
        1,
        4,
        7.0,
        "own-cache",
        1e-3,
        "own.tsv",
        "cpu",
    ]


def test_the_process_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLAKIT_LORA__RANK", "3")
    assert resolve().settings.lora.rank == 3


@pytest.mark.parametrize(
    ("text", "value"), [("3e-4", 3e-4), ("1E3", 1e3), ("2", 2.0), ("'3e-4'", 3e-4), (".5", 0.5)]
)
def test_every_yaml_notation_of_a_float_is_a_float(text: str, value: float) -> None:
    sources = [
        from_yaml(f"finetune: {{lr: {text}}}"),
        resolve(assignments=[f"finetune.lr={text}"], environment={}),
        resolve(environment={"COLAKIT_FINETUNE__LR": text}),
    ]
    for actual in sources:
        assert isinstance(actual.settings.finetune.lr, float)
        assert actual.settings.finetune.lr == value


@pytest.mark.parametrize("word", ["no", "off", "yes", "true"])
@pytest.mark.parametrize(
    "key",
    [
        "lora.rank",
        "lora.alpha",
        "finetune.max_grad_norm",
        "seed",
        "data.text_column",
        "base",
        "finetune.schedule",
    ],
)
def test_a_boolean_is_refused_as_number_or_text(key: str, word: str) -> None:
    (fault,) = faults_of(lambda: resolve(assignments=[f"{key}={word}"], environment={}))
    assert fault.startswith(f"--set {key}={word}: {key}: a boolean is not allowed here")


@pytest.mark.parametrize("word", ["no", "yes"])
@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("lora.rank_pattern", "{{c_attn: {0}}}"),
        ("lora.alpha_pattern", "{{c_attn: {0}}}"),
        ("lora.target_modules", "[c_attn, {0}]"),
        ("data.splits", "{{train: {0}}}"),
        ("data.splits", "{{{0}: train.tsv}}"),
    ],
)
def test_a_boolean_within_a_value_is_refused(key: str, text: str, word: str) -> None:
    assignment = f"{key}={text.format(word)}"
    (fault,) = faults_of(lambda: resolve(assignments=[assignment], environment={}))
    assert fault.startswith(f"--set {assignment}: {key}")


@pytest.mark.parametrize(("word", "value"), [("no", False), ("on", True), ("false", False), ("yes", True)])
def test_a_boolean_setting_accepts_yaml_booleans(word: str, value: bool) -> None:
    assert from_yaml(f"lora: {{rslora: {word}}}").settings.lora.rslora is value


@pytest.mark.parametrize(
    ("text", "value"),
    [("[a, b]", ("a", "b")), ("a, b", ("a", "b")), ("a", ("a",)), ("'no'", ("no",))],
)
def test_names_are_lists_or_comma_separated(text: str, value: tuple[str, ...]) -> None:
    assert from_yaml(f"lora:\n  target_modules: {text}").settings.lora.target_modules == value


@pytest.mark.parametrize(
    "text",
    [
        "seed: 1\nseed: 2\n",
        "lora:\n  rank: 1\n  rank: 2\n",
        "lora: {rank: 1}\nlora: {alpha: 2}\n",
        "a: 1\n'a': 1\n",
    ],
)
def test_a_duplicate_key_is_refused(text: str) -> None:
    (fault,) = faults_of(lambda: from_yaml(text))
    assert fault.startswith("cola.yaml: ")
    assert "duplicate key" in fault


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\nlora:\n  rank: [1\nbase: x\n", "line 4, column 5: expected ',' or ']', but got ':'"),
        ("lora:\n  rank: {1", "line 2, column 11: expected ',' or '}', but got the end of the text"),
        ("lora:\n\trank: 1", "line 2, column 1: lines are indented by spaces, not tabs"),
        ("lora: rank: 1", "line 1, column 11: `:` is not allowed here"),
        ("seed: 1\nbase: \a", "line 2: the character U+0007 is not allowed"),
        ("seed: 1\nseed: 2", "line 2, column 1: duplicate key 'seed'"),
    ],
)
def test_a_fault_of_yaml_has_line_column_and_reason_in_plain_words(text: str, expected: str) -> None:
    (fault,) = faults_of(lambda: from_yaml(text))
    assert fault.startswith(f"cola.yaml: {expected}")
    assert "<" not in fault


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.mkdir [canary]", "!!python/object:os.system x", "!!python/name:os.system"],
)
def test_python_objects_are_refused_and_never_constructed(tag: str) -> None:
    for read in (
        lambda: from_yaml(f"seed: {tag}"),
        lambda: resolve(assignments=[f"seed={tag}"], environment={}),
        lambda: resolve(environment={"COLAKIT_SEED": tag}),
    ):
        assert "could not determine a constructor" in " ".join(faults_of(read))
    assert not Path("canary").exists()


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("lora.rnak", "lora.rank"),
        ("lroa", "lora"),
        ("sede", "seed"),
        ("finetune.learning_rate", None),
    ],
)
def test_an_unknown_key_names_its_origin_and_the_nearest(key: str, nearest: str | None) -> None:
    message = f"{key} is not a setting." + (f" Did you mean {nearest}?" if nearest else "")
    name = "COLAKIT_" + key.upper().replace(".", "__")
    section, dot, leaf = key.rpartition(".")
    for origin, read in [
        ("cola.yaml", lambda: from_yaml(f"{section}: {{{leaf}: 1}}" if dot else f"{leaf}: 1")),
        (f"--set {key}=1", lambda: resolve(assignments=[f"{key}=1"], environment={})),
        (name, lambda: resolve(environment={name: "1"})),
    ]:
        (fault,) = faults_of(read)
        assert fault.startswith(f"{origin}: {message}")


def test_an_unknown_section_names_the_nearest() -> None:
    assert faults_of(lambda: from_yaml("lroa: {rank: 1}")) == [
        "cola.yaml: lroa is not a setting. Did you mean lora?"
    ]
    (fault,) = faults_of(lambda: resolve(assignments=["lroa.rank=1"], environment={}))
    assert fault == "--set lroa.rank=1: lroa.rank is not a setting. Did you mean lora.rank?"


@pytest.mark.parametrize("text", ["lora: 3", "lora: [rank, 3]", "lora: words"])
def test_a_section_must_be_a_mapping(text: str) -> None:
    assert faults_of(lambda: from_yaml(text)) == ["cola.yaml: lora is a section, not a setting; set lora.KEY"]


@pytest.mark.parametrize("text", ["", "# nothing\n", "lora:\n", "---\n", "\ufeffseed: 0\n"])
def test_an_empty_file_gives_the_defaults(text: str) -> None:
    assert from_yaml(text).settings == Settings()


@pytest.mark.parametrize("text", ["- seed", "words", "3"])
def test_a_file_must_be_a_mapping(text: str) -> None:
    (fault,) = faults_of(lambda: from_yaml(text))
    assert fault.startswith("cola.yaml: must be a mapping of sections (got ")


def test_a_file_that_cannot_be_read_is_named() -> None:
    assert "gone.yaml" in faults_of(lambda: read_yaml(Path("gone.yaml")))[0]
    Path("folder.yaml").mkdir()
    assert "folder.yaml" in faults_of(lambda: read_yaml(Path("folder.yaml")))[0]
    CONFIG.write_bytes(b"seed: \xff")
    assert "cola.yaml" in faults_of(lambda: read_yaml(CONFIG))[0]


def test_an_assignment_without_a_value_is_refused() -> None:
    assert faults_of(lambda: resolve(assignments=["lora.rank"], environment={})) == [
        "--set lora.rank: `=` is missing"
    ]


def test_all_faults_are_listed_at_once_with_their_origins() -> None:
    faults = faults_of(
        lambda: from_yaml(
            "lora: {rnak: 3, alpha: -1}\nfinetune: {batch_size: 32, micro_batch_size: 5}\n",
            environment={"COLAKIT_SEED": "two"},
            assignments=["device=tpu"],
            flags={"student.cell": ("--cell", "mlp")},
        )
    )
    starts = [
        "cola.yaml: lora.rnak is not a setting",
        "cola.yaml: lora.alpha: ",
        "cola.yaml: finetune: batch_size (=32) must be a multiple of micro_batch_size (=5)",
        "COLAKIT_SEED: seed: ",
        "--set device=tpu: device: ",
        "--cell: student.cell: ",
    ]
    assert len(faults) == len(starts)
    for start in starts:
        assert any(fault.startswith(start) for fault in faults), start
    assert any("(got 'mlp')" in fault for fault in faults)


@pytest.mark.parametrize("text", [".nan", ".inf", "-.inf", "nan", "inf", "1e999"])
@pytest.mark.parametrize("key", ["finetune.lr", "lora.alpha", "distill.temperature", "finetune.warmup"])
def test_numbers_are_finite(key: str, text: str) -> None:
    (fault,) = faults_of(lambda: resolve(assignments=[f"{key}={text}"], environment={}))
    assert fault.startswith(f"--set {key}={text}: {key}: ")


@pytest.mark.parametrize(
    "assignment",
    [
        "seed=-1",
        "lora.rank=0",
        "lora.rank=2.5",
        "lora.dropout=1",
        "data.val_fraction=0",
        "data.val_fraction=1",
        "distill.kd_weight=1.1",
        "distill.temperature=0",
        "generate.top_p=0",
        "lora.target_modules=[]",
        "lora.rank_pattern={c_attn: 1.5}",
        "lora.alpha_pattern={c_attn: 0}",
        "device=cuda:x",
        "finetune.lr=",
    ],
)
def test_a_value_out_of_bounds_is_named(assignment: str) -> None:
    (fault,) = faults_of(lambda: resolve(assignments=[assignment], environment={}))
    assert fault.startswith(f"--set {assignment}: {assignment.partition('=')[0]}")


@pytest.mark.parametrize("section", ["finetune", "student_training"])
@pytest.mark.parametrize(
    ("batch", "micro", "fits"), [(32, 8, True), (32, 32, True), (32, 5, False), (8, 16, False)]
)
def test_micro_batches_divide_the_batch(section: str, batch: int, micro: int, fits: bool) -> None:
    assignments = [f"{section}.batch_size={batch}", f"{section}.micro_batch_size={micro}"]
    if fits:
        assert (
            setting(f"{section}.micro_batch_size", resolve(assignments=assignments, environment={})) == micro
        )
    else:
        (fault,) = faults_of(lambda: resolve(assignments=assignments, environment={}))
        origin = ", ".join(f"--set {assignment}" for assignment in assignments)
        assert (
            fault
            == f"{origin}: {section}: batch_size (={batch}) must be a multiple of micro_batch_size (={micro})"
        )


def test_dora_and_pissa_exclude_each_other() -> None:
    (fault,) = faults_of(lambda: from_yaml("lora: {dora: true, init: pissa}"))
    assert fault.startswith("cola.yaml: lora: dora and init: pissa cannot be combined")
    from_yaml("lora: {dora: true}")
    from_yaml("lora: {init: pissa}")


def test_a_seed_above_32_bits_is_refused() -> None:
    for key in ("seed", "data.val_seed"):
        (fault,) = faults_of(lambda key=key: resolve(assignments=[f"{key}={2**64}"], environment={}))
        assert fault.startswith(f"--set {key}={2**64}: {key}: ")


FULL = """
seed: 3
base: some/folder
cache: ~/elsewhere
data:
  splits: {train: a.tsv, dev: "no"}
  text_column: 'null'
  label_column: "3e-4"
  label_names: ['yes', 'no', '1']
  mirrors: http://a/x.zip, http://b/y.zip
lora:
  rank_pattern: {c_attn: 4}
  alpha_pattern: {c_attn: 8}
finetune: {lr: 3e-4, max_grad_norm: null, micro_batch_size: 4}
"""


@pytest.mark.parametrize("text", ["", FULL], ids=["defaults", "full"])
def test_settings_written_as_yaml_read_back_equal(text: str) -> None:
    one = from_yaml(text).settings
    written = to_yaml(one)
    assert from_yaml(written).settings == one
    assert to_yaml(from_yaml(written).settings) == written


ODD_TEXT = st.text(
    st.sampled_from("ab1.~:#-'\"{[|>%@&*!\\ \t\r\n\x07\x85\u2028\ufeffé猫")
    | st.characters(codec="utf-8", exclude_characters="\0"),  # settings refuse NUL
    max_size=4096,
)


@settings(max_examples=60, deadline=None)
@given(ODD_TEXT, st.floats(1e-12, 1e12))
def test_any_text_and_number_survive_yaml(text: str, number: float) -> None:
    one = Settings.model_validate(
        {"data": {"path": text, "splits": {text: text}}, "finetune": {"lr": number}}
    )
    assert from_yaml(to_yaml(one)).settings == one


@pytest.mark.parametrize("key", [key for key, _ in leaf_fields()])
def test_every_setting_is_described_and_settable(key: str) -> None:
    field = dict(leaf_fields())[key]
    assert field.description
    assert field.description[0] == field.description[0].strip()
    assert describe_type(field.annotation)
    value = yaml.safe_dump(Settings().model_dump(mode="json"), default_flow_style=True, width=10**9)
    default: Any = yaml.safe_load(value)
    for name in key.split("."):
        default = default[name]
    actual = resolve(flags={key: ("--flag", default)}, environment={})
    assert actual.settings == Settings()
    assert actual.origins == {key: "--flag"}


def test_every_config_of_the_project_validates() -> None:
    files = sorted((ROOT / "configs").rglob("*.y*ml"))
    assert files
    for file in files:
        assert resolve(config=file, environment={}).origins, file


SNIPPETS = st.sampled_from(
    [
        *(
            "seed: ",
            "lora: ",
            "lora.rank",
            "rank: ",
            "data: {",
            "splits: ",
            "{",
            "}",
            "[",
            "]",
            ", ",
            ": ",
            "\n",
            "\n  ",
        ),
        *(
            "!!map ",
            "!!int ",
            "!!bool ",
            "!!float ",
            "!!timestamp ",
            "!!set ",
            "!!binary ",
            "!!str ",
            "!x ",
            "&a ",
            "*a",
        ),
        *(
            "2024-13-45",
            "0b_",
            "0x_",
            "1:99",
            "no",
            "~",
            "<<",
            "=",
            "? ",
            "- ",
            "|",
            ">",
            "'",
            '"',
            "#",
            "%",
            "@",
            "---\n",
        ),
        *("1", "3e-4", ".inf", "\t", "\x07", "\ufeff", "\u2028", "é"),
    ]
)


@LAWS
@given(st.text(max_size=40) | st.lists(SNIPPETS, max_size=12).map("".join))
def test_any_text_gives_settings_or_an_error(text: str) -> None:
    CONFIG.write_text(text, encoding="utf-8", newline="")
    readers: list[Callable[[], Resolved]] = [
        lambda: resolve(config=CONFIG, environment={}),
        lambda: resolve(assignments=[f"lora.rank={text}"], environment={}),
        lambda: resolve(assignments=[text], environment={}),
        lambda: resolve(environment={"COLAKIT_LORA__RANK": text}),
    ]
    for read in readers:
        actual = settings_or_fault(read)
        assert actual.message if isinstance(actual, ColakitError) else actual == actual.model_validate(actual)


@pytest.mark.parametrize(
    "text",
    [
        "data: {path: 2024-13-45}",
        "seed: !!int x",
        "seed: !!bool x",
        "seed: !!timestamp x",
        "!!map words",
        "!!map [1]",
        "seed: 0b_",
        "seed: " + "1" * 5000,
        "[" * 3000,
        "lora: &a {rank: *a}",
        "lora: {? [1] : 2}",
    ],
    ids=lambda text: text[:24],
)
def test_yaml_that_crashes_the_parser_gives_an_error(text: str) -> None:
    assert faults_of(lambda: from_yaml(text))[0].startswith("cola.yaml: ")


@pytest.mark.parametrize(
    ("sources", "splits"),
    [
        ({}, {"train": "a.tsv"}),
        ({"flags": {"data.path": ("--data", "corpus")}}, {}),
        ({"assignments": ["data.path=corpus"]}, {}),
        ({"environment": {"COLAKIT_DATA__PATH": "corpus"}}, {"train": "a.tsv"}),
        (
            {"flags": {"data.path": ("--data", "corpus")}, "assignments": ["data.splits.dev=b.tsv"]},
            {"train": "a.tsv", "dev": "b.tsv"},
        ),
    ],
)
def test_a_typed_data_path_overrides_splits(sources: dict[str, Any], splits: dict[str, str]) -> None:
    actual = from_yaml("data: {splits: {train: a.tsv}}", **sources)
    assert actual.settings.data.splits == splits
    CONFIG.write_text(to_yaml(actual.settings))  # and what a run saves says the same
    assert resolve(config=CONFIG, environment={}).settings.data.splits == splits


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("seed=" + "9" * 5000, "not a number of up to 100 characters"),
        ("seed=0x" + "f" * 5000, "not a number of up to 100 characters"),
        ("seed=1:30", "seed: must be a whole number"),
        ("seed=!!int 1:30", "not a number of up to 100 characters"),
        ("seed=" + "[" * 5000, "nested more than 16 levels deep"),
        ("base=" + "x" * 70_000, "longer than 64 KiB"),
        ("student.hidden_size=1000000000", "must be at most 16384 (got 1000000000)"),
        ("lora.rank=eight", "lora.rank: must be a whole number (got 'eight')"),
        ("finetune.add_bos=5", "finetune.add_bos: must be true or false (got 5)"),
        ("finetune.lr=-1", "finetune.lr: must be greater than 0 (got -1)"),
        ("data.splits=3", "data.splits: must be a mapping (got 3)"),
        ("lora.target_modules=3", "lora.target_modules: must be a list (got 3)"),
        ("student.hidden_size=16384", "recurrent weights; at most 268,435,456"),
        ("pretrain.width=16380", "parameters; at most 2,147,483,648"),
        ("device=cuda:" + "9" * 20, "must be auto, cpu, cuda, cuda:N or mps"),
        ("finetune.leave_out=1/" + "9" * 4000, "a fold is written i/k"),
        ("generate.temperature=1e-300", "temperature is 0 (greedy) or from 0.01 to 100"),
        (r'data.path="a\0b"', "without NUL and surrogates"),
        (r'data.splits={"\ud800": a.tsv}', "without NUL and surrogates"),
        (r'evaluate.group_by=["a\0b"]', "without NUL and surrogates"),
    ],
    ids=lambda value: value[:24],
)
def test_values_without_bounds_are_refused_in_a_short_message(assignment: str, expected: str) -> None:
    (fault,) = faults_of(lambda: resolve(assignments=[assignment], environment={}))
    assert expected in fault
    assert len(fault) < 600
    key, _, value = assignment.partition("=")
    variable = f"COLAKIT_{key.upper().replace('.', '__')}"
    assert expected in faults_of(lambda: resolve(environment={variable: value}))[0]


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        (["pretrain.num_kv_heads=2"], "requires family llama"),
        (["pretrain.family=llama", "pretrain.num_kv_heads=4"], "must be divisible by num_kv_heads (=4)"),
        (["pretrain.family=qwen3", "pretrain.width=30"], "must be even"),
    ],
)
def test_shapes_that_no_llama_has_are_refused(assignments: list[str], expected: str) -> None:
    (fault,) = faults_of(lambda: resolve(assignments=assignments, environment={}))
    assert expected in fault


def test_numbers_in_base_60_are_text_and_underscores_are_allowed() -> None:
    actual = resolve(assignments=["data.path=1:30", "pretrain.tokens=24_000_000"], environment={}).settings
    assert actual.data.path == "1:30"
    assert actual.pretrain.tokens == 24_000_000
