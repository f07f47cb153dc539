"""Scores of minimal pairs: against transformers, invariance to batching, and `evaluate --pairs`."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.pairs import NUM_PAIRS, draw_pairs, write_pairs

from colakit.data.tokenizer import SentenceTokenizer
from colakit.data.tokens import Tokens
from colakit.evaluation import minimal_pairs
from colakit.evaluation.minimal_pairs import PairScores, accuracy, score_pairs
from colakit.models.gpt.model import GPT
from colakit.runtime.device import Compute
from colakit.storage.gpt2 import load_gpt

Run = Callable[..., tuple[int, str, str]]
POSITIONS = 64  # of the toy base


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "suite.jsonl", draw_pairs())


@pytest.fixture(scope="module")
def base(toy: Path) -> tuple[GPT, SentenceTokenizer]:
    model = load_gpt(toy / "base").requires_grad_(False)
    return model, SentenceTokenizer.from_base(toy / "base", prefix=True)


def encode(tokenizer: SentenceTokenizer, lines: list[dict[str, Any]]) -> tuple[Tokens, Tokens]:
    good, bad = (tokenizer.encode([line[f"sentence_{side}"] for line in lines]) for side in ("good", "bad"))
    return good, bad


def transformers_sums(folder: Path, sentences: list[str], *, bos: bool) -> list[float]:
    """Sum log p(token | tokens to its left) sentence by sentence, without colakit."""
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
def test_scores_match_transformers(toy: Path, fp32: Compute, bos: bool) -> None:
    lines = draw_pairs(20)
    tokenizer = SentenceTokenizer.from_base(toy / "base", prefix=bos)
    scores = score_pairs(load_gpt(toy / "base"), *encode(tokenizer, lines), fp32)
    for result, side in ((scores.good, "good"), (scores.bad, "bad")):
        expected = transformers_sums(toy / "base", [line[f"sentence_{side}"] for line in lines], bos=bos)
        # both fp32, summed in another order over some twenty tokens
        np.testing.assert_allclose(result, expected, atol=1e-4, rtol=0)


def test_mini_base_agrees_with_transformers_on_english(shared: Path, fp32: Compute) -> None:
    folder = shared / "models/mini-v0"
    lines = [
        {"sentence_good": "The keys to the old house are here.", "sentence_bad": "The keys to are here."},
        {"sentence_good": "She has seen it.", "sentence_bad": "She have seen it."},
    ]
    tokenizer = SentenceTokenizer.from_base(folder, prefix=True)
    scores = score_pairs(load_gpt(folder), *encode(tokenizer, lines), fp32)
    for result, side in ((scores.good, "good"), (scores.bad, "bad")):
        expected = transformers_sums(folder, [line[f"sentence_{side}"] for line in lines], bos=True)
        np.testing.assert_allclose(result, expected, atol=1e-4, rtol=0)


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
    monkeypatch.setattr(minimal_pairs, "MAX_BATCH_TOKENS", max_tokens)
    monkeypatch.setattr(minimal_pairs, "MAX_LOGITS", max_logits)
    done: list[int] = []
    other = score_pairs(model, *tokens, fp32, batch_size, done.append)
    assert sum(done) == 2 * NUM_PAIRS
    for side in ("good", "bad"):  # matrices of other shapes are summed in another order
        np.testing.assert_allclose(getattr(other, side), getattr(whole, side), atol=1e-4, rtol=0)


def test_a_pair_of_equal_sentences_is_a_tie_and_wrong(
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


def test_accuracy_per_token_compares_means_not_sums() -> None:
    scores = scores_of([-10.0, -8.0, -6.0, -0.75], [-9.0, -9.0, -4.0, -0.25], [10, 4, 3, 3], [6, 6, 2, 1])
    assert scores.correct.tolist() == [False, True, False, False]
    assert scores.correct_per_token.tolist() == [True, False, False, False]  # the third and fourth are ties
    assert scores.num_ties == 0


@pytest.mark.parametrize(("right", "total"), [(0, 5), (5, 5), (7, 9), (640, 1000)])
def test_intervals_match_wilson_s_formula(right: int, total: int) -> None:
    good = np.where(np.arange(total) < right, -1.0, -3.0)
    result = accuracy(scores_of(good.tolist(), [-2.0] * total, [4] * total, [4] * total)).summed
    z, p = 1.959963984540054, right / total  # Wilson 1927
    centre, half = p + z * z / (2 * total), z * math.sqrt(p * (1 - p) / total + (z / (2 * total)) ** 2)
    assert result.value == p
    assert result.low == pytest.approx((centre - half) / (1 + z * z / total), abs=1e-12)
    assert result.high == pytest.approx((centre + half) / (1 + z * z / total), abs=1e-12)


@pytest.fixture(scope="module")
def runs(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from colakit.cli.app import main

    folder = tmp_path_factory.mktemp("runs")
    result = {name: folder / name for name in ("finetune", "train-scratch")}
    for name, path in result.items():
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
    return result


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
    (result,) = answer["models"]
    scores = score_pairs(base[0], *encode(base[1], draw_pairs()), fp32)
    assert result["summed"]["value"] == scores.correct.mean()
    assert result["per_token"] == scores.correct_per_token.mean()
    assert result["summed"]["low"] < result["summed"]["value"] < result["summed"]["high"]
    assert set(result["groups"]) == {"UID", "field"}
    by_field = result["groups"]["field"]
    assert by_field["morphology"]["summed"]["value"] == scores.correct[::2].mean()
    assert answer["group_sizes"]["field"] == {"morphology": NUM_PAIRS // 2, "syntax": NUM_PAIRS // 2}
    assert result["macro"]["field"]["summed"] == pytest.approx(
        (by_field["morphology"]["summed"]["value"] + by_field["syntax"]["summed"]["value"]) / 2
    )
    written = (tmp_path / "out/pairs.md").read_text()
    assert "pairs by UID" in written
    assert written.count("| mean of groups |") == 2
    assert written.count(f"| all | {NUM_PAIRS} |") == 2


def test_the_toy_base_is_better_than_chance(toy: Path, suite: Path, colakit: Run) -> None:
    _, out, _ = colakit("evaluate", "--pairs", suite, "--base", toy / "base", "--json")
    assert json.loads(out)["models"][0]["summed"]["value"] > 0.7  # by chance 0.5 ± 0.065


def test_evaluate_compares_adapters_with_the_base(
    toy: Path, suite: Path, runs: dict[str, Path], colakit: Run
) -> None:
    run = runs["finetune"]
    command = ["evaluate", "--pairs", suite, run, run / "adapter"]
    code, out, err = colakit(*command, "--json")
    assert code == 0, err
    models = {result.pop("model"): result for result in json.loads(out)["models"]}
    assert list(models) == ["finetune", "adapter"]
    assert len({json.dumps(result) for result in models.values()}) == 1  # one model in two forms
    code, out, _ = colakit(*command[:-1], "--base", toy / "base", "--json")
    assert code == 0
    assert [result["model"] for result in json.loads(out)["models"]] == ["base base", "finetune"]


def test_several_bases_are_compared(toy: Path, suite: Path, colakit: Run, tmp_path: Path) -> None:
    shutil.copytree(toy / "base", tmp_path / "run" / "base")  # as written by pretrain
    (tmp_path / "run" / "summary.json").write_text("{}")
    code, out, err = colakit(
        "evaluate", "--pairs", suite, "builtin", tmp_path / "run", toy / "base", "--json"
    )
    assert code == 0, err
    builtin, run, folder = json.loads(out)["models"]
    assert [result.pop("model") for result in (builtin, run, folder)] == ["base builtin", "run", "base"]
    assert run == folder != builtin


def test_a_folder_called_builtin_is_another_base_than_builtin(
    toy: Path, suite: Path, colakit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(toy / "base", tmp_path / "builtin")
    monkeypatch.chdir(tmp_path)
    code, out, err = colakit("evaluate", "--pairs", suite, "builtin", "./builtin", toy / "base", "--json")
    assert code == 0, err
    embedded, here, folder = (result["groups"] for result in json.loads(out)["models"])
    assert here == folder != embedded


def test_a_model_given_twice_is_evaluated_once(toy: Path, suite: Path, colakit: Run, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        shutil.copytree(toy / "base", tmp_path / name)
    models = [tmp_path / name for name in ("one", "one", "two", "three")]
    code, out, err = colakit("evaluate", "--pairs", suite, *models, "--dry-run")
    assert code == 0, err
    assert "with one, two, three, by" in " ".join(out.split())


def test_an_unfinished_base_is_an_error(toy: Path, suite: Path, colakit: Run, tmp_path: Path) -> None:
    shutil.copytree(toy / "base", tmp_path / "run" / "base")
    code, _, err = colakit("evaluate", "--pairs", suite, tmp_path / "run")
    assert code == 2
    assert "holds neither ckpt.pt nor adapter_config.json" in err


def test_without_the_end_of_text_token_the_first_token_is_not_scored(
    toy: Path, suite: Path, colakit: Run, fp32: Compute
) -> None:
    code, out, err = colakit(
        *("evaluate", "--pairs", suite, "--base", toy / "base", "--set", "evaluate.pairs_bos=false", "--json")
    )
    assert code == 0, err
    bare = SentenceTokenizer.from_base(toy / "base")
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


def test_sentences_longer_than_the_context_are_truncated_and_counted(
    toy: Path, tmp_path: Path, colakit: Run, base: tuple[GPT, SentenceTokenizer]
) -> None:
    whole = "z" * POSITIONS  # no merges: a token each
    assert base[1].encode([whole]).lengths == [POSITIONS + 1]
    lines = [
        {"sentence_good": whole, "sentence_bad": "y" + whole[1:]},
        {"sentence_good": whole + "y", "sentence_bad": whole + "x"},  # equal once truncated
    ]
    file = write_pairs(tmp_path / "p.jsonl", lines)
    code, out, err = colakit("evaluate", "--pairs", file, "--base", toy / "base", "--json")
    assert code == 0, err
    assert f"2 of 4 sentences are longer than {POSITIONS + 1} tokens" in " ".join(err.split())
    (result,) = json.loads(out)["models"]
    assert (result["truncated"], result["ties"]) == (2, 1)


def test_pairs_of_equal_sentences_are_warned_about(toy: Path, tmp_path: Path, colakit: Run) -> None:
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


def test_group_by_selects_the_groups(toy: Path, suite: Path, colakit: Run) -> None:
    command = ["evaluate", "--pairs", suite, "--base", toy / "base", "--json"]
    code, out, err = colakit(*command, "--group-by", "field,simple_LM_method")
    assert code == 0, err
    assert list(json.loads(out)["group_sizes"]) == ["field", "simple_LM_method"]
    assert json.loads(out)["group_sizes"]["simple_LM_method"] == {"true": 30, "false": 30}


def test_scores_are_fp32_unless_bf16_is_set(toy: Path, suite: Path, colakit: Run) -> None:
    command = ["evaluate", "--pairs", suite, "--base", toy / "base", "--dry-run"]
    assert "float32" in colakit(*command)[1]
    assert "bfloat16" in colakit(*command, "--precision", "bf16")[1]
    code, _, err = colakit(*command[:-1], "--precision", "bf16", "--quiet")
    assert code == 0, err


def test_dry_run_reads_the_pairs_and_writes_nothing(
    toy: Path, suite: Path, colakit: Run, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, out, err = colakit(
        "evaluate", "--pairs", suite, "--base", toy / "base", "--out", tmp_path / "out", "--dry-run"
    )
    assert code == 0, err
    assert f"would score {NUM_PAIRS} pairs of {suite} with base base, by UID, field" in out
    assert sorted(tmp_path.rglob("*")) == before


ERRORS = {
    "nothing to evaluate": ([], "evaluate: no MODEL given"),
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


@pytest.mark.parametrize("name", ERRORS)
def test_errors_have_exit_code_2(
    name: str, toy: Path, suite: Path, runs: dict[str, Path], colakit: Run, tmp_path: Path
) -> None:
    arguments, expected = ERRORS[name]
    before = sorted(tmp_path.rglob("*"))
    paths = {"toy": toy, "suite": suite, "run": runs["finetune"], "student": runs["train-scratch"]}
    code, _, err = colakit("evaluate", *(a.format(**paths) for a in arguments))
    assert code == 2, err
    assert expected in err
    assert "hint:" in err or "did you mean" in err.lower() or name == "out is a file"
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_adapter_of_another_base_is_an_error(
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
