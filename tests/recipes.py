"""Small recipes on a teacher in closed form."""

from pidistill.comparison.plan import plan_recipe
from pidistill.comparison.recipe import read_recipe

TINY = """
title = "Tiny"
teacher = "mixture:ring"
seeds = [0, 1]
num_samples = 32
budget.images = 48
[settings]
batch_size = 16
lr_warmup_steps = 1
checkpointing_steps = 1
[settings.network]
name = "mlp"
config = { width = 8, num_blocks = 1, embedding_width = 8 }
"""

RUNS = """
[[run]]
name = "PID"
settings.method.step = 0.1
[[run]]
name = "BOOT"
settings.method.name = "boot"
"""

SWEEP = """
[[sweep]]
name = "Step"
about = "How wide the difference is."
key = "method.step"
values = [0.05, 0.1]
"""


def write_recipe(folder, *parts, name="recipe.toml"):
    """A recipe file of the text of `parts`."""
    file = folder / name
    file.write_text("\n".join(parts))
    return file


def plan_of(folder, *parts):
    """The plan of such a recipe in `folder / "out"`."""
    return plan_recipe(read_recipe(write_recipe(folder, *parts)), folder / "out")
