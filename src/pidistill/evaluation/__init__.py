"""Measuring samples and students. It knows no training method."""
