"""The compiled CPU kernels; `bitlens.kernels._compiled` is their only caller."""

from collections.abc import Sequence

def instruction_set() -> str: ...
def set_instruction_set(name: str) -> None: ...
def poisson_gaussian_log_prob_float(
    shape: Sequence[int],
    strides: Sequence[Sequence[int]],
    inputs: Sequence[int],
    constants: Sequence[int],
    outputs: Sequence[int],
    order: int,
    threads: int,
) -> None: ...
def poisson_gaussian_log_prob_double(
    shape: Sequence[int],
    strides: Sequence[Sequence[int]],
    inputs: Sequence[int],
    constants: Sequence[int],
    outputs: Sequence[int],
    order: int,
    threads: int,
) -> None: ...
def poisson_gaussian_log_prob_pairs_scores_float(
    sizes: Sequence[int], inputs: Sequence[int], output: int, threads: int
) -> None: ...
def poisson_gaussian_log_prob_pairs_scores_double(
    sizes: Sequence[int], inputs: Sequence[int], output: int, threads: int
) -> None: ...
def poisson_gaussian_log_prob_pairs_statistics_float(
    sizes: Sequence[int], inputs: Sequence[int], masks: Sequence[int], outputs: Sequence[int], threads: int
) -> None: ...
def poisson_gaussian_log_prob_pairs_statistics_double(
    sizes: Sequence[int], inputs: Sequence[int], masks: Sequence[int], outputs: Sequence[int], threads: int
) -> None: ...
def poisson_gaussian_log_prob_pairs_gradients_float(
    sizes: Sequence[int], inputs: Sequence[int], weight: int, outputs: Sequence[int], threads: int
) -> None: ...
def poisson_gaussian_log_prob_pairs_gradients_double(
    sizes: Sequence[int], inputs: Sequence[int], weight: int, outputs: Sequence[int], threads: int
) -> None: ...
def poisson_gaussian_bin_log_prob_float(
    shape: Sequence[int],
    strides: Sequence[Sequence[int]],
    inputs: Sequence[int],
    constants: Sequence[int],
    outputs: Sequence[int],
    order: int,
    threads: int,
) -> None: ...
def poisson_gaussian_bin_log_prob_double(
    shape: Sequence[int],
    strides: Sequence[Sequence[int]],
    inputs: Sequence[int],
    constants: Sequence[int],
    outputs: Sequence[int],
    order: int,
    threads: int,
) -> None: ...
def psf_convolve_float(
    kind: int,
    conjugate: bool,
    batch_shape: Sequence[int],
    batch_strides: Sequence[Sequence[int]],
    outer: int,
    first: int,
    second: int,
    output: int,
    workspace: int,
    companion: Sequence[int],
    spectra: int,
    centered: bool,
    outputs: int,
    sizes: Sequence[Sequence[int]],
    window: Sequence[int],
    threads: int,
) -> None: ...
def psf_convolve_double(
    kind: int,
    conjugate: bool,
    batch_shape: Sequence[int],
    batch_strides: Sequence[Sequence[int]],
    outer: int,
    first: int,
    second: int,
    output: int,
    workspace: int,
    companion: Sequence[int],
    spectra: int,
    centered: bool,
    outputs: int,
    sizes: Sequence[Sequence[int]],
    window: Sequence[int],
    threads: int,
) -> None: ...
def psf_convolve_workspace_bytes_float(
    kind: int,
    conjugate: bool,
    batch_shape: Sequence[int],
    batch_strides: Sequence[Sequence[int]],
    outer: int,
    sizes: Sequence[Sequence[int]],
    window: Sequence[int],
) -> int: ...
def psf_convolve_workspace_bytes_double(
    kind: int,
    conjugate: bool,
    batch_shape: Sequence[int],
    batch_strides: Sequence[Sequence[int]],
    outer: int,
    sizes: Sequence[Sequence[int]],
    window: Sequence[int],
) -> int: ...
def psf_convolve_spectrum_numbers_float(
    conjugate: bool, sizes: Sequence[Sequence[int]], window: Sequence[int]
) -> int: ...
def psf_convolve_make_spectra_float(
    conjugate: bool,
    count: int,
    psfs: int,
    spectra: int,
    sizes: Sequence[Sequence[int]],
    window: Sequence[int],
    threads: int,
) -> None: ...
def psf_convolve_spectrum_numbers_double(
    conjugate: bool, sizes: Sequence[Sequence[int]], window: Sequence[int]
) -> int: ...
def psf_convolve_make_spectra_double(
    conjugate: bool,
    count: int,
    psfs: int,
    spectra: int,
    sizes: Sequence[Sequence[int]],
    window: Sequence[int],
    threads: int,
) -> None: ...
def infonce_scores_workspace_bytes(
    batch: int, queries: int, keys: int, features: int, value_bytes: int, backward: bool, query: bool, key: bool
) -> int: ...
def infonce_scores_forward_float(
    batch: Sequence[int],
    queries: int,
    keys: int,
    features: int,
    strides: Sequence[Sequence[int]],
    inputs: Sequence[int],
    outputs: Sequence[int],
    workspace: int,
    threads: int,
) -> None: ...
def infonce_scores_forward_double(
    batch: Sequence[int],
    queries: int,
    keys: int,
    features: int,
    strides: Sequence[Sequence[int]],
    inputs: Sequence[int],
    outputs: Sequence[int],
    workspace: int,
    threads: int,
) -> None: ...
def infonce_scores_backward_float(
    batch: Sequence[int],
    queries: int,
    keys: int,
    features: int,
    strides: Sequence[Sequence[int]],
    inputs: Sequence[int],
    saved: Sequence[int],
    grads: Sequence[int],
    outputs: Sequence[int],
    workspace: int,
    threads: int,
) -> None: ...
def infonce_scores_backward_double(
    batch: Sequence[int],
    queries: int,
    keys: int,
    features: int,
    strides: Sequence[Sequence[int]],
    inputs: Sequence[int],
    saved: Sequence[int],
    grads: Sequence[int],
    outputs: Sequence[int],
    workspace: int,
    threads: int,
) -> None: ...
def joint_critic_scores_workspace_bytes(
    sizes: Sequence[int], value_bytes: int, backward: bool, wanted: Sequence[bool]
) -> int: ...
def joint_critic_scores_forward_float(
    sizes: Sequence[int], inputs: Sequence[int], outputs: Sequence[int], workspace: int, threads: int
) -> None: ...
def joint_critic_scores_forward_double(
    sizes: Sequence[int], inputs: Sequence[int], outputs: Sequence[int], workspace: int, threads: int
) -> None: ...
def joint_critic_scores_backward_float(
    sizes: Sequence[int],
    inputs: Sequence[int],
    saved: Sequence[int],
    grads: Sequence[int],
    outputs: Sequence[int],
    workspace: int,
    threads: int,
) -> None: ...
def joint_critic_scores_backward_double(
    sizes: Sequence[int],
    inputs: Sequence[int],
    saved: Sequence[int],
    grads: Sequence[int],
    outputs: Sequence[int],
    workspace: int,
    threads: int,
) -> None: ...
def pairwise_map_sums_workspace_bytes(
    batch: int, sizes: Sequence[int], value_bytes: int, backward: bool, query: bool, key: bool
) -> int: ...
def pairwise_map_sums_forward_float(
    batch: Sequence[int],
    sizes: Sequence[int],
    strides: Sequence[Sequence[int]],
    inputs: Sequence[int],
    map: int,
    limit: float,
    outputs: Sequence[int],
    workspace: int,
    threads: int,
) -> None: ...
def pairwise_map_sums_forward_double(
    batch: Sequence[int],
    sizes: Sequence[int],
    strides: Sequence[Sequence[int]],
    inputs: Sequence[int],
    map: int,
    limit: float,
    outputs: Sequence[int],
    workspace: int,
    threads: int,
) -> None: ...
def pairwise_map_sums_backward_float(
    batch: Sequence[int],
    sizes: Sequence[int],
    strides: Sequence[Sequence[int]],
    inputs: Sequence[int],
    map: int,
    limit: float,
    grads: Sequence[int],
    outputs: Sequence[int],
    workspace: int,
    threads: int,
) -> None: ...
def pairwise_map_sums_backward_double(
    batch: Sequence[int],
    sizes: Sequence[int],
    strides: Sequence[Sequence[int]],
    inputs: Sequence[int],
    map: int,
    limit: float,
    grads: Sequence[int],
    outputs: Sequence[int],
    workspace: int,
    threads: int,
) -> None: ...
def parallel_projection_workspace_bytes(adjoint: bool, sizes: Sequence[int]) -> int: ...
def parallel_projection_float(
    adjoint: bool,
    sizes: Sequence[int],
    views: Sequence[int],
    input: int,
    output: int,
    workspace: int,
    threads: int,
) -> None: ...
def parallel_projection_double(
    adjoint: bool,
    sizes: Sequence[int],
    views: Sequence[int],
    input: int,
    output: int,
    workspace: int,
    threads: int,
) -> None: ...
