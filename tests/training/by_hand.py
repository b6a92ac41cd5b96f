"""LAMB and AdamW as section 3.6 of the specification writes them: NumPy, one variable of one layer
at a time."""

import numpy as np

from jaxdistill.models.parameters import is_stacked


def unstack(flat):
    """{"layers/x": [N, ...]} -> {("layers/x", 0): [...], ...}; other names get the layer None."""
    result = {}
    for name, value in flat.items():
        value = np.asarray(value, np.float64)
        result |= (
            {(name, i): x for i, x in enumerate(value)}
            if is_stacked(name)
            else {(name, None): value}
        )
    return result


class ByHand:
    """Updates a dict of variables in place; the state is a dict of (m, v)."""

    def __init__(self, settings):
        self.settings, self.state, self.count = settings, {}, 0

    def update(self, variables, gradients, rate, multiplier=lambda layer: 1.0):
        s = self.settings
        self.count += 1
        norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        for key, g in gradients.items():
            name, layer = key
            if s.clip_norm > 0 and norm > s.clip_norm:
                g = g * s.clip_norm / norm
            w = variables[key]
            m, v = self.state.get(key, (np.zeros_like(w), np.zeros_like(w)))
            m, v = s.beta1 * m + (1 - s.beta1) * g, s.beta2 * v + (1 - s.beta2) * g**2
            if s.bias_correction:
                u = m / (1 - s.beta1**self.count) / (np.sqrt(v / (1 - s.beta2**self.count)) + s.eps)
            else:
                u = m / (np.sqrt(v) + s.eps)
            ratio = 1.0
            if not name.endswith(("bias", "scale")):
                u = u + s.weight_decay * w
                norms = np.sqrt((w**2).sum()), np.sqrt((u**2).sum())
                if s.name == "lamb" and norms[0] > 0 and norms[1] > 0:
                    ratio = norms[0] / norms[1]
            factor = multiplier(layer)
            variables[key] = w - rate * factor * ratio * u
            self.state[key] = (m, v) if factor > 0 else (np.zeros_like(m), np.zeros_like(v))
        return norm
