"""On the path of every process that a test starts: it then is as `make run` would have installed it, without packages that tests and
benchmarks alone bring. diffusers and transformers import these because they are there, which takes a quarter of a worker's start."""

import sys

for name in ("peft", "scipy"):
    sys.modules[name] = None  # type: ignore[assignment]
