"""What the validation of a teacher means, in words. Imports no torch."""

from typing import Any

LOSES = 1.2
"""From this many times the error of the mean image on, a teacher is not trained."""
MEMORY_AT, REMEMBERS = "1", 1.5
"""At this noise level, images show whether they are known: by so much larger an error if not."""


def how_good(validation: dict[str, Any]) -> tuple[bool, str]:
    """Whether a teacher is trained, and how good it is, from `Validation.measure`."""
    held_out, seen = validation["held_out"], validation["seen"]
    errors = held_out or seen
    on = f"{validation['images']} held-out images" if held_out else "images it was trained on"
    mean = f"the mean image{' of the class' if validation['classes'] else ''}"
    worst = max(errors, key=lambda sigma: float(errors[sigma]))
    if errors[worst] > LOSES:
        return False, (
            f"not trained yet: at noise level {worst}, its answers for {on} are "
            f"{errors[worst]:.1f} times as wrong as {mean}"
        )
    left = ", ".join(f"{error:.0%} at {sigma}" for sigma, error in errors.items())
    text = f"trained: on {on} it is as good as {mean}, or better, at every noise level; of the "
    text += f"error of that image it leaves {left}"
    if held_out and held_out[MEMORY_AT] > REMEMBERS * seen[MEMORY_AT]:
        text += (
            f"; but it remembers images it was trained on ({seen[MEMORY_AT]:.0%} at {MEMORY_AT}): "
            "use more images, ?flip=true, a smaller network or fewer steps"
        )
    return True, text
