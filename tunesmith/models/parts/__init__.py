"""Parts: what stands between the large products of a block, each as one function that keeps less and goes over memory less often
than the class's own operators. They stand on instances; class and checkpoint are not touched (`standing.py`).

A part's file gives `forward_of(module, dtype)`: a forward for a module that is recognised by what stands in it and whose class
gives the same numbers on a drawn input, or None. What is not recognised stays as it is.
"""

from types import ModuleType

from tunesmith.models.parts import activation, gated, layer_norm, norm, rotary

PARTS: dict[str, ModuleType] = {
    "norm": norm,
    "layer_norm": layer_norm,
    "gated": gated,  # before what stands inside of it
    "activation": activation,
    "rotary": rotary,
}
