"""Students that are the whole solution of the ODE, not its end alone."""

from torch import Tensor

from pidistill.students.base import Student


class PathStudent(Student):
    """A student that is x(z, sigma) at every noise level, with its derivative."""

    def forward(self, z: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """The point x(z, sigma) of the trajectory that starts at `z`.

        Args:
            z: Starting noise at `sigma_max`, shape (b, *sample_shape).
            sigma: Noise levels in [sigma_min, sigma_max], shape (b,).
            label: Class labels (b,), int64, or None.

        Returns:
            Noisy samples with the shape and dtype of `z`; at `sigma_min`, the final samples.
        """
        raise NotImplementedError

    def intercept(self, z: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """`x - sigma dx/dsigma` with the exact derivative, without cancellation.

        Where the student solves the teacher's ODE, it is D(x, sigma).

        Args:
            z: Starting noise at `sigma_max`, shape (b, *sample_shape).
            sigma: Noise levels in [sigma_min, sigma_max], shape (b,), float64.
            label: Class labels (b,), int64, or None.

        Returns:
            The shape and dtype of `z`.
        """
        raise NotImplementedError
