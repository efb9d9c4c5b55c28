"""libkerf in a Python process, so that it can be timed in the same rounds as other engines."""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from kerf.deploy.runtime.own_piece import aligned

Handle = ctypes.c_void_p


class Tensor(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("type", ctypes.c_int),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
    )


class Session:
    """A bundle of one input and one output of floats; the caller's memory is used as it is."""

    def __init__(self, library: Path, bundle: Path, threads: int):
        self._lib = ctypes.CDLL(str(library))
        self._lib.kerf_message.restype = ctypes.c_char_p
        self._lib.kerf_session_output.restype = Tensor
        self._model, self._session = Handle(), Handle()
        self._check(self._lib.kerf_open(str(bundle).encode(), None, ctypes.byref(self._model)))
        self._check(self._lib.kerf_start(self._model, threads, None, ctypes.byref(self._session)))
        is_ = self._lib.kerf_session_output(self._session, ctypes.c_size_t(0))
        self._y = aligned(np.zeros([is_.shape[i] for i in range(is_.rank)], np.float32))
        self._outputs = (Handle * 1)(self._y.ctypes.data)

    def run(self, x: Any) -> np.ndarray:
        self._check(self._lib.kerf_run(self._session, (Handle * 1)(x.ctypes.data), self._outputs))
        return self._y

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(self._lib.kerf_message().decode())
