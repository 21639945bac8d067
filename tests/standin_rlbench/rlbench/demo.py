"""A demonstration: its observations and the state of NumPy's generator before its scene was drawn."""

import os
from typing import Any

import numpy as np

STOCK = os.environ.get("STANDIN_FORK", "stock") == "stock"


class Demo:
    def __init__(self, observations: list[Any], random_seed: Any = None, *attempts: Any) -> None:
        self._observations, self.random_seed = observations, random_seed
        if STOCK:
            self.num_reset_attempts = attempts[0] if attempts else None
        else:
            self.variation_number = 0

    def __len__(self) -> int:
        return len(self._observations)

    def __getitem__(self, index: int) -> Any:
        return self._observations[index]

    def restore_state(self) -> None:
        np.random.set_state(self.random_seed)  # noqa: NPY002
