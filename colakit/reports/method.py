"""The method of a run in words and formulas, with its numbers filled in."""

from __future__ import annotations

from collections.abc import Iterator

from colakit.config.baseline import BaselineSettings
from colakit.config.finetune import FinetuneSettings, LoRASettings
from colakit.config.student import (
    DistillSettings,
    StudentSettings,
    StudentTrainingSettings,
    TransferSettings,
)
from colakit.config.training import TrainingSettings
from colakit.reports.document import Block, Formula, Paragraph

LSTM = Formula(
    r"(i,f,o)_t=\sigma(W x_t+U h_{t-1}+b),\quad c_t=f_t\odot c_{t-1}+i_t\odot\tanh(W_c x_t+U_c h_{t-1}+b_c),"
    r"\quad h_t=o_t\odot\tanh c_t",
    "(i, f, o)_t = sigma(W x_t + U h_(t-1) + b), quad c_t = f_t dot.o c_(t-1) + i_t dot.o "
    "tanh(W_c x_t + U_c h_(t-1) + b_c), quad h_t = o_t dot.o tanh c_t",
)
GRU = Formula(
    r"(r,z)_t=\sigma(W x_t+U h_{t-1}+b),\quad n_t=\tanh(W_n x_t+b_n+r_t\odot(U_n h_{t-1}+c_n)),"
    r"\quad h_t=(1-z_t)\odot n_t+z_t\odot h_{t-1}",
    "(r, z)_t = sigma(W x_t + U h_(t-1) + b), quad n_t = tanh(W_n x_t + b_n + r_t dot.o "
    "(U_n h_(t-1) + c_n)), quad h_t = (1 - z_t) dot.o n_t + z_t dot.o h_(t-1)",
)
RNN = Formula(r"h_t=\tanh(W x_t+U h_{t-1}+b)", "h_t = tanh(W x_t + U h_(t-1) + b)")
CELLS = {"lstm": ("an LSTM", LSTM), "gru": ("a GRU", GRU), "rnn": ("a tanh RNN", RNN)}
METRIC = {"mcc": "MCC", "accuracy": "accuracy", "loss": "cross-entropy"}
POOLING = {
    "last": "the last state of each direction",
    "mean": "the mean of the states",
    "max": "the elementwise maximum of the states",
    "attention": "the mean of the states, weighted by a softmax over a learnt linear score",
}


def describe_finetuning(base: str, lora: LoRASettings, finetune: FinetuneSettings) -> Iterator[Block]:
    """Yield the method of a run of `finetune`."""
    yield Paragraph(f"The base is {base}.")
    head = "A linear head without bias reads the hidden state of the last token."
    if finetune.method == "full":
        start = "random weights" if finetune.from_scratch else "the pretrained weights"
        yield Paragraph(f"All weights are trained, from {start}. {head}")
    else:
        yield Paragraph(
            "The base is frozen. LoRA (Hu et al. 2021, arXiv:2106.09685) adds a trained product of low rank "
            f"to the linear layers {', '.join(lora.target_modules)}:"
        )
        scaling = r"\frac{\alpha}{\sqrt{R}}" if lora.rslora else r"\frac{\alpha}{R}"
        typst = "alpha / sqrt(R)" if lora.rslora else "alpha / R"
        yield Formula(
            rf"h=Wx+{scaling}\,BAx,\quad A\in\mathbb{{R}}^{{R\times D_\mathrm{{in}}}},\quad "
            rf"B\in\mathbb{{R}}^{{D_\mathrm{{out}}\times R}},\quad R={lora.rank},\quad \alpha={lora.alpha:g}",
            f'h = W x + {typst} B A x, quad A in RR^(R times D_"in"), quad B in RR^(D_"out" times R), '
            f"quad R = {lora.rank}, quad alpha = {lora.alpha:g}",
        )
        variants = [
            (lora.rslora, "The scaling is that of rsLoRA (Kalajdzievski 2023, arXiv:2312.03732)."),
            (lora.dora, "DoRA (Liu et al. 2024, arXiv:2402.09353) trains the norm of each row separately."),
            (
                lora.init == "pissa",
                "PiSSA (Meng et al. 2024, arXiv:2404.02948) starts from the largest singular vectors of W.",
            ),
            (
                lora.loraplus_lr_ratio != 1,
                f"LoRA+ (Hayou et al. 2024, arXiv:2402.12354): B learns {lora.loraplus_lr_ratio:g} times as "
                "fast as A.",
            ),
            (bool(lora.rank_pattern or lora.alpha_pattern), "Some layers have a rank or alpha of their own."),
            (
                lora.layers_to_transform is not None,
                f"Only the blocks {', '.join(map(str, lora.layers_to_transform or ()))} are adapted.",
            ),
        ]
        trained = f"Trained in full beside the adapters: {', '.join(lora.modules_to_save) or 'nothing'}."
        yield Paragraph(" ".join([*(text for applies, text in variants if applies), trained, head]))
    yield Paragraph(_training(finetune))


