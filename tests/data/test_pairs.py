"""Minimal pairs: scores against transformers, what must never change them, and every fault of a file."""

from __future__ import annotations

import gzip
import json
import lzma
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.toy import ToyGrammar

from colakit.data.minimal_pairs import (
    ABSENT,
    MAX_LINE_BYTES,
    MinimalPair,
    find_pair_files,
    group_pairs,
    read_pairs,
)
from colakit.data.tokenizer import SentenceTokenizer
from colakit.data.tokens import Tokens
from colakit.errors import ColakitError
from colakit.evaluation import minimal_pairs as engine
from colakit.evaluation.minimal_pairs import PairScores, accuracy, score_pairs
from colakit.models.gpt.model import GPT
from colakit.runtime.device import Compute
from colakit.storage.gpt2 import load_gpt

Run = Callable[..., tuple[int, str, str]]
NUM_PAIRS = 60
POSITIONS = 64  # of the toy base


def draw_pairs(count: int = NUM_PAIRS, seed: int = 5) -> list[dict[str, Any]]:
    """Return lines of a suite: sentences of the toy grammar, each beside the same with one fault."""
    grammar = ToyGrammar(seed)
    lines: list[dict[str, Any]] = []
    while len(lines) < count:
        good = grammar.acceptable()
        kind = ("agreement", "order")[len(lines) % 2]
        words = good.removesuffix(".").lower().split()
        bad = " ".join(grammar.corruptions[kind](words)).capitalize() + "."
        if bad != good:
            lines.append(
                {
                    "sentence_good": good,
                    "sentence_bad": bad,
                    "UID": f"{kind}_{len(lines) % 3}",
                    "field": "syntax" if kind == "order" else "morphology",
                    "one_prefix_prefix": f"{good.split()[0]} {len(lines)}",
                    "simple_LM_method": len(lines) % 2 == 0,
                    "pairID": str(len(lines)),
                }
            )
    return lines


