"""Python API: `finetune`, `distill`, `train_scratch`, `pretrain`, `evaluate`, `load`."""
