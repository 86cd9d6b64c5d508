"""Write the digits of scikit-learn as a folder of PNG files, one subfolder per class.

python examples/digits_folder.py [FOLDER]
"""

import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/digits-folder")
digits = load_digits()
for i, (levels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
    folder = out / str(label)
    folder.mkdir(parents=True, exist_ok=True)
    pixels = (levels * 255 / 16).round().astype("uint8")  # from grey levels 0 .. 16
    Image.fromarray(pixels).save(folder / f"{i:04d}.png")
print(f"{out} holds {len(digits.images)} images")
