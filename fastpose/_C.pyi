"""Types of the compiled CPU kernels. Arguments are checked in `fastpose.ops`, not here."""

def best_isa() -> str:
    """Widest instruction set of this processor: "scalar", "avx2" or "avx512"."""

def get_num_threads() -> int:
    """Threads that one kernel call may use, the caller among them."""

def set_num_threads(threads: int) -> None:
    """Limit the threads of one kernel call; ValueError below 1."""
