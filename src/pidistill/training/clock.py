"""Training for a given time instead of a given number of steps."""

from collections.abc import Callable

from pidistill.training.trainer import Trainer


def steps_by_clock(step: int, spent: float, limit: float) -> int:
    """The number of steps of a run that is to train for `limit` seconds.

    It is `step` once they are spent. Until then, the mean pace so far is extrapolated, so the share
    of the steps that are done is the share of the time that is spent: schedules and phases that are
    laid out in steps follow the clock.

    Args:
        step: Steps done, at least one.
        spent: Seconds that they took.
        limit: The seconds of the whole run.
    """
    return step if spent >= limit else max(step + 1, round(step * limit / spent))


def by_the_clock(
    trainer: Trainer, limit: float, should_stop: Callable[[], bool]
) -> Callable[[], bool]:
    """A `should_stop` for `Trainer.run` that also ends training after `limit` seconds of steps."""

    def look() -> bool:
        spent = trainer.processes.share(trainer.seconds)
        changes = {"max_train_steps": steps_by_clock(trainer.step, spent, limit)}
        trainer.config = trainer.state.config = trainer.config.model_copy(update=changes)
        return should_stop()

    return look
