"""Sparse and dense convolution kernels generated in TVM TIR. They know layers (Problem), not networks.

The table of them is kerf.kernels.backends; what describes a layer (problem, bsr) is imported without TVM.
"""

if __name__ == "kernels":
    from kerf.bare_names import stand_in

    stand_in(__name__)
