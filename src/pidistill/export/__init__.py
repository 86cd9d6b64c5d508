"""Students for use elsewhere: a diffusers pipeline, an ONNX file, a model card."""
