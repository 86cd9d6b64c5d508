"""What the validation of a teacher means, in words. Imports no torch."""

from typing import Any

from pidistill.training.sizes import ENOUGH_IMAGES, ENOUGH_STEPS

LOSES = 1.2
"""From this many times the error of the mean image on, a teacher is not trained."""
DETAIL_AT, DETAIL = "0.3", 0.6
"""At this noise level, its error is at most this share of that of judging each pixel alone."""
MEMORY_AT, REMEMBERS = "1", 1.5
"""At this noise level, images show whether they are known: by so much larger an error if not."""


def how_good(validation: dict[str, Any], images: int) -> tuple[bool, str]:
    """Whether a teacher is trained, and how good it is.

    Args:
        validation: What `Validation.measure` found.
        images: Images in all steps so far.
    """
    held_out, seen = validation["held_out"], validation["seen"]
    errors = held_out or seen
    on = f"on {validation['images']} held-out images" if held_out else "on images it has seen"
    mean = f"the mean image{' of the class' if validation['classes'] else ''}"
    worst = max(errors, key=lambda sigma: float(errors[sigma]))
    # a pixel x of variance v around the mean m: m + v / (v + sigma^2) (x - m) is the best answer
    detail = errors[DETAIL_AT] * (1 + validation["variance"] / float(DETAIL_AT) ** 2)
    if errors[worst] > LOSES:
        return False, (
            f"not trained yet: {on}, its error at noise level {worst} is {errors[worst]:.1f} times "
            f"that of always answering {mean}"
        )
    if detail > DETAIL:
        return False, (
            f"not trained yet: {on}, its error at noise level {DETAIL_AT} is {detail:.0%} of that "
            f"of judging each pixel alone; {DETAIL:.0%} or less is usual"
        )
    left = ", ".join(f"{error:.0%} at {sigma}" for sigma, error in errors.items())
    text = f"trained: {on}, its error as a share of that of {mean} is, by noise level, {left}"
    if held_out and held_out[MEMORY_AT] > REMEMBERS * seen[MEMORY_AT]:
        text += (
            f"; but it remembers images it has seen ({seen[MEMORY_AT]:.0%} at {MEMORY_AT}): use "
            "more images, ?flip=true, a smaller network or fewer steps"
        )
    elif images < ENOUGH_IMAGES:
        text += f"; samples usually get better up to {ENOUGH_STEPS:,} steps and beyond"
    return True, text
