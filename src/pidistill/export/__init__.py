"""Exports of students: diffusers pipelines, ONNX files, run folders and model cards."""
