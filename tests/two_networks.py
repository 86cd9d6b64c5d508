"""A method of two networks, such as lives outside of the package.

The student follows PID; an auxiliary denoiser learns to denoise what the student draws, with an
optimizer of its own and two updates for each of the student's, and the student is drawn towards it.
"""

import copy
from functools import partial
from typing import Literal

from pidistill import methods
from pidistill.denoiser import over_sample
from pidistill.distance import l2
from pidistill.methods.base import Losses, Part, Update
from pidistill.methods.pid import PID, PIDSettings
from pidistill.methods.settings import OptimizerSettings


class TwoNetworksSettings(PIDSettings):
    name: Literal["two-networks"] = "two-networks"
    auxiliary_updates: int = 2


@methods.register
class TwoNetworks(PID):
    Settings = TwoNetworksSettings

    def __init__(self, settings, student, teacher):
        super().__init__(settings, student, teacher)
        self.auxiliary = copy.deepcopy(student).requires_grad_(True)

    def parts(self):
        optimizer = OptimizerSettings(
            optimizer="radam", learning_rate=3e-3, adam_beta1=0.0, lr_warmup_steps=0
        )
        return [
            *super().parts(),
            Part("auxiliary", self.auxiliary, optimizer=optimizer, averaged=True),
        ]

    def updates(self, step):
        for turn in range(self.settings.auxiliary_updates):
            yield Update("auxiliary", partial(self.auxiliary_loss, turn=turn))
        if step % 2 == 0:
            yield Update("student", self.loss)

    def auxiliary_loss(self, batch, *, turn):
        """Denoise the student's own samples."""
        z = self.teacher.sigma_max * batch.draws.normal(f"z {turn}", self.student.sample_shape)
        x0 = self.student.sample(z.float(), label=batch.label).x.detach()
        sigma = (batch.draws.normal(f"sigma {turn}", ()) - 1).exp().clamp(0.002, 80)
        eps = batch.draws.normal(f"eps {turn}", self.student.sample_shape).float()
        denoised = self.auxiliary.F(x0 + over_sample(sigma, x0) * eps, sigma, batch.label)
        return Losses(l2(denoised, x0), sigma, {})

    def loss(self, batch):
        """PID, and a pull of the samples towards what the auxiliary makes of them."""
        losses = super().loss(batch)
        z = self.teacher.sigma_max * batch.draws.normal("z", self.student.sample_shape)
        x0 = self.student.sample(z.float(), label=batch.label).x
        sigma = losses.sigma.new_full((len(x0),), 0.5)
        pull = l2(self.auxiliary.F(x0, sigma, batch.label), x0)
        return Losses(losses.loss + 0.1 * pull, losses.sigma, {"pull": pull.detach().mean()})
