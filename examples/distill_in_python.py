"""Distil the bundled digits teacher in Python, print the error during training, and draw samples.

    python examples/distill_in_python.py

Takes about 20 seconds on two CPU cores. More steps give better digits.
"""

import tempfile
from pathlib import Path

import pidistill
from pidistill.images import grid, save_png
from pidistill.training.assemble import build_trainer
from pidistill.training.config import parse_config, read_preset

folder = Path(tempfile.mkdtemp()) / "run"
config = parse_config([read_preset("fast"), {"teacher": "digits", "max_train_steps": 200}])
trainer = build_trainer(config, folder)

# The teacher's solution from the same noise: 79 network evaluations per sample.
teacher = pidistill.load_teacher("digits")
z = pidistill.initial_noise(teacher, 10, seed=0)
label = z.new_zeros(10).long() + 3
solution = pidistill.solve(teacher, z, steps=40, label=label)

for report in trainer.run():
    if report.step % 50 == 0:
        sample = trainer.method.student.generate(10, seed=0, label=label)
        error = (sample.x - solution.x).square().mean().sqrt()
        print(f"step {report.step}: loss {report.loss:.3f}, distance to the teacher {error:.3f}")

# Loading a run folder does not need the teacher.
student = pidistill.load_student(folder)
sample = student.generate(40, seed=0)
save_png(folder / "samples.png", grid(sample.x, columns=10))
print(f"{folder / 'samples.png'}: {len(sample.x)} samples, {sample.nfe} evaluation each")
