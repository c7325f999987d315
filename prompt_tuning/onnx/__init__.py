"""Prompts and their backbone as one ONNX graph, which picks each row's prompt by number."""
