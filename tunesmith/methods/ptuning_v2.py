"""P-tuning v2: keys and values in front of every layer, trained as they are, usually with a task head (Liu et al. 2022,
arXiv:2110.07602, section 3).

    attention(q) = softmax(q·[P_k ; K]ᵀ / √E)·[P_v ; V]          P_k, P_v [heads, P, E] of each layer are the parameters themselves

The mechanism is that of prefix tuning (`methods/prefix.py`) and so is its code; what differs is the practice. The article trains
small to middling models on understanding (classification, extraction) with a head in place of words, short prefixes for simple
classes and long ones for sequence labels, and finds that an encoder helps on some tasks and harms on others: here it is off
unless asked for. Trained directly, a table takes higher learning rates than an encoder's weights.

Cost: 2·P·heads·E parameters a layer.
"""

from tunesmith.methods.prefix import NF4, TABLE_RATES, build, init, learning_rates

__all__ = ["LEARNING_RATES", "NF4", "build", "init", "learning_rates"]

LEARNING_RATES = TABLE_RATES
