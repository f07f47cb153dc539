"""What the results of a report show, and what they do not, in sentences that follow from the numbers.

A difference is called one only if its interval excludes 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from colakit.evaluation.comparison import GroupRow, PairRow, SplitComparison
from colakit.evaluation.metrics import Spread
from colakit.evaluation.split_report import Evaluation
from colakit.evaluation.tables import format_interval, format_spread, percent
from colakit.reports.figures.style import split_title


def conclusions(evaluation: Evaluation) -> list[str]:
    """Return what the results show, split by split, `dev` (the union) last."""
    texts = []
    for split, report in evaluation.reports.items():
        comparison = report.comparison
        best = max(comparison.groups, key=lambda row: row.mcc_mean)
        texts.append(
            f"{title_of(split)}: the highest MCC is {mcc_of(best)}, of {best.group}, with an accuracy of "
            f"{accuracy_of(best)} %; always predicting the majority label has "
            f"{percent(best.majority_rate)} %."
        )
        texts += control_verdicts(comparison)
        texts += _below_majority(split, comparison)
        for row in report.teaching:
            if row.mcc_kept is not None:
                texts.append(
                    f"{title_of(split)}: {row.group} keeps {format_interval(row.mcc_kept, 100, 0)} % of its "
                    f"teacher's MCC with {row.num_parameters:,} of {row.teacher_parameters:,} parameters."
                )
    return texts


def control_verdicts(comparison: SplitComparison) -> Iterator[str]:
    """Yield whether distilling helped, for each pair of a distilled student and a control."""
    for pair in comparison.pairs:
        commands = tuple(name.partition(" ")[0] for name in (pair.first, pair.second))
        if commands == ("distill", "train-scratch"):
            yield _verdict(comparison.split, pair)
        elif commands == ("train-scratch", "distill"):
            yield _verdict(comparison.split, _swapped(pair))


def _swapped(pair: PairRow) -> PairRow:
    accuracy, mcc = (
        replace(each, value=-each.value, low=-each.high, high=-each.low) for each in (pair.accuracy, pair.mcc)
    )
    return replace(pair, first=pair.second, second=pair.first, accuracy=accuracy, mcc=mcc)


def _verdict(split: str, pair: PairRow) -> str:
    """Return whether distilling helped on a split."""
    mcc = pair.mcc
    interval = format_interval(mcc, 1, 3, signed=True)
    difference = f"{title_of(split)}: ΔMCC of {pair.first} minus {pair.second} is {interval}"
    if mcc.low > 0:
        return f"{difference}. The interval excludes 0: distilling helped."
    if mcc.high < 0:
        return f"{difference}. The interval excludes 0: distilling did harm."
    return (
        f"{difference}. The interval includes 0: no effect of distilling is shown. The split would show a "
        f"difference of {pair.detectable_mcc:.3f} with a power of 80 %."
    )


def _below_majority(split: str, comparison: SplitComparison) -> Iterator[str]:
    for row in comparison.groups:
        if row.accuracy_mean < row.majority_rate:
            yield (
                f"{title_of(split)}: {row.group} is less accurate than always predicting the majority label "
                f"({accuracy_of(row)} % against {percent(row.majority_rate)} %)."
            )


def limits(evaluation: Evaluation, num_teachers: int, *, tracked_dev: bool) -> list[str]:
    """Return what the results do not show.

    Args:
        num_teachers: different ones, of all students.
        tracked_dev: whether dev was measured during a training.
    """
    comparisons = [report.comparison for report in evaluation.reports.values()]
    texts = []
    seeds = {row.group: row.num_seeds for row in comparisons[0].groups}
    single = [group for group, count in seeds.items() if count == 1]
    if single:
        texts.append(
            f"One run only of {', '.join(single)}: the spread over seeds is unknown, and differences between "
            "runs may be chance."
        )
    texts.append(
        "Intervals are over sentences, with the trained models fixed. They do not cover the choice of seeds."
    )
    if num_teachers:
        count = "one teacher" if num_teachers == 1 else f"{num_teachers} teachers"
        texts.append(f"The students have {count}; another teacher may give another result.")
    for comparison in comparisons:
        if comparison.pairs:
            least = min(pair.detectable_mcc for pair in comparison.pairs)
            texts.append(
                f"{title_of(comparison.split)} has {comparison.models[0].metrics.num_examples:,} sentences: "
                f"a difference of MCC below {least:.3f} would mostly go unseen."
            )
    if tracked_dev:
        texts.append("Dev was also measured during training (track_dev), but nothing was chosen by it.")
    texts.append(
        "Epoch, threshold and temperature were chosen on the validation split, a part of train. This report "
        "cannot know how often dev was looked at before other settings were chosen."
    )
    tests = sum(len(pair.mcnemar_p) for comparison in comparisons for pair in comparison.pairs)
    if tests > 1:
        texts.append(
            f"{tests} tests of differences were made; p values are corrected within each split (Holm), "
            "intervals are not corrected."
        )
    return [*texts, *evaluation.unequal]


def title_of(split: str) -> str:
    """Return the name of a split, to begin a sentence."""
    title = split_title(split)
    return title[:1].upper() + title[1:]


def accuracy_of(row: GroupRow) -> str:
    """Return the accuracy of an experiment in percent, mean ± sd."""
    return format_spread(Spread(row.accuracy_mean, row.accuracy_sd), 100, 2)


def mcc_of(row: GroupRow) -> str:
    """Return the MCC of an experiment, mean ± sd."""
    return format_spread(Spread(row.mcc_mean, row.mcc_sd), 1, 3)