def write_pairs(path: Path, lines: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
    with openers.get(path.suffix, open)(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return path


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "suite.jsonl", draw_pairs())


@pytest.fixture(scope="module")
def base(toy: Path) -> tuple[GPT, SentenceTokenizer]:
    model = load_gpt(toy / "base").requires_grad_(False)
    return model, SentenceTokenizer.from_folder(toy / "base", prefix=True)


def encode(tokenizer: SentenceTokenizer, lines: list[dict[str, Any]]) -> tuple[Tokens, Tokens]:
    good, bad = (tokenizer.encode([line[f"sentence_{side}"] for line in lines]) for side in ("good", "bad"))
    return good, bad


def transformers_sums(folder: Path, sentences: list[str], *, bos: bool) -> list[float]:
    """Sum log p(token | left session) sentence by sentence, with nothing of colakit's."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sums = []
    for sentence in sentences:
        ids = tokenizer(sentence, add_special_tokens=False)["input_ids"]
        row = torch.tensor([[tokenizer.eos_token_id, *ids] if bos else ids])
        with torch.no_grad():
            logprobs = model(input_ids=row).logits[0].double().log_softmax(dim=-1)
        sums.append(float(logprobs[:-1].gather(1, row[0, 1:, None]).sum()))
    return sums


@pytest.mark.parametrize("bos", [True, False])
def test_sums_are_those_of_transformers(toy: Path, fp32: Compute, bos: bool) -> None:
    lines = draw_pairs(20)
    tokenizer = SentenceTokenizer.from_folder(toy / "base", prefix=bos)
    scores = score_pairs(load_gpt(toy / "base"), *encode(tokenizer, lines), fp32)
    for found, side in ((scores.good, "good"), (scores.bad, "bad")):
        expected = transformers_sums(toy / "base", [line[f"sentence_{side}"] for line in lines], bos=bos)
        # both fp32, summed in another order over some twenty tokens
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_mini_base_agrees_with_transformers_on_english(shared: Path, fp32: Compute) -> None:
    folder = shared / "models/mini-v0"
    lines = [
        {"sentence_good": "The keys to the old house are here.", "sentence_bad": "The keys to are here."},
        {"sentence_good": "She has seen it.", "sentence_bad": "She have seen it."},
    ]
    tokenizer = SentenceTokenizer.from_folder(folder, prefix=True)
    scores = score_pairs(load_gpt(folder), *encode(tokenizer, lines), fp32)
    for found, side in ((scores.good, "good"), (scores.bad, "bad")):
        expected = transformers_sums(folder, [line[f"sentence_{side}"] for line in lines], bos=True)
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("batch_size", "max_tokens", "max_logits"), [(1, 16_384, 2**22), (7, 40, 2**22), (128, 16_384, 1)]
)
def test_batches_never_change_a_score(
    base: tuple[GPT, SentenceTokenizer],
    fp32: Compute,
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int,
    max_tokens: int,
    max_logits: int,
) -> None:
    model, tokenizer = base
    tokens = encode(tokenizer, draw_pairs())
    whole = score_pairs(model, *tokens, fp32)
    monkeypatch.setattr(engine, "MAX_BATCH_TOKENS", max_tokens)
    monkeypatch.setattr(engine, "MAX_LOGITS", max_logits)
    done: list[int] = []
    other = score_pairs(model, *tokens, fp32, batch_size, done.append)
    assert sum(done) == 2 * NUM_PAIRS
    for side in ("good", "bad"):  # matrices of other shapes are summed in another order
        np.testing.assert_allclose(getattr(other, side), getattr(whole, side), atol=1e-4, rtol=0)


def test_a_sentence_beside_itself_is_a_tie_and_wrong(
    base: tuple[GPT, SentenceTokenizer], fp32: Compute
) -> None:
    model, tokenizer = base
    lines = draw_pairs(9)
    lines[4]["sentence_bad"] = lines[4]["sentence_good"]
    scores = score_pairs(model, *encode(tokenizer, lines), fp32, batch_size=2)
    assert scores.num_ties == 1
    assert not scores.correct[4]
    assert not scores.correct_per_token[4]


def scores_of(
    good: list[float], bad: list[float], good_tokens: list[int], bad_tokens: list[int]
) -> PairScores:
    return PairScores(np.array(good), np.array(bad), np.array(good_tokens), np.array(bad_tokens))


def test_the_mean_over_tokens_is_judged_apart_from_the_sum() -> None:
    scores = scores_of([-10.0, -8.0, -6.0, -0.75], [-9.0, -9.0, -4.0, -0.25], [10, 4, 3, 3], [6, 6, 2, 1])
    assert scores.correct.tolist() == [False, True, False, False]
    assert scores.correct_per_token.tolist() == [True, False, False, False]  # the third and fourth are ties
    assert scores.num_ties == 0


@pytest.mark.parametrize(("right", "total"), [(0, 5), (5, 5), (7, 9), (640, 1000)])
def test_intervals_are_wilson_s(right: int, total: int) -> None:
    good = np.where(np.arange(total) < right, -1.0, -3.0)
    found = accuracy(scores_of(good.tolist(), [-2.0] * total, [4] * total, [4] * total)).summed
    z, p = 1.959963984540054, right / total  # Wilson 1927
    centre, half = p + z * z / (2 * total), z * math.sqrt(p * (1 - p) / total + (z / (2 * total)) ** 2)
    assert found.value == p
    assert found.low == pytest.approx((centre - half) / (1 + z * z / total), abs=1e-12)
    assert found.high == pytest.approx((centre + half) / (1 + z * z / total), abs=1e-12)


# -- files


def test_packed_files_and_folders_hold_the_same_pairs(tmp_path: Path) -> None:
    lines = draw_pairs(12)
    folder = tmp_path / "suite"
    folder.mkdir()
    write_pairs(folder / "b.jsonl.xz", lines[8:])
    write_pairs(folder / "a.jsonl", lines[:4])
    write_pairs(folder / "a2.jsonl.gz", lines[4:8])
    (folder / "README.md").write_text("not pairs")
    (folder / "._a.jsonl").write_bytes(b"\0\1")  # such as a Mac leaves
    files = find_pair_files([folder])
    assert [file.name for file in files] == ["a.jsonl", "a2.jsonl.gz", "b.jsonl.xz"]
    pairs = read_pairs(files)
    assert [pair.good for pair in pairs] == [line["sentence_good"] for line in lines]
    assert [pair.fields["file"] for pair in pairs] == ["a"] * 4 + ["a2"] * 4 + ["b"] * 4
    alone = read_pairs([folder / "a.jsonl"])
    assert "file" not in alone[0].fields
    assert alone[0].fields["pairID"] == "0"


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    paths = [tmp_path / "one/x.jsonl", tmp_path / "two/x.jsonl"]
    for path in paths:
        path.parent.mkdir()
        write_pairs(path, draw_pairs(2))
    assert {pair.fields["file"] for pair in read_pairs(paths)} == {str(path) for path in paths}


def test_line_ends_marks_and_blank_lines_do_not_matter(tmp_path: Path) -> None:
    line = '{"sentence_good": "Das ist s\u00fc\u00df.\u2028", "sentence_bad": "Das s\u00fc\u00df ist."}'
    (tmp_path / "p.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n\r\n{line}".encode())
    pairs = read_pairs([tmp_path / "p.jsonl"])
    assert [pair.good for pair in pairs] == ["Das ist s\u00fc\u00df.\u2028"] * 2


OK = b'{"sentence_good": "a b", "sentence_bad": "b a"}\n'
BAD_LINES = {
    "not JSON": (b"a b\tb a\n", "line 2: not JSON (Expecting value at column 1)"),
    "torn": (b'{"sentence_good": "a', "line 2: not JSON (Unterminated string"),
    "a list": (b'["a b", "b a"]\n', "line 2: a list, not an object"),
    "no bad": (b'{"sentence_good": "a b"}\n', "line 2: no sentence_bad"),
    "no good": (b'{"sentence_bad": "a b"}\n', "line 2: no sentence_good"),
    "a number": (b'{"sentence_good": 3, "sentence_bad": "b"}\n', "sentence_good is a int, not a string"),
    "null": (b'{"sentence_good": "a", "sentence_bad": null}\n', "sentence_bad is a NoneType, not a string"),
    "blank": (b'{"sentence_good": "a", "sentence_bad": " "}\n', "line 2: sentence_bad is empty"),
    "not UTF-8": (b'{"sentence_good": "\xff", "sentence_bad": "b"}\n', "not UTF-8 at byte 19 of the line"),
    "half a pair": (rb'{"sentence_good": "\ud800", "sentence_bad": "b"}', "half of a surrogate pair"),
    "nested": (b"[" * 100_000 + b"\n", "not JSON that can be read"),
    "a long number": (b'{"n": ' + b"9" * 5000 + b"}\n", "not JSON that can be read"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_faulty_line_is_named(name: str, tmp_path: Path, colakit: Run) -> None:
    raw, expected = BAD_LINES[name]
    (tmp_path / "pairs.jsonl").write_bytes(OK + raw)
    code, _, err = colakit("evaluate", "--pairs", tmp_path / "pairs.jsonl")
    assert code == 2
    assert "pairs.jsonl:2: every line must be a JSON object with sentence_good and sentence_bad" in err
    assert expected in err
    assert "Traceback" not in err


def test_all_faulty_lines_are_counted(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_bytes(OK + b"x\n" * 7)
    with pytest.raises(ColakitError, match=r"7 invalid lines: line 2: .*; and 2 more"):
        read_pairs([tmp_path / "pairs.jsonl"])


@pytest.mark.parametrize(
    ("file", "raw", "expected"),
    [
        ("empty.jsonl", b"", "empty.jsonl: is empty"),
        ("blank.jsonl", b"\n \n", "blank.jsonl: is empty"),
        ("long.jsonl", OK + b" " * (MAX_LINE_BYTES + 1), "long.jsonl:2: the line is longer than 1 MiB"),
        ("torn.jsonl.gz", gzip.compress(OK * 99, mtime=0)[:-20], "torn.jsonl.gz: cannot be read"),
        ("not.jsonl.gz", OK, "not.jsonl.gz: cannot be read"),
        ("torn.jsonl.xz", lzma.compress(OK * 99)[:-20], "torn.jsonl.xz: cannot be read"),
        ("not.jsonl.xz", OK, "not.jsonl.xz: cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.endswith(("l", "z")) else "",
)
def test_a_faulty_file_is_named(file: str, raw: bytes, expected: str, tmp_path: Path, colakit: Run) -> None:
    (tmp_path / file).write_bytes(raw)
    code, _, err = colakit("evaluate", "--pairs", tmp_path / file)
    assert code == 2
    assert expected in err
    assert "hint:" in err


def test_a_file_that_unpacks_without_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colakit.data.minimal_pairs.MAX_FILE_BYTES", 2 * 2**20)
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b"\n" * (3 * 2**20)))
    with pytest.raises(ColakitError, match="the file is larger than 2 MiB"):
        read_pairs([tmp_path / "bomb.jsonl.gz"])


# -- groups


def pair(**fields: Any) -> MinimalPair:
    return MinimalPair("a b", "b a", fields)


def test_fields_that_make_groups_are_found() -> None:
    pairs = [MinimalPair("a b", "b a", line) for line in draw_pairs()]
    groups = group_pairs(pairs)
    assert list(groups) == ["UID", "field"]  # not the prefixes, numbers and booleans, nor the sentences
    assert groups["field"][:2] == ["morphology", "syntax"]


@pytest.mark.parametrize(
    ("values", "groups"),
    [
        (["x"] * 6, False),  # one group is no grouping
        (["x", "x", "x", "x", "x", "y"], True),
        (["x", "x", "y", "y", "z", "z"], True),
        (["x", "x", "y", "y", "z", "w"], False),  # not two pairs a group
        ([1, 1, 1, 2, 2, 2], False),
        ([str(i // 2) for i in range(200)], True),
        ([str(i // 2) for i in range(202)], False),
    ],
)
def test_a_field_groups_where_pairs_share_few_texts(values: list[Any], groups: bool) -> None:
    assert bool(group_pairs([pair(f=value) for value in values])) is groups


def test_a_second_name_for_the_same_groups_is_left_out_unless_asked_for() -> None:
    pairs = [pair(file=f"f{i // 3}", UID=f"u{i // 3}", half="ab"[i % 2]) for i in range(12)]
    assert list(group_pairs(pairs)) == ["UID", "half"]
    assert list(group_pairs(pairs, ["file", "UID"])) == ["file", "UID"]


def test_pairs_without_a_field_are_a_group() -> None:
    pairs = [pair(UID="x"), pair(UID="x"), pair(), pair()]
    assert group_pairs(pairs)["UID"] == ["x", "x", ABSENT, ABSENT]


def test_any_field_groups_when_asked_for() -> None:
    assert group_pairs([pair(n=1), pair(n=True), pair(n=[2])], ["n"]) == {"n": ["1", "true", "[2]"]}
    with pytest.raises(ColakitError, match=r"no pair has a field 'UDI'\. Did you mean UID\?"):
        group_pairs([pair(UID="x")], ["UDI"])


# -- the command


@pytest.fixture(scope="module")
def runs(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from colakit.cli.app import main

    folder = tmp_path_factory.mktemp("runs")
    found = {name: folder / name for name in ("finetune", "train-scratch")}
    for name, path in found.items():
        arguments = [
            "--base",
            toy / "base",
            "--data",
            toy / "corpus",
            "--epochs",
            1,
            "--quiet",
            "--out",
            path,
        ]
        assert main([name, *map(str, arguments)]) == 0
    return found


def test_evaluate_scores_the_base_on_pairs(
    toy: Path, suite: Path, base: tuple[GPT, SentenceTokenizer], fp32: Compute, colakit: Run, tmp_path: Path
) -> None:
    code, out, err = colakit(
        "evaluate", "--pairs", suite, "--base", toy / "base", "--out", tmp_path / "out", "--json"
    )
    assert code == 0, err
    answer = json.loads(out)
    assert answer == json.loads((tmp_path / "out/pairs.json").read_text())
    assert answer["pairs"] == NUM_PAIRS
    (found,) = answer["models"]
    scores = score_pairs(base[0], *encode(base[1], draw_pairs()), fp32)
    assert found["summed"]["value"] == scores.correct.mean()
    assert found["per_token"] == scores.correct_per_token.mean()
    assert found["summed"]["low"] < found["summed"]["value"] < found["summed"]["high"]
    assert set(found["groups"]) == {"UID", "field"}
    by_field = found["groups"]["field"]
    assert by_field["morphology"]["summed"]["value"] == scores.correct[::2].mean()
    assert answer["group_sizes"]["field"] == {"morphology": NUM_PAIRS // 2, "syntax": NUM_PAIRS // 2}
    assert found["macro"]["field"]["summed"] == pytest.approx(
        (by_field["morphology"]["summed"]["value"] + by_field["syntax"]["summed"]["value"]) / 2
    )
    written = (tmp_path / "out/pairs.md").read_text()
    assert "pairs by UID" in written
    assert written.count("| mean of groups |") == 2
    assert written.count(f"| all | {NUM_PAIRS} |") == 2


def test_the_toy_base_knows_some_of_its_grammar(toy: Path, suite: Path, colakit: Run) -> None:
    _, out, _ = colakit("evaluate", "--pairs", suite, "--base", toy / "base", "--json")
    assert json.loads(out)["models"][0]["summed"]["value"] > 0.7  # by chance 0.5 ± 0.065


def test_evaluate_scores_adapters_beside_the_base(
    toy: Path, suite: Path, runs: dict[str, Path], colakit: Run
) -> None:
    run = runs["finetune"]
    command = ["evaluate", "--pairs", suite, run, run / "adapter"]
    code, out, err = colakit(*command, "--json")
    assert code == 0, err
    models = {found.pop("model"): found for found in json.loads(out)["models"]}
    assert list(models) == ["finetune", "adapter"]
    assert len({json.dumps(found) for found in models.values()}) == 1  # one model in two forms
    code, out, _ = colakit(*command[:-1], "--base", toy / "base", "--json")
    assert code == 0
    assert [found["model"] for found in json.loads(out)["models"]] == ["base base", "finetune"]


def test_bases_stand_side_by_side(toy: Path, suite: Path, colakit: Run, tmp_path: Path) -> None:
    shutil.copytree(toy / "base", tmp_path / "run" / "base")  # as pretrain leaves it in its run
    (tmp_path / "run" / "summary.json").write_text("{}")
    code, out, err = colakit(
        "evaluate", "--pairs", suite, "builtin", tmp_path / "run", toy / "base", "--json"
    )
    assert code == 0, err
    builtin, run, folder = json.loads(out)["models"]
    assert [found.pop("model") for found in (builtin, run, folder)] == ["base builtin", "run", "base"]
    assert run == folder != builtin


def test_a_folder_called_builtin_is_another_base_than_builtin(
    toy: Path, suite: Path, colakit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(toy / "base", tmp_path / "builtin")
    monkeypatch.chdir(tmp_path)
    code, out, err = colakit("evaluate", "--pairs", suite, "builtin", "./builtin", toy / "base", "--json")
    assert code == 0, err
    embedded, here, folder = (found["groups"] for found in json.loads(out)["models"])
    assert here == folder != embedded


def test_a_model_that_is_given_twice_lends_its_name_to_no_other(
    toy: Path, suite: Path, colakit: Run, tmp_path: Path
) -> None:
    for name in ("one", "two", "three"):
        shutil.copytree(toy / "base", tmp_path / name)
    models = [tmp_path / name for name in ("one", "one", "two", "three")]
    code, out, err = colakit("evaluate", "--pairs", suite, *models, "--dry-run")
    assert code == 0, err
    assert "with one, two, three, by" in " ".join(out.split())


def test_a_base_that_is_not_finished_is_no_model(
    toy: Path, suite: Path, colakit: Run, tmp_path: Path
) -> None:
    shutil.copytree(toy / "base", tmp_path / "run" / "base")
    code, _, err = colakit("evaluate", "--pairs", suite, tmp_path / "run")
    assert code == 2
    assert "holds neither ckpt.pt nor adapter_config.json" in err


def test_without_the_end_of_text_token_the_first_token_is_given(
    toy: Path, suite: Path, colakit: Run, fp32: Compute
) -> None:
    code, out, err = colakit(
        *("evaluate", "--pairs", suite, "--base", toy / "base", "--set", "evaluate.pairs_bos=false", "--json")
    )
    assert code == 0, err
    bare = SentenceTokenizer.from_folder(toy / "base")
    scores = score_pairs(load_gpt(toy / "base"), *encode(bare, draw_pairs()), fp32)
    answer = json.loads(out)
    assert answer["bos"] is False
    assert answer["models"][0]["summed"]["value"] == scores.correct.mean()
    assert (
        scores.good_tokens == bare.encode([line["sentence_good"] for line in draw_pairs()]).lengths - 1
    ).all()


def test_a_single_token_without_context_is_not_scored(toy: Path, tmp_path: Path, colakit: Run) -> None:
    file = write_pairs(tmp_path / "p.jsonl", [{"sentence_good": "a", "sentence_bad": "b"}])
    command = ["evaluate", "--pairs", file, "--base", toy / "base"]
    code, _, err = colakit(*command, "--set", "evaluate.pairs_bos=false")
    assert code == 0, err
    assert "2 sentences have a single token" in err
    assert "1 of 1 pairs are ties" in err
    assert "single token" not in colakit(*command)[2]


def test_sentences_beyond_the_model_s_positions_are_cut_and_counted(
    toy: Path, tmp_path: Path, colakit: Run, base: tuple[GPT, SentenceTokenizer]
) -> None:
    whole = "z" * POSITIONS  # no merges: a token each
    assert base[1].encode([whole]).lengths == [POSITIONS + 1]
    lines = [
        {"sentence_good": whole, "sentence_bad": "y" + whole[1:]},
        {"sentence_good": whole + "y", "sentence_bad": whole + "x"},  # alike once they are cut
    ]
    file = write_pairs(tmp_path / "p.jsonl", lines)
    code, out, err = colakit("evaluate", "--pairs", file, "--base", toy / "base", "--json")
    assert code == 0, err
    assert f"2 of 4 sentences are longer than {POSITIONS + 1} tokens" in " ".join(err.split())
    (found,) = json.loads(out)["models"]
    assert (found["truncated"], found["ties"]) == (2, 1)


def test_a_sentence_and_itself_is_pointed_out(toy: Path, tmp_path: Path, colakit: Run) -> None:
    lines = [*draw_pairs(3), {"sentence_good": "The cat.", "sentence_bad": "The cat."}]
    file = write_pairs(tmp_path / "p.jsonl", lines)
    code, out, err = colakit("evaluate", "--pairs", file, "--base", toy / "base", "--json")
    assert code == 0, err
    assert "1 of 4 pairs have two equal sentences" in err
    assert json.loads(out)["models"][0]["ties"] == 1


def test_several_files_are_grouped_by_file(toy: Path, tmp_path: Path, colakit: Run) -> None:
    lines = [{key: line[key] for key in ("sentence_good", "sentence_bad")} for line in draw_pairs(8)]
    first = write_pairs(tmp_path / "first.jsonl", lines[:4])
    second = write_pairs(tmp_path / "second.jsonl.gz", lines[4:])
    command = ["evaluate", "--pairs", first, "--pairs", second, "--base", toy / "base"]
    code, out, err = colakit(*command, "--json")
    assert code == 0, err
    assert json.loads(out)["group_sizes"] == {"file": {"first": 4, "second": 4}}
    code, out, _ = colakit("evaluate", "--pairs", first, "--base", toy / "base")
    assert code == 0
    assert "all" in out
    assert "mean of groups" not in out


def test_groups_are_those_asked_for(toy: Path, suite: Path, colakit: Run) -> None:
    command = ["evaluate", "--pairs", suite, "--base", toy / "base", "--json"]
    code, out, err = colakit(*command, "--group-by", "field,simple_LM_method")
    assert code == 0, err
    assert list(json.loads(out)["group_sizes"]) == ["field", "simple_LM_method"]
    assert json.loads(out)["group_sizes"]["simple_LM_method"] == {"true": 30, "false": 30}


def test_scores_are_fp32_unless_bf16_is_asked_for(toy: Path, suite: Path, colakit: Run) -> None:
    command = ["evaluate", "--pairs", suite, "--base", toy / "base", "--dry-run"]
    assert "float32" in colakit(*command)[1]
    assert "bfloat16" in colakit(*command, "--precision", "bf16")[1]
    code, _, err = colakit(*command[:-1], "--precision", "bf16", "--quiet")
    assert code == 0, err


def test_dry_run_reads_the_pairs_and_touches_nothing(
    toy: Path, suite: Path, colakit: Run, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, out, err = colakit(
        "evaluate", "--pairs", suite, "--base", toy / "base", "--out", tmp_path / "out", "--dry-run"
    )
    assert code == 0, err
    assert f"would score {NUM_PAIRS} pairs of {suite} with base base, by UID, field" in out
    assert sorted(tmp_path.rglob("*")) == before


FAULTS = {
    "nothing to evaluate": ([], "no MODEL given"),
    "groups of no pairs": (["{run}", "--group-by", "UID"], "--group-by UID: sentences are grouped by source"),
    "missing pairs": (["--pairs", "no.jsonl"], "--pairs no.jsonl: file not found"),
    "no pairs in a folder": (["--pairs", "{toy}/corpus"], "no file ends in .jsonl"),
    "pairs twice": (["--pairs", "{suite}", "--pairs", "{suite}"], "is given twice"),
    "pairs and data": (["--pairs", "{suite}", "--data", "{toy}/corpus"], "--data with --pairs"),
    "pairs and split": (["--pairs", "{suite}", "--split", "dev"], "--split with --pairs"),
    "pairs and annotations": (["--pairs", "{suite}", "--annotations", "x.tsv"], "--annotations with --pairs"),
    "no such field": (["--pairs", "{suite}", "--group-by", "fiedl"], "Did you mean field?"),
    "no such model": (["--pairs", "{suite}", "no-run"], "no-run: not found"),
    "a student": (["--pairs", "{suite}", "{student}"], "a recurrent student is not a language model"),
    "missing base": (["--pairs", "{suite}", "--base", "./nowhere"], "./nowhere"),
    "out is a file": (["--pairs", "{suite}", "--out", "{suite}"], "is a file"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named_with_exit_code_2(
    name: str, toy: Path, suite: Path, runs: dict[str, Path], colakit: Run, tmp_path: Path
) -> None:
    arguments, expected = FAULTS[name]
    before = sorted(tmp_path.rglob("*"))
    places = {"toy": toy, "suite": suite, "run": runs["finetune"], "student": runs["train-scratch"]}
    code, _, err = colakit("evaluate", *(a.format(**places) for a in arguments))
    assert code == 2, err
    assert expected in err
    assert "hint:" in err or "did you mean" in err.lower() or name == "out is a file"
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_adapter_on_another_base_is_refused(
    toy: Path, suite: Path, runs: dict[str, Path], colakit: Run, tmp_path: Path
) -> None:
    from support.toy import write_base

    write_base(tmp_path / "other", seed=1, steps=1, width=32)
    adapter = runs["finetune"] / "adapter"
    for command in (
        ["evaluate", "--pairs", suite, adapter],
        ["generate", "--adapter", adapter, "--prompt", "x"],
    ):
        code, _, err = colakit(*command, "--base", tmp_path / "other")
        assert code == 2
        assert "was trained on a base with fingerprint" in err
