"""The emulator runs right kernels rightly in every order of threads, and shows the planted faults."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
INCLUDES = [f"-I{HERE}", f"-I{HERE.parents[1] / 'csrc' / 'common'}"]
FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-O1", "-DBITLENS_CUDA_ON_CPU", *INCLUDES]
N_SEEDS = 20
N_THREADS = 256


@pytest.fixture(scope="module")
def compiler():
    path = shutil.which("c++") or shutil.which("g++")
    if path is None:
        pytest.fail("the tests need a C++ compiler")
    return path


def build(compiler, folder, *flags):
    executable = folder / "faults"
    subprocess.run([compiler, *FLAGS, *flags, HERE / "faults.cpp", "-o", executable], check=True)
    return executable


@pytest.fixture(scope="module", params=[(), ("-DCUDA_ON_CPU_UCONTEXT",), ("-O3",)], ids=["native", "ucontext", "O3"])
def faults(request, compiler, tmp_path_factory):
    return build(compiler, tmp_path_factory.mktemp("faults"), *request.param)


@pytest.fixture(scope="module")
def sanitized_faults(compiler, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sanitized")
    probe = folder / "probe.cpp"
    probe.write_text("int main() {}\n")
    command = [compiler, "-fsanitize=address", probe, "-o", folder / "probe"]
    if (
        subprocess.run(command, capture_output=True).returncode
        or execute(folder / "probe", "", 0, check=False).returncode
    ):
        pytest.skip("no address sanitizer runtime")
    return build(compiler, folder, "-fsanitize=address", "-g")


def execute(executable, case, n_seeds, *, check=True):
    # A preloaded library comes before the sanitizer's; its leak check needs ptrace, which containers forbid.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    environment["ASAN_OPTIONS"] = "detect_leaks=0"
    return subprocess.run(
        [executable, case, str(n_seeds)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=check,
    )


def run(executable, case, n_seeds=N_SEEDS):
    """Values (n_seeds, n) of a case that must not fail."""
    lines = execute(executable, case, n_seeds).stdout.splitlines()
    assert len(lines) == n_seeds
    assert all(line.endswith("no error") for line in lines), lines[0]
    return np.array([line.removesuffix("no error").split() for line in lines], dtype=float)


def errors(executable, case, n_seeds=N_SEEDS):
    """Messages (n_seeds) of a case that must fail under every seed."""
    lines = execute(executable, case, n_seeds).stdout.splitlines()
    assert len(lines) == n_seeds
    assert all(line.startswith("error: ") for line in lines), lines
    return lines


def line_of(kernel, text, occurrence=0):
    """The line number in faults.cpp of the text's occurrence after the kernel's name."""
    lines = (HERE / "faults.cpp").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if f"void {kernel}(" in line)
    return [i + 1 for i, line in enumerate(lines) if i > start and text in line][occurrence]


@pytest.mark.parametrize("case", ["sum_float", "sum_double", "sum_after_failure"])
def test_block_sum_is_right_in_every_order(faults, case):
    np.testing.assert_array_equal(run(faults, case), np.sum(np.arange(5000) % 7))


@pytest.mark.parametrize(
    ("right", "faulty", "value"),
    [
        ("sum_float", "sum_without_barrier", np.sum(np.arange(5000) % 7)),
        ("reused_tile", "reused_tile_without_barrier", 6 * N_THREADS),
        ("neighbour", "neighbour_without_barrier", 64),
    ],
)
def test_missing_barrier_changes_the_result(faults, right, faulty, value):
    np.testing.assert_array_equal(run(faults, right), value)
    assert np.any(run(faults, faulty) != value)


def test_static_shared_memory_is_common_to_the_block(faults):
    np.testing.assert_array_equal(run(faults, "static_shared", 3), np.tile(np.arange(N_THREADS)[::-1], (3, 1)))


def test_exit_before_a_barrier_is_an_error_with_counts(faults):
    barrier = line_of("early_exit_kernel", "__syncthreads")
    for message in errors(faults, "early_exit"):
        assert "kernel early_exit_kernel, launched at" in message
        assert "its 256 threads are stuck" in message
        assert "192 wait in __syncthreads at" in message
        assert f"faults.cpp:{barrier}, 64 have exited" in message


def test_two_barriers_at_once_are_an_error_with_counts(faults):
    for message in errors(faults, "two_barriers"):
        for occurrence, count in enumerate((64, 192)):
            line = line_of("two_barriers_kernel", "__syncthreads", occurrence)
            assert f"{count} wait in __syncthreads at {HERE / 'faults.cpp'}:{line}," in message
        assert "0 have exited" in message


def test_divergent_warp_is_an_error_with_counts(faults):
    for message in errors(faults, "divergent_warp"):
        assert "16 wait in __shfl_down_sync with mask 0xffffffff at" in message
        assert "48 wait in __syncthreads at" in message


def test_lanes_that_meet_in_different_operations_are_an_error(faults):
    for message in errors(faults, "different_warp_operations"):
        assert "__any_sync with mask 0xffffffff" in message
        assert "__all_sync with mask 0xffffffff" in message


def test_lane_outside_its_own_mask_is_an_error(faults):
    for message in errors(faults, "left_out"):
        assert "calls __syncwarp with mask 0x0000ffff" in message
        assert "leaves it out" in message


def test_unwritten_dynamic_shared_memory_is_nan_in_every_block(faults):
    written, unwritten = run(faults, "unwritten").T
    np.testing.assert_array_equal(written, N_THREADS)
    assert np.all(np.isnan(unwritten))


def test_write_past_dynamic_shared_memory_is_an_error(faults):
    run(faults, "within_bounds")
    assert all("wrote past its 256 bytes" in message for message in errors(faults, "out_of_bounds_write"))


@pytest.mark.parametrize("access", ["write", "read"])
def test_sanitizer_sees_access_past_dynamic_shared_memory(sanitized_faults, access):
    result = execute(sanitized_faults, f"out_of_bounds_{access}", 1, check=False)
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr
    assert f"{access.upper()} of size 4" in result.stderr
    assert "in out_of_bounds_kernel" in result.stderr


@pytest.mark.parametrize("case", ["within_bounds", "sum_float", "reused_tile", "static_shared", "sum_after_failure"])
def test_sanitizer_is_silent_on_right_kernels(sanitized_faults, case):
    run(sanitized_faults, case)


def test_atomics(faults):
    expected = [1000, 500, -2000, 3000, 1000 * 2.0**32, 999, -999, 1000]
    np.testing.assert_array_equal(run(faults, "atomics"), np.tile(expected, (N_SEEDS, 1)))


def test_device_functions(faults):
    bits_of_one = 127 << 23
    expected = [1, 3.5, 2**32 - 1, 3 + 310 + 4000, bits_of_one, 1, 0.1, 25.75, 12, 4, 5]
    np.testing.assert_allclose(run(faults, "device_functions", 1)[0], expected, rtol=1e-7)


def shuffled():
    """The source thread of every exchange in shuffle_kernel, by the rules of the CUDA programming guide."""
    thread = np.arange(N_THREADS)
    warp, lane, lane_16 = thread // 32 * 32, thread % 32, thread % 16
    return np.array(
        [
            warp + (lane + 3) % 32,
            thread // 8 * 8 + 5,
            np.where(lane_16 >= 3, thread - 3, thread),
            np.where(lane_16 < 13, thread + 3, thread),
            thread ^ 5,
            np.where(lane >= 16, thread - 16, thread),
        ]
    )


def test_shuffles(faults):
    values = run(faults, "shuffles").reshape(N_SEEDS, 6, N_THREADS)
    np.testing.assert_array_equal(values, np.broadcast_to(shuffled(), values.shape))


def test_shuffles_from_lanes_that_do_not_exist_are_nan(faults):
    values = run(faults, "partial_warp_shuffles").reshape(N_SEEDS, 6, N_THREADS)[..., :40]
    source = shuffled()[:, :40]
    assert np.any(source >= 40)
    expected = np.where(source < 40, source, np.nan)
    np.testing.assert_array_equal(values, np.broadcast_to(expected, values.shape))


def test_shuffles_from_lanes_outside_the_mask_are_poison(faults):
    values = run(faults, "half_warp")
    np.testing.assert_array_equal(values[:, :8], np.tile(np.arange(8, 16), (N_SEEDS, 1)))
    assert np.all(np.isnan(values[:, 8:16]))
    np.testing.assert_array_equal(values[:, 16:32], 0)
    np.testing.assert_array_equal(values[:, 32:], -1)


def test_votes(faults):
    any_lane, every_lane = 1, 4
    expected = [0b1111, any_lane + every_lane, 0, every_lane]
    np.testing.assert_array_equal(run(faults, "votes"), np.tile(expected, (N_SEEDS, 1)))


def test_every_index_occurs_once(faults):
    np.testing.assert_array_equal(run(faults, "indices"), np.ones((N_SEEDS, 6 * 12 * 2)))


def test_seed_sets_the_order(faults):
    orders = run(faults, "order")
    np.testing.assert_array_equal(orders, run(faults, "order"))
    assert len(np.unique(orders, axis=0)) == N_SEEDS
    np.testing.assert_array_equal(np.sort(orders), np.tile(np.arange(200), (N_SEEDS, 1)))
    assert len(np.unique(orders[:, 0] // 40)) > 1, "blocks start in one order"
    assert len(np.unique(orders[:, 0] % 40)) > 1, "threads start in one order"


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("zero_grid", "invalid configuration: grid (0, 1, 1)"),
        ("zero_block", "invalid configuration: block (32, 0, 1)"),
        ("large_block", "invalid configuration: block (1025, 1, 1)"),
        ("large_block_product", "invalid configuration: block (32, 33, 1)"),
        ("deep_block", "invalid configuration: block (1, 1, 65)"),
        ("large_shared", "invalid configuration: 232449 bytes of dynamic shared memory"),
        ("shared_not_allowed", "more than cudaFuncSetAttribute allowed"),
    ],
)
def test_invalid_configuration_is_an_error(faults, case, message):
    assert errors(faults, case, 1)[0].endswith(message)


@pytest.mark.parametrize("case", ["largest_block", "shared_allowed"])
def test_largest_configuration_runs(faults, case):
    run(faults, case, 1)


def test_many_threads_take_little_processor_time(faults):
    without_barriers, with_barriers = run(faults, "seconds", 1)[0]
    # Measured: 0.002 for 102,400 threads; 0.01 (ucontext 0.08) for 16 barriers of 10,240.
    assert without_barriers < 0.2
    assert with_barriers < 1
