"""A fine-tuning taken away: files for TRL, the model with its card, and ONNX for a browser."""
