"""What training code leaves in its checkpoints beside weights, read without running any of its code."""

from typing import Any

import numpy as np


class Inert:
    """Replaces an object of a checkpoint that is not needed; accepts every call and does nothing."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class NumpyType:
    """Replaces `numpy.dtype`: keeps its code and byte order."""

    def __init__(self, code: Any = "", *rest: Any) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1] if state[1] in "<>" else "="

    def values(self, data: Any, count: int) -> Any:
        """The numbers or texts in the bytes of an array; None for types that are neither."""
        if isinstance(data, list):  # an array of objects, which are restricted as everything else
            return data
        if self.code[:1] not in "biufU" or not isinstance(data, bytes):
            return None
        return np.frombuffer(data, dtype=self.order + self.code, count=count).tolist()


class NumpyValue:
    """Replaces an array or number of NumPy; `value` is a flat list or a number, None for what cannot be read."""

    def __init__(self, dtype: Any = None, data: Any = None, *rest: Any) -> None:
        self.value: Any = None
        if isinstance(dtype, NumpyType):  # a number
            values = dtype.values(data, 1)
            self.value = values[0] if values else None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, _, data = state
        if len(shape) < 2 and isinstance(dtype, NumpyType):
            self.value = dtype.values(data, -1)


_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
SAFE_TYPES: list[tuple[type, str]] = [
    *((NumpyValue, f"{module}.{name}") for module in _MODULES for name in ("_reconstruct", "scalar")),
    (NumpyType, "numpy.dtype"),
    *((Inert, f"numpy.dtypes.{kind}DType") for kind in ("Float64", "Float32", "Int64", "Int32", "Bool", "Str", "Object")),
    (Inert, "numpy.ndarray"),
    (Inert, "mmengine.logging.history_buffer.HistoryBuffer"),
    *((Inert, f"{module}.{kind}Path") for module in ("pathlib", "pathlib._local") for kind in ("Posix", "PurePosix", "Windows")),
]
"""(what is made instead, the type's name in the file)."""
