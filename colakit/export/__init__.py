"""Export of a trained classifier to ONNX, transformers and PEFT, with a comparison of the answers."""
