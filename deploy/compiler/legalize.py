"""What no function of kerf's took, in TVM's own code, and the changes of layout between both, as few as possible."""

from __future__ import annotations

import tvm
from tvm import relax

from kerf.deploy.compiler import layout_changes
from kerf.kernels.form import Form


def legalize(module: tvm.IRModule, form: Form) -> tvm.IRModule:
    """The module with every operator as a call of a TIR function."""
    return layout_changes.cancel(relax.transform.LegalizeOps()(module), form)
