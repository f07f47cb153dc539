"""One call of a command or API function: settings, console, output folder, device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from colakit.config.data import DataSettings
from colakit.config.paths import absolute_path, map_paths, portable_name
from colakit.config.resolve import Resolved
from colakit.config.settings import Settings
from colakit.config.sweep import SweepSettings
from colakit.storage.output import check_writable
from colakit.utils.console import Reporter, SilentReporter

if TYPE_CHECKING:  # imported where used, so that `colakit --help` and `predict` start without torch
    from torch import nn

    from colakit.data.corpora import Corpus
    from colakit.runtime.device import Compute
    from colakit.storage.output import Resume
    from colakit.training.job import JobOptions
    from colakit.training.run import TrainingRun
    from colakit.training.task_data import TaskData
    from colakit.training.trainer import Trainer
    from colakit.utils.array_cache import ArrayCache
    from colakit.utils.plan import Stage


@dataclass
class Session:
    """One call.

    Attributes:
        command: its name, also the name of its run folder.
        resolved: validated settings and their origins.
        reporter: console for progress, warnings and results.
        out: output folder; None uses the command's default.
        dry_run: check everything and print the plan; write nothing.
        as_json: stdout carries one JSON object.
    """

    command: str
    resolved: Resolved
    reporter: Reporter = field(default_factory=Reporter)
    out: Path | None = None
    dry_run: bool = False
    as_json: bool = False
    _loaded: tuple[DataSettings, Corpus] | None = field(default=None, init=False, repr=False)

    @property
    def settings(self) -> Settings:
        """The validated settings."""
        return self.resolved.settings

    @cached_property
    def cache_folder(self) -> Path:
        """Folder of downloads and cached arrays."""
        from colakit.utils.array_cache import default_cache

        return self.settings.cache_folder or default_cache()

    @cached_property
    def arrays(self) -> ArrayCache:
        """Cache of computed arrays; read-only in a dry run."""
        from colakit.utils.array_cache import ArrayCache

        return ArrayCache(self.cache_folder, self.reporter.say, read_only=self.dry_run)

    @cached_property
    def compute(self) -> Compute:
        """Device and precision."""
        from colakit.runtime.device import is_bf16_faster, resolve_compute
        from colakit.runtime.distributed import local_rank

        compute = resolve_compute(self.settings.device, self.settings.precision, local_rank=local_rank())
        is_fast, why = is_bf16_faster(compute.device)
        if self.settings.precision == "bf16" and not is_fast:
            self.reporter.warn(
                f"--precision bf16: slower than fp32 here ({why}); --precision auto is the faster"
            )
        return self._with_kernels(compute) if compute.int8 else compute

    @cached_property
    def gpt_training_compute(self) -> Compute:
        """Device and precision for training a GPT: with CPU kernels, compiled on first use, if enabled."""
        return self._with_kernels(self.compute)

    def _with_kernels(self, compute: Compute) -> Compute:
        if not self.dry_run:
            return compute.with_kernels(self.settings.cpu_kernels, self.cache_folder / "native")
        with TemporaryDirectory() as folder:  # a dry run measures with kernels, and leaves no file
            return compute.with_kernels(self.settings.cpu_kernels, Path(folder))

    def load_corpus(
        self, data: DataSettings | None = None, *, before_fetch: Callable[[], object] = lambda: None
    ) -> Corpus:
        """Return the corpus of `data` (default: the settings), loaded once; a dry run downloads nothing.

        Args:
            before_fetch: called before a download.
        """
        from colakit.data.loading import load_dataset

        data = data or self.settings.data
        if self._loaded is None or self._loaded[0] != data:
            allowed = None if self.dry_run else before_fetch
            corpus = load_dataset(data, self.cache_folder, self.reporter, before_fetch=allowed)
            self._loaded = data, corpus
        return self._loaded[1]

    def load_task(self, *, bases: Mapping[str, str] | None = None) -> TaskData:
        """Return the corpus divided into train, validation and report splits.

        Args:
            bases: flag -> base; raise `ColakitError` before data are downloaded if one is missing. None is
                the base of the settings.
        """
        from colakit.storage.gpt2 import resolve_base
        from colakit.training.task_data import split_corpus

        def check() -> None:
            for flag, base in ({"--base": self.settings.base} if bases is None else bases).items():
                resolve_base(base, flag)

        corpus = self.load_corpus(before_fetch=check)
        evaluate_dev = self.settings.evaluate_dev
        return split_corpus(corpus, self.settings.data, self.reporter, evaluate_dev=evaluate_dev)

    def job_options(self) -> JobOptions:
        """Return the fields of a `TrainJob` that are the same for every command.

        Raises:
            ColakitError: if the package of a store is missing.
        """
        from colakit.training.tracking import require_packages

        require_packages(self.settings.track)
        return {
            "command": self.command,
            "seed": self.settings.seed,
            "settings_yaml": self.settings_yaml,
            "origins": self.resolved.origins,
            "cpu_kernels": self.settings.cpu_kernels,
            "track": self.settings.track,
        }

    @property
    def settings_yaml(self) -> str:
        """The settings as YAML for a run folder, with absolute paths: valid from any working folder."""
        from colakit.config.yaml import to_yaml

        return to_yaml(self._of_one_run(absolute_path))

    def portable_settings(self) -> dict[str, Any]:
        """Return the settings as plain data for a model file, without folders of this machine."""
        return {**self._of_one_run(portable_name).model_dump(mode="json"), "cache": None}

    def _of_one_run(self, convert: Callable[[str], str]) -> Settings:
        """Return the settings with converted paths, without a search space, which no run has."""
        return map_paths(self.settings.model_copy(update={"sweep": SweepSettings()}), convert)

    @contextmanager
    def training_run(self, resume: Resume) -> Iterator[TrainingRun]:
        """Join the processes of `torchrun`, if any, and yield the run in `out`."""
        from colakit.runtime.distributed import processes
        from colakit.training.run import is_resuming, training_run

        is_resuming(self.out, resume)  # raises before the processes connect
        with processes(self.compute) as group:
            if not group.is_main:
                self.reporter = Reporter(quiet=True, results_on_stderr=True)
            with training_run(self.command, self.out, resume, group=group, reporter=self.reporter) as run:
                yield run

    def check_out(self) -> None:
        """Raise `ColakitError` unless `out`, if given, is a writable folder or can be created."""
        if self.out is not None:
            check_writable(self.out)

    def plan(
        self, task: TaskData, model: nn.Module, make_stages: Callable[[], list[Stage]] | None
    ) -> dict[str, Any]:
        """Print what a training would do, and return it as plain data.

        Args:
            make_stages: measures the stages; None if the weights that it needs are not on this machine.
        """
        from colakit.models.gpt.model import num_frozen_blocks
        from colakit.utils.plan import Plan

        parameters = self.print_parameters(model)
        if frozen := num_frozen_blocks(model):
            self.reporter.result(f"blocks below {frozen} are frozen")
        self.reporter.result(f"compute: {self.compute}")
        sizes = ", ".join(f"{size:,} {name}" for name, size in task.sizes().items())
        self.reporter.result(f"sentences: {sizes}")
        plan = Plan([] if make_stages is None else make_stages(), self.reporter)
        plan.show(self.reporter.result)
        if make_stages is None:
            self.reporter.result("time unknown: the base is not on this machine; a dry run downloads nothing")
        return {
            "command": self.command,
            "settings": self.settings.model_dump(mode="json"),
            "parameters": parameters,
            "sentences": task.sizes(),
            "compute": str(self.compute),
            "stages": plan.as_dict(),
        }

    def with_local_base(self, *, of_student: bool = False) -> Session | None:
        """Return the session with the folder of its base; None if the base must be downloaded.

        Args:
            of_student: the base is `student.base`; without it, the session is returned as it is.
        """
        from colakit.storage.gpt2 import local_base

        settings, student = self.settings, self.settings.student
        name = student.base if of_student else settings.base
        if name is None:
            return self
        if (folder := local_base(name)) is None:
            return None
        base = {"base": str(folder)}
        changes = {"student": student.model_copy(update=base)} if of_student else base
        return replace(self, resolved=replace(self.resolved, settings=settings.model_copy(update=changes)))

    def measurable_stages(
        self,
        task: TaskData,
        make_trainer: Callable[[Session, TaskData, TrainingRun], Trainer],
        *,
        of_student: bool = False,
    ) -> Callable[[], list[Stage]] | None:
        """Return a function that measures the stages of a training; None if the base must be downloaded.

        Args:
            of_student: the training reads `student.base` instead of `base`.
        """
        if (local := self.with_local_base(of_student=of_student)) is None:
            return None
        return lambda: local.trainer_stages(lambda run: make_trainer(local, task, run))

    def trainer_stages(self, make_trainer: Callable[[TrainingRun], Trainer]) -> list[Stage]:
        """Return the stages of a training that does not run, with their measured seconds."""
        from colakit.runtime.distributed import Processes
        from colakit.storage.output import Resume
        from colakit.training.estimate import plan_training
        from colakit.training.run import TrainingRun

        run = TrainingRun(self.command, None, Resume.NEVER, Processes(), SilentReporter())
        return plan_training(make_trainer(run))

    def print_parameters(self, model: nn.Module) -> dict[str, object]:
        """Print the table of parameters by module, and return it as plain data."""
        from colakit.models.parameters import count_parameters
        from colakit.models.rnn.model import DistilRNN

        report = count_parameters(model)
        rows = [[row.name, f"{row.trainable:,}", f"{row.total:,}"] for row in report.rows]
        rows.append(["all", f"{report.trainable:,}", f"{report.total:,}"])
        if not self.reporter.quiet:
            self.reporter.table("Parameters", ["module", "trainable", "total"], rows)
        share = f"{report.trainable:,} of {report.total:,} parameters train ({100 - report.reduction:.2f} %)"
        if isinstance(model, DistilRNN) and report.trainable:
            share = (
                f"{report.total:,} parameters train, except embeddings of tokens outside the training data"
            )
        self.reporter.result(share if report.trainable else f"{report.total:,} parameters")
        return report.as_dict()
