"""Kernels: time forward, and forward with backward, with the backend as the first axis."""

from __future__ import annotations

import abc

import torch

from bitlens import ops

BACKENDS = ["cuda", "cpu", "numba", "reference"]


class Kernel(abc.ABC):
    """One kernel on one backend at one size; abstract, so that asv collects only the kernels."""

    param_names = ("backend", "size")
    timeout = 300

    @abc.abstractmethod
    def make(self, size: object, device: str) -> None:
        """Set the inputs."""

    @abc.abstractmethod
    def call(self) -> torch.Tensor:
        """Run the kernel and reduce its outputs to one number."""

    def setup(self, backend: str, size: object) -> None:
        if backend not in ops.available_backends():
            raise NotImplementedError(f"{backend} is not available here")  # asv's way to skip
        torch.manual_seed(0)
        self.leaves: list[torch.Tensor] = []
        self.make(size, "cuda" if backend == "cuda" else "cpu")
        self.time_forward(backend, size)

    def time_forward(self, backend: str, size: object) -> None:
        with ops.use_backend(backend), torch.no_grad():
            self.call()
        self.finish(backend)

    def time_forward_backward(self, backend: str, size: object) -> None:
        with ops.use_backend(backend):
            torch.autograd.grad(self.call(), self.leaves)
        self.finish(backend)

    @staticmethod
    def finish(backend: str) -> None:
        if backend == "cuda":
            torch.cuda.synchronize()


class PoissonGaussianLogProb(Kernel):
    """A stack of camera frames, `size` pixels in all."""

    params = (BACKENDS, [10_000, 200_000])

    def make(self, size: int, device: str) -> None:
        self.mean = (100 * torch.rand(size, device=device)).requires_grad_()
        self.measured = 2 * torch.poisson(self.mean.detach()) + 100 + 3 * torch.randn(size, device=device)
        self.leaves = [self.mean]

    def call(self) -> torch.Tensor:
        return ops.poisson_gaussian_log_prob(self.measured, self.mean, gain=2.0, offset=100.0, read_std=3.0).sum()


class PoissonGaussianBinLogProb(Kernel):
    """A stack of digitised frames, `size` pixels in all."""

    params = (BACKENDS, [10_000, 100_000])

    def make(self, size: int, device: str) -> None:
        self.mean = (100 * torch.rand(size, device=device)).requires_grad_()
        signal = 2 * torch.poisson(self.mean.detach()) + 100 + 3 * torch.randn(size, device=device)
        self.measured = torch.round(signal)
        self.leaves = [self.mean]

    def call(self) -> torch.Tensor:
        return ops.poisson_gaussian_bin_log_prob(self.measured, self.mean, gain=2.0, offset=100.0, read_std=3.0).sum()


class PoissonGaussianLogProbPairs(Kernel):
    """Every measurement under every noiseless image: (rows and columns, pixels)."""

    params = (BACKENDS, [(64, 64), (512, 256)])

    def make(self, size: tuple[int, int], device: str) -> None:
        self.mean = (100 * torch.rand(size, device=device)).requires_grad_()
        self.measured = 2 * torch.poisson(self.mean.detach()) + 100 + 3 * torch.randn(size, device=device)
        self.leaves = [self.mean]

    def setup(self, backend: str, size: tuple[int, int]) -> None:
        if backend in ("numba", "reference") and size[0] > 64:
            raise NotImplementedError("one likelihood for each pair and pixel: minutes")
        super().setup(backend, size)

    def call(self) -> torch.Tensor:
        return ops.poisson_gaussian_log_prob_pairs(self.measured, self.mean, gain=2.0, offset=100.0, read_std=3.0).sum()


class PoissonGaussianScoreRows(Kernel):
    """Row and column sums over every measurement under every noiseless image: (rows and columns, pixels)."""

    params = (BACKENDS, [(64, 64), (512, 256)])

    def make(self, size: tuple[int, int], device: str) -> None:
        self.mean = (100 * torch.rand(size, device=device)).requires_grad_()
        self.measured = 2 * torch.poisson(self.mean.detach()) + 100 + 3 * torch.randn(size, device=device)
        self.leaves = [self.mean]

    def setup(self, backend: str, size: tuple[int, int]) -> None:
        if backend in ("numba", "reference") and size[0] > 64:
            raise NotImplementedError("one likelihood for each pair and pixel: minutes")
        super().setup(backend, size)

    def call(self) -> torch.Tensor:
        scores = ops.poisson_gaussian_score_rows(self.measured, self.mean, gain=2.0, offset=100.0, read_std=3.0)
        return (scores.positive - scores.row_logsumexp).mean()


class PsfConvolve(Kernel):
    """A batch of square images with one PSF: (batch, side, PSF side)."""

    params = (BACKENDS, [(64, 32, 15), (8, 128, 31)])

    def make(self, size: tuple[int, int, int], device: str) -> None:
        batch, side, psf_side = size
        self.image = torch.rand(batch, side, side, device=device, requires_grad=True)
        self.psf = torch.rand(psf_side, psf_side, device=device, requires_grad=True)
        self.leaves = [self.image, self.psf]

    def call(self) -> torch.Tensor:
        return ops.psf_convolve(self.image, self.psf).sum()


class InfoNCEScores(Kernel):
    """Symmetric contrastive loss: (rows, features)."""

    params = (BACKENDS, [(512, 64), (2048, 64)])

    def make(self, size: tuple[int, int], device: str) -> None:
        self.query = torch.randn(size, device=device, requires_grad=True)
        self.key = torch.randn(size, device=device, requires_grad=True)
        self.leaves = [self.query, self.key]

    def call(self) -> torch.Tensor:
        scores = ops.infonce_scores(self.query, self.key, scale=0.1)
        return (scores.row_logsumexp + scores.column_logsumexp - 2 * scores.positive).mean()


class JointCriticScores(Kernel):
    """Symmetric contrastive loss of a joint critic: (rows, hidden units, units of a second layer or 0)."""

    params = (BACKENDS, [(256, 64, 0), (1024, 64, 0), (512, 64, 64)])

    def make(self, size: tuple[int, int, int], device: str) -> None:
        rows, hidden, second = size
        self.query = torch.randn(rows, hidden, device=device, requires_grad=True)
        self.key = torch.randn(rows, hidden, device=device, requires_grad=True)
        self.weight = (torch.randn(second, hidden, device=device) / 8).requires_grad_() if second else None
        self.output = (torch.randn(second or hidden, device=device) / 8).requires_grad_()
        self.leaves = [self.query, self.key, self.output, *([] if self.weight is None else [self.weight])]

    def call(self) -> torch.Tensor:
        scores = ops.joint_critic_scores(self.query, self.key, self.output, hidden_weight=self.weight)
        return (scores.row_logsumexp + scores.column_logsumexp - 2 * scores.positive).mean()


class PairwiseMapSums(InfoNCEScores):
    """Jensen-Shannon loss: (rows, features)."""

    def call(self) -> torch.Tensor:
        sums = ops.pairwise_map_sums(self.query, self.key, map="softplus", scale=0.1)
        own = torch.nn.functional.softplus(-sums.positive)
        return (own + sums.row_sum_negatives / (len(self.key) - 1)).mean()
