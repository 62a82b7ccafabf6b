"""The child that `callgrind.count` runs under valgrind: LIBRARY CALLS KEY..."""

from __future__ import annotations

import sys

from callgrind import requests
from kernel_cases import kernel_cases

from fastpose.ops import cpp


def main() -> None:
    library, calls, *keys = sys.argv[1:]
    simulator, known = requests(library), kernel_cases()
    cpp.set_num_threads(1)
    for key in keys:
        known[key].answer()  # what is done once, such as the tables of a method
    simulator.start()
    for number, key in enumerate(keys):
        simulator.zero()
        for _ in range(int(calls)):
            known[key].answer()
        simulator.dump(str(number).encode())
    simulator.stop()


if __name__ == "__main__":
    main()
