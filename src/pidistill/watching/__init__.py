"""Looking at runs from outside, while they train or afterwards. Nothing here imports torch."""
