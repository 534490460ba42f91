"""The networks that `likely` trains itself: a linear layer, and a small multilayer perceptron.

Shapes: N rows, C classes, D features, H hidden units.
"""

from __future__ import annotations

import torch
from torch.nn.utils import skip_init

from likely._checks import require


class Mlp(torch.nn.Module):
    """One hidden layer of tanh: `z = W₂ · tanh(W₁ x + b₁) + b₂`, the logits of C classes.

    Maps (N, D) to (N, C). Weights and biases start uniform in ±1/√fan_in, torch's default for `torch.nn.Linear`, drawn
    from `generator` where one is given, so that a seed fixes the network without touching the global generator.

    Raises: ValueError where a size is not positive.
    Source: Bishop, Pattern Recognition and Machine Learning (2006), section 5.1.

    >>> import torch
    >>> net = Mlp(4, 32, 3, generator=torch.Generator().manual_seed(0))
    >>> net(torch.zeros(5, 4, dtype=torch.float64)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        classes: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("hidden", hidden), ("classes", classes)):
            require(size > 0, f"{name}: must be at least 1, got {size}")
        self.hidden = skip_init(torch.nn.Linear, in_features, hidden, dtype=dtype)
        self.out = skip_init(torch.nn.Linear, hidden, classes, dtype=dtype)
        with torch.no_grad():
            for layer in (self.hidden, self.out):
                bound = layer.in_features**-0.5
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-bound, bound, generator=generator)

    def forward(self, x_ND: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.hidden(x_ND)))


def build(
    network: str,
    in_features: int,
    classes: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> torch.nn.Module:
    """The network of a name: "linear" (D → C), "binary" (D → 1, the logit of the second of two classes), or "mlp:H".

    A linear network starts at zero, where every class has the same probability: its objective is convex, and the start
    does not matter. An `Mlp` starts from `generator`.

    Raises: ValueError for an unknown name, and for "binary" with a number of classes other than two.

    >>> build("binary", 4, 2)
    Linear(in_features=4, out_features=1, bias=True)
    >>> build("mlp:8", 4, 3).hidden
    Linear(in_features=4, out_features=8, bias=True)
    """
    if network in ("linear", "binary"):
        require(network == "linear" or classes == 2, f"network: 'binary' has two classes, not {classes}; use 'linear'")
        layer = skip_init(torch.nn.Linear, in_features, classes if network == "linear" else 1, dtype=dtype)
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        return layer
    kind, _, hidden = network.partition(":")
    known = kind == "mlp" and hidden.isdecimal() and int(hidden) > 0
    require(known, f"network: unknown {network!r}; it is 'linear', 'binary' or 'mlp:H' with H hidden units")
    return Mlp(in_features, int(hidden), classes, generator=generator, dtype=dtype)
