"""The kernels as functions of tensors: differentiable, batched, without state."""

from bitlens.kernels._backend import BackendUnavailable, available_backends, use_backend
from bitlens.kernels.infonce_scores.op import InfoNCEScores, infonce_scores
from bitlens.kernels.joint_critic_scores.op import joint_critic_scores
from bitlens.kernels.pairwise_map_sums.op import PairwiseMapSums, pairwise_map_sums
from bitlens.kernels.poisson_gaussian_bin_log_prob.op import poisson_gaussian_bin_log_prob
from bitlens.kernels.poisson_gaussian_log_prob.op import poisson_gaussian_log_prob
from bitlens.kernels.poisson_gaussian_log_prob_pairs.op import poisson_gaussian_log_prob_pairs
from bitlens.kernels.poisson_gaussian_log_prob_pairs.rows import ScoreRows, poisson_gaussian_score_rows
from bitlens.kernels.psf_convolve.op import (
    fourier_filter,
    psf_convolve,
    psf_convolve_channels,
    psf_deconvolve,
)
from bitlens.kernels.psf_convolve.plan import PSFConvolvePlan

__all__ = [
    "BackendUnavailable",
    "InfoNCEScores",
    "PSFConvolvePlan",
    "PairwiseMapSums",
    "ScoreRows",
    "available_backends",
    "fourier_filter",
    "infonce_scores",
    "joint_critic_scores",
    "pairwise_map_sums",
    "poisson_gaussian_bin_log_prob",
    "poisson_gaussian_log_prob",
    "poisson_gaussian_log_prob_pairs",
    "poisson_gaussian_score_rows",
    "psf_convolve",
    "psf_convolve_channels",
    "psf_deconvolve",
    "use_backend",
]
