"""What scripts call before they touch a GPU."""


def limit_gpu_memory_growth() -> None:
    """Nothing: torch takes GPU memory as it needs it."""
