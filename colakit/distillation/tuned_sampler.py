"""The language model that samples for a transfer set: a base, first fine-tuned on the sentences of train."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from colakit.config.finetune import FinetuneSettings, LoRASettings
from colakit.config.student import TransferSettings
from colakit.config.yaml import to_yaml
from colakit.distillation.collector import rounds
from colakit.distillation.samplers import BATCH_SIZE, LENGTHS, SENTENCE_TOKENS, WORD_TOKENS, SentenceSampler
from colakit.distillation.samplers import FORMAT as SAMPLING_FORMAT
from colakit.errors import ColakitError
from colakit.runtime.device import Compute
from colakit.runtime.distributed import Processes
from colakit.storage.gpt2 import base_fingerprint, load_gpt, load_tokenizer, resolve_base
from colakit.storage.output import Resume
from colakit.storage.run_folder import RunFolder
from colakit.training.estimate import plan_training
from colakit.training.lm_trainer import SentenceLMTrainer
from colakit.training.model_setup import sentence_lm_identity, sentence_lm_job
from colakit.training.run import TrainingRun
from colakit.training.task_data import TaskData
from colakit.utils.array_cache import WAIT_SECONDS, ArrayCache, key_digest, pack_lines, unpack_lines
from colakit.utils.console import Reporter, SilentReporter
from colakit.utils.plan import Plan, Stage

TUNING = "tuning the sampler"
KEPT = 0.75  # share of the samples that are new, complete sentences, for estimates
FORMAT = 1  # increase when samplers are trained differently
SHARED = (  # settings of `finetune` that samplers use; the others are for classifiers
    *("method", "lr", "batch_size", "micro_batch_size", "weight_decay", "schedule", "warmup", "decay"),
    *("max_grad_norm", "base_dropout", "log_every", "save_every_steps"),
)


@dataclass
class TunedSampler:
    """A base, fine-tuned for `transfer.sampler_epochs` epochs on train as a language model.

    It is trained once, like `finetune --objective language-modelling`, in a run folder in the cache.

    Attributes:
        base: with 0 epochs it samples as it is.
        compute: for sampling.
        training_compute: for fine-tuning.
    """

    task: TaskData
    base: str
    transfer: TransferSettings
    finetune: FinetuneSettings
    lora: LoRASettings
    max_tokens: int | None
    start_token: str | None
    compute: Compute
    training_compute: Compute
    cpu_kernels: str
    cache_folder: Path
    arrays: ArrayCache
    reporter: Reporter

    def __post_init__(self) -> None:
        self.tuning = FinetuneSettings(
            objective="language-modelling",
            epochs=max(1, self.transfer.sampler_epochs),
            **{name: getattr(self.finetune, name) for name in SHARED},
        )

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Plain data that determines what it samples."""
        folder, is_tuned = resolve_base(self.base), self.transfer.sampler_epochs > 0
        identity = {
            "base": base_fingerprint(load_gpt(folder)),
            "tokenizer": load_tokenizer(folder).vocabulary(),
            **({} if self.start_token is None else {"start_token": self.start_token}),
            "compute": (self.training_compute if is_tuned else self.compute).arithmetic,
        }
        if not is_tuned:
            return identity
        return {
            **identity,
            **self.task.identity(),
            **sentence_lm_identity(self.tuning, self.lora),
            "format": FORMAT,
            "seed": self.transfer.seed,
            "max_tokens": self.max_tokens,
        }

    def folder(self) -> Path:
        """Return the folder of its weights, after training them if they are not cached.

        Raises:
            ColakitError: if the cache is not writable, or the training ends early.
        """
        if not self.transfer.sampler_epochs:
            return resolve_base(self.base)
        folder = self._run_folder()
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ColakitError(
                f"{error.filename or folder.path}: {error.strerror}",
                hint="Choose another cache: --set cache=FOLDER",
            ) from error
        with folder.lock.held(WAIT_SECONDS, self._say_waiting):
            if not folder.summary.is_file():
                self._train(folder)
        return folder.base

    def _run_folder(self) -> RunFolder:
        return RunFolder(self.cache_folder / "writers" / key_digest(self.identity))

    def _say_waiting(self, holder: str) -> None:
        self.reporter.say(f"waiting for process {holder}, which is training the sampler")

    def plan_tuning(self) -> list[Stage]:
        """Return the stage of fine-tuning with its estimated seconds; none if the base is not tuned."""
        if not self.transfer.sampler_epochs:
            return []
        if self._run_folder().summary.is_file():
            return [Stage(TUNING, estimate=0.0)]
        trainer = self._trainer(self._run_folder(), SilentReporter())
        stages = plan_training(trainer)
        seconds = [stage.estimate for stage in stages]
        estimate = None if None in seconds else sum(filter(None, seconds))
        return [Stage(TUNING, steps=trainer.max_steps, estimate=estimate)]

    def _trainer(self, folder: RunFolder, reporter: Reporter) -> SentenceLMTrainer:
        resuming = bool(folder.checkpoints.paths())
        run = TrainingRun("sampler", folder.path, Resume.AUTO, Processes(), reporter, folder, resuming)
        run.plan, run.title = Plan([], reporter), TUNING
        job = sentence_lm_job(
            self.task,
            self.base,
            self.tuning,
            self.lora,
            options={
                "command": "sampler",
                "seed": self.transfer.seed,
                "settings_yaml": to_yaml(self.tuning),
                "origins": {},
                "cpu_kernels": self.cpu_kernels,
                "track": (),
            },
            max_tokens=self.max_tokens,
            start_token=self.start_token,
            compute=self.training_compute,
            reporter=reporter,
        )
        return SentenceLMTrainer(job, run)

    def _train(self, folder: RunFolder) -> None:
        self.reporter.say(f"fine-tuning {self.base} on train, to sample similar sentences")
        within = Reporter(quiet=self.reporter.quiet, within=True)
        within.stage = self.reporter.stage
        try:
            self._trainer(folder, within).train()
        except ColakitError as error:
            raise ColakitError(
                f"training the sampler: {error.message}",
                hint=f"Run the same command again to continue; delete {folder.path} to start over.",
                exit_code=error.exit_code,
            ) from error
        shutil.rmtree(folder.checkpoints.folder)  # a finished sampler is never resumed

    def lm_samples(self) -> Iterator[str]:
        """Yield sampled sentences that begin like those of train, until a round yields hardly any."""
        return self._sample(
            "samples", lambda seed: self.sampler.continuations(self.task.train.sentences, seed)
        )

    def word_resamples(self) -> Iterator[str]:
        """Yield sentences of train with one word replaced, without end."""
        return self._sample(
            "resampled", lambda seed: self.sampler.word_resamples(self.task.train.sentences, seed)
        )

    def _sample(self, kind: str, draw: Callable[[str], Iterator[str]]) -> Iterator[str]:
        numbers = itertools.count()

        def sample_round() -> Iterator[str]:
            """Yield one round; complete rounds are cached, to continue or to draw more later."""
            seed = f"{self.transfer.seed}, {kind}, round {next(numbers)}"  # changes all draws
            key = {
                "writer": self.identity,
                "train": self.task.train.fingerprint(),
                "sampling": SAMPLING_FORMAT,
                "round_size": self.sampler.round_size,
                "temperature": self.transfer.temperature,
                "seed": seed,
            }
            if (cached := self.arrays.load("written", key)) is not None:
                yield from unpack_lines(cached)
                return
            sampled = []
            for sentence in draw(seed):
                sampled.append(sentence)
                yield sentence
            self.arrays.store("written", key, pack_lines(sampled))

        return rounds(sample_round, self.sampler.least)

    def measure_sentences(self, count: int) -> float:
        """Return the expected seconds to sample `count` sentences that are as long as those of train."""
        tokens, sampler = self._mean_tokens()
        # a base that is not fine-tuned writes longer sentences
        new = tokens - tokens // 4 if self.transfer.sampler_epochs else SENTENCE_TOKENS
        return _num_samples(count) * sampler.seconds_per_sample(tokens // 4, new)

    def measure_words(self, count: int) -> float:
        """Return the expected seconds to sample `count` words in the middle of sentences of train."""
        tokens, sampler = self._mean_tokens()
        return _num_samples(count) * sampler.seconds_per_sample(tokens // 2, WORD_TOKENS)

    def _mean_tokens(self) -> tuple[int, SentenceSampler]:
        """Return the mean length of train's sentences in tokens (end included), and the untuned sampler."""
        sampler = self._load(resolve_base(self.base))
        lengths = sampler.tokenizer.encode(self.task.train.sentences[:LENGTHS]).lengths
        return round(float(lengths.mean())) + 1, sampler

    @cached_property
    def sampler(self) -> SentenceSampler:
        """The sampler with the fine-tuned model, on its device."""
        return self._load(self.folder())

    def _load(self, folder: Path) -> SentenceSampler:
        model = load_gpt(folder).requires_grad_(False).eval()
        self.compute.place(model)
        tokenizer = load_tokenizer(folder, start=self.start_token)
        return SentenceSampler(model, tokenizer, self.compute, temperature=self.transfer.temperature)


def _num_samples(count: int) -> int:
    """Return the expected number of samples, in whole batches, of which `count` are kept."""
    return -(-count // round(KEPT * BATCH_SIZE)) * BATCH_SIZE