def describe_student(
    student: StudentSettings,
    training: StudentTrainingSettings,
    distill: DistillSettings | None,
    transfer: TransferSettings,
) -> Iterator[Block]:
    """Yield the method of a run of `distill`; of its control, without `distill`."""
    yield from _architecture(student)
    if distill is not None:
        yield Paragraph("The student minimises a mixture of cross-entropy and the teacher's answers:")
        weight = _range(distill.kd_weight, distill.kd_weight_end)
        if distill.soft_loss == "kl":
            tau = _range(distill.temperature, distill.temperature_end)
            yield Formula(
                r"(1-w)\,\mathrm{CE}(y,z)+w\,\tau^2\,\mathrm{KL}\left(\mathrm{softmax}(z^\mathrm{teacher}/\tau)"
                rf"\,\Vert\,\mathrm{{softmax}}(z/\tau)\right),\quad w={weight},\quad \tau={tau}",
                '(1 - w) "CE"(y, z) + w tau^2 "KL"("softmax"(z^"teacher" \\/ tau) || "softmax"(z \\/ tau)), '
                f'quad w = "{weight}", quad tau = "{tau}"',
            )
            yield Paragraph("This is the loss of Hinton et al. 2015 (arXiv:1503.02531, §2).")
        else:
            yield Formula(
                r"(1-w)\,\mathrm{CE}(y,z)+\frac{w}{C}\Vert z-z^\mathrm{teacher}\Vert^2,\quad "
                rf"w={weight}",
                f'(1 - w) "CE"(y, z) + w / C norm(z - z^"teacher")^2, quad w = "{weight}"',
            )
        if transfer.size:
            sources = ", ".join(f"{name} {share:g}" for name, share in transfer.sources.items())
            yield Paragraph(
                f"The transfer set has {transfer.size:g} times as many sentences as train (sources and their "
                f"shares: {sources}). The teacher labels them; they have no cross-entropy term. "
                f"Train is read {distill.upsample} times in an epoch."
            )
        if distill.hidden_weight:
            yield Paragraph(
                f"A further term of weight {distill.hidden_weight:g} matches the teacher's last hidden state "
                "(1 - cosine)."
            )
    else:
        yield Paragraph(
            "The control has the same architecture, initial weights and number of optimizer steps, and no "
            "teacher: it minimises the cross-entropy with train's labels."
        )
    if lm_weight := training.lm_weight or training.lm_weight_end:
        yield Paragraph(
            f"Each state also predicts its neighbouring tokens, with a weight of up to {lm_weight:g}."
        )
    yield Paragraph(_training(training))


def describe_baseline(baseline: BaselineSettings) -> Iterator[Block]:
    """Yield the method of a run of `baseline`."""
    if baseline.kind == "majority":
        yield Paragraph("The most frequent label of train is predicted for every sentence.")
    elif baseline.kind == "bag":
        yield Paragraph("The mean of token embeddings is classified by a linear layer.")
    else:
        parts = [f"1 to {baseline.words} words"] if baseline.words else []
        parts += [f"2 to {baseline.characters} characters within a word"] if baseline.characters else []
        yield Paragraph(
            f"TF-IDF of n-grams of {' and of '.join(parts)} is classified by logistic regression with equal "
            "weight of the classes. The penalty is chosen on the validation split."
        )


def _architecture(student: StudentSettings) -> Iterator[Block]:
    dropout = f"Dropout is {student.dropout:g}."
    if student.cell == "bag":
        yield Paragraph(
            f"The student pools token embeddings of width {student.embedding_size} by "
            f"{POOLING[student.pooling].replace('states', 'embeddings')}, and classifies them by a linear "
            f"layer. {dropout}"
        )
        return
    name, formula = CELLS[student.cell]
    layers = "one layer" if student.num_layers == 1 else f"{student.num_layers} layers"
    directions = "in both directions" if student.bidirectional else "from left to right"
    yield Paragraph(
        f"The student embeds tokens in width {student.embedding_size} and reads them {directions} with "
        f"{layers} of {name} of hidden size {student.hidden_size}:"
    )
    yield formula
    yield Paragraph(f"A linear layer classifies {POOLING[student.pooling]}. {dropout}")


def _training(training: TrainingSettings) -> str:
    max_steps = getattr(training, "max_steps", None)
    length = f"{max_steps:,} steps" if max_steps else f"{training.epochs} epochs in steps"
    texts = [
        f"Training: AdamW, {length} of {training.batch_size} sentences a step, peak learning rate "
        f"{training.lr:g}, {training.schedule} schedule with {100 * training.warmup:g} % warm-up, weight "
        f"decay {training.weight_decay:g}, gradient norm "
        + ("unlimited." if training.max_grad_norm is None else f"at most {training.max_grad_norm:g}.")
    ]
    if training.ema_decay:
        texts.append(f"The evaluated weights are a moving average with decay {training.ema_decay:g}.")
    fitted = "threshold and temperature are" if training.threshold == "tuned" else "temperature is"
    texts.append(
        f"The weights with the best {METRIC[training.metric_for_best_model]} on the validation split are "
        f"kept; the {fitted} fitted there too."
    )
    return " ".join(texts)


def _range(start: float, end: float | None) -> str:
    return f"{start:g}" if end is None else f"{start:g} to {end:g}"
