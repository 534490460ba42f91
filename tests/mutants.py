"""Mutants of the core: one wrong line each, and the law that must catch it.

A law that lets a mutant live is a wish; a mutant whose line is gone must be written anew.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    file: str
    """Below src/likely."""
    old: str
    new: str
    law: str
    """The test file below tests/laws."""
    only: str = ""
    """Which of its tests, as pytest's -k has it."""

    @property
    def name(self) -> str:
        return f"{self.file}: {self.old.strip().splitlines()[0][:70]}"


COMMON, LOOP = "kernels/common.py", "kernels/loop.py"
INPLACE = "kernels/inplace.py"
NATIVE, FLAT = "kernels/native/__init__.py", "kernels/native/flat.py"
EAGER, CHUNKED = "kernels/eager.py", "kernels/chunked.py"
OPERATOR, PARTS, SECOND = "kernels/operator.py", "kernels/parts.py", "kernels/second.py"
TWIN = "test_equals_the_dense_twin"
CARRIED = "test_is_carried_back"
NESTED = "nesting"

MUTANTS = [
    # ---------------------------------------------------------------------------------------------------- heads
    Mutant(
        "heads.py",
        "others_n = s_nC.scatter(-1, at_n[:, None], -torch.inf).exp().sum(dim=-1)",
        "others_n = s_nC.exp().sum(dim=-1) - 1",
        "test_precision.py",
        "small_losses",
    ),
    Mutant("heads.py", "    if ignored_n is not None:\n", "    if False:\n", "test_extremes.py", "ignored_row"),
    Mutant(
        "heads.py",
        "    s_nC = z_nC - m_n[:, None]\n",
        "    s_nC = z_nC - m_n[0]\n",
        "test_extremes.py",
        "logits_of_any",
    ),
    Mutant("heads.py", "1 - (z_nC / self.softcap).square_()", "1", "test_gradients.py", f"{CARRIED} and softcap"),
    Mutant(
        "heads.py", "return out if self.softcap is None", "return out if True", "test_values.py", f"{TWIN} and softcap"
    ),
    Mutant("heads.py", "self.total_CD, add=self.started", "self.total_CD, add=False", "test_gradients.py", CARRIED),
    Mutant("heads.py", "dbias_C += g_nC.sum(", "dbias_C[:] = g_nC.sum(", "test_gradients.py", CARRIED),
    Mutant(
        "heads.py",
        "self.total_CD.add_(product_CD)",
        "self.total_CD.copy_(product_CD)",
        "test_precision.py",
        "bfloat16_gradient",
    ),
    Mutant(
        "heads.py",
        "product_sum(self.weight, self.acc)",
        "product_sum(self.weight, self.dtype)",
        "test_precision.py",
        "bfloat16_gradient",
    ),
    Mutant("heads.py", "self.started = True", "self.started = False", "test_gradients.py", CARRIED),
    Mutant(
        "heads.py",
        "grads[0][rows] = g_nC[:, 1]",
        "grads[0][rows] = g_nC[:, 0]",
        "test_gradients.py",
        f"{CARRIED} and binary",
    ),
    Mutant(
        "_products.py",
        "torch.addmm(bias_C[some], x_nD, weight_CD[some].T, out=out[:, some])",
        "torch.mm(x_nD, weight_CD[some].T, out=out[:, some])",
        "test_values.py",
        f"{TWIN} and bias",
    ),
    Mutant(
        "heads.py",
        "return torch.float32 if self.dtype in _HALF else self.dtype",
        "return self.dtype",
        "test_precision.py",
        "bfloat16_loss",
    ),
    # -------------------------------------------------------------------------------------------------- chunked
    Mutant(
        LOOP,
        "for start in range(0, head.rows, rows)]",
        "for start in range(0, head.rows - rows + 1, rows)]",
        "test_values.py",
        "size_of_a_block",
    ),
    Mutant(LOOP, "g_nC = other_nC[:n]", "g_nC = z_nC", "test_native.py", "several_terms"),
    Mutant(LOOP, "self.loss += penalty", "self.loss += 0", "test_native.py", "several_terms"),
    Mutant(NATIVE, "target.index[rows]", "target.index[: rows.stop - rows.start]", "test_values.py", TWIN),
    Mutant(
        FLAT,
        "else self.low_CD[start:stop].data_ptr()",
        "else self.low_CD.data_ptr()",
        "test_native.py",
        "sum_of_products",
    ),
    Mutant(
        NATIVE, "return stored_nC, _TEACHER", "return stored_nC.clone().fill_(1.0), _TEACHER", "test_values.py", TWIN
    ),
    Mutant(NATIVE, "replace(target, class_weight=None)", "target", "test_values.py", TWIN),
    Mutant(INPLACE, "torch.autograd.graph.increment_version(head.z)", "pass", "test_inplace.py", "whoever_saved"),
    Mutant(INPLACE, "grad.mul_(cotangent) if float(cotangent) != 1 else grad", "grad", "test_inplace.py", "elsewhere"),
    Mutant(INPLACE, "if torch.is_grad_enabled():", "if False:", "test_inplace.py", "transforms_are_refused"),
    Mutant(LOOP, "2**27 // size", "2**37 // size", "test_memory.py", "default_block"),
    Mutant(LOOP, "rows = max(1, BLOCK_BYTES // size)", "rows = BLOCK_BYTES", "test_memory.py", "largest"),
    Mutant(LOOP, "max(warm // size, least)", "warm // size", "test_memory.py", "default_block"),
    Mutant(LOOP, "(a_n / temperature)[:, None]", "a_n[:, None]", "test_gradients.py", "mass_times_softmax"),
    Mutant(LOOP, "            g_nC += own_nC\n", "            g_nC.copy_(own_nC)\n", "test_objective.py", "mixture"),
    Mutant(
        LOOP,
        "idle_n = a_n == 0 if ignored_n is None else ignored_n | (a_n == 0)",
        "idle_n = torch.zeros_like(a_n, dtype=torch.bool)",
        "test_extremes.py",
        "weight_zero",
    ),
    Mutant(
        LOOP,
        "torch.where(sure_n1, -others_n1, direct_n1)",
        "torch.zeros_like(direct_n1)",
        "test_gradients.py",
        "mass_times_softmax",
    ),
    Mutant(
        LOOP,
        "torch.where(sure_n1, -others_n1, direct_n1)",
        "direct_n1",
        "test_precision.py",
        "small_losses",
    ),
    Mutant(LOOP, "torch.where(sure_n1, -others_n1, direct_n1)", "-others_n1", "test_native.py", "sure_of_nothing"),
    Mutant(
        LOOP,
        "kl_N[rows] = cross_entropy_N[rows] - entropy_N[rows] if kl_n is None else kl_n",
        "kl_N[rows] = tile.cross_entropy(s_nC, log_A_n) - entropy_N[rows]",
        "test_values.py",
        "kl_is_zero",
    ),
    Mutant(LOOP, "(2 * a_n * A_n)", "(a_n * A_n)", "test_objective.py", "z_loss"),
    Mutant(LOOP, "A_n = log_A_n + m_n", "A_n = log_A_n", "test_objective.py", "z_loss"),
    Mutant(
        LOOP,
        "self.loss += penalty",
        "pass",
        "test_objective.py",
        "z_loss",
    ),
    Mutant(OPERATOR, "loss, z_loss = done.loss * scale", "loss, z_loss = done.loss", "test_autograd.py", "retained"),
    Mutant(
        CHUNKED, "self.wanted], arrived[0] * formed[0]", "self.wanted], formed[0]", "test_gradients.py", "cotangent"
    ),
    Mutant(
        CHUNKED,
        "retained = torch._C._autograd._get_current_graph_task_keep_graph()",
        "retained = False",
        "test_autograd.py",
        "retained",
    ),
    Mutant(OPERATOR, "arrived[0] * formed[0], dtypes", "formed[0], dtypes", "test_autograd.py", "compiled"),
    Mutant(
        OPERATOR,
        "for at in wanted], scale, [inputs",
        "for at in wanted], torch.ones(()), [inputs",
        "test_autograd.py",
        "retained",
    ),
    Mutant(PARTS, "(first, first + 2) if known", "(first,) if known", "test_gradients.py", "cotangent"),
    Mutant(PARTS, "of_target=not compiling and (", "of_target=False and (", "test_autograd.py", NESTED),
    Mutant(
        OPERATOR,
        "signed = known and target.entropy_unknown() is not None",
        "signed = False",
        "test_autograd.py",
        "does_not_exist",
    ),
    Mutant(
        OPERATOR,
        "if any(at >= form.heads for at in wanted):",
        "if False:",
        "test_autograd.py",
        "no_derivative",
    ),
    Mutant(
        CHUNKED,
        "if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:",
        "if False:",
        "test_autograd.py",
        "traced_graph",
    ),
    Mutant(
        CHUNKED,
        "if torch.is_grad_enabled() and any(",
        "if False and any(",
        "test_autograd.py",
        "traced_graph",
    ),
    Mutant(
        CHUNKED,
        "known = [entropy and target.entropy_unknown() is None",
        "known = [True",
        "test_values.py",
        f"{TWIN} and signed",
    ),
    Mutant(LOOP, "cross_entropy_N[rows], a_n)", "cross_entropy_N, a_n)", "test_objective.py", "mixture"),
    # --------------------------------------------------------------------------------------------------- second
    Mutant(
        SECOND,
        "forward_ad.unpack_dual(t).primal for t in ctx.saved_tensors",
        "t for t in ctx.saved_tensors",
        "test_autograd.py",
        "forward_mode",
    ),
    Mutant(
        SECOND,
        "                    whole += part\n",
        "                    whole.copy_(part)\n",
        "test_autograd.py",
        "size",
    ),
    Mutant(SECOND, "or eager_transforms.JVP_NESTING:", "or True:", "test_autograd.py", "forward_mode"),
    Mutant(SECOND, "return plan.unwritten(tensors) if", "return plan.forward(tensors) if", "test_autograd.py", "plain"),
    Mutant(SECOND, "-own_nC.sum(dim=-1, keepdim=True)", "own_nC.sum(dim=-1, keepdim=True)", "test_autograd.py", NESTED),
    Mutant(SECOND, "own_nC = own_nC / temperature", "own_nC = own_nC * temperature", "test_autograd.py", NESTED),
    Mutant(SECOND, "(2 * z_a.to", "(z_a.to", "test_autograd.py", NESTED),
    Mutant(
        SECOND,
        "own_nC = own_nC - tile.rest[:, None] * outside_nC.softmax(dim=-1)",
        "own_nC = own_nC - tile.rest[:, None] * outside_nC.softmax(dim=-1).detach()",
        "test_autograd.py",
        NESTED,
    ),
    Mutant(
        SECOND,
        "            own_nC = torch.where(target.ignored[:, None], 0, own_nC)\n        own_nC = (a_n",
        "            pass\n        own_nC = (a_n",
        "test_autograd.py",
        NESTED,
    ),
    Mutant(
        SECOND,
        "(a_n == 0) & ~torch.isfinite(z_nC.detach().amax(dim=-1))",
        "a_n == 0",
        "test_autograd.py",
        "of_zero",
    ),
    Mutant(
        SECOND,
        "(a_n == 0) & ~torch.isfinite(z_nC.detach().amax(dim=-1))",
        "a_n != a_n",
        "test_autograd.py",
        "weighs_nothing",
    ),
    # ---------------------------------------------------------------------------------------------------- eager
    Mutant(EAGER, "z_NC = z_NC / temperature", "z_NC = z_NC * temperature", "test_values.py", TWIN),
    Mutant(
        COMMON, "(coefficient_N == 0) & ~torch.isfinite(rows_N)", "rows_N != rows_N", "test_extremes.py", "weight_zero"
    ),
    Mutant(
        COMMON,
        "(coefficient_N == 0) & ~torch.isfinite(rows_N)",
        "coefficient_N == 0",
        "test_gradients.py",
        "to_a_target",
    ),
    Mutant(EAGER, "z_NC.detach(), z_NC)", "z_NC, z_NC)", "test_extremes.py", "weight_zero"),
    Mutant(EAGER, "normalise(z_NC, target.ignored)", "normalise(z_NC)", "test_extremes.py", "ignored_row"),
    # ---------------------------------------------------------------------------------------------------- forms
    Mutant(
        "forms.py",
        "self.rest * torch.logsumexp(outside_nC, dim=-1)",
        "self.rest * (log_A_n + torch.log1p(-(stored_s_nK - log_A_n[:, None]).exp().sum(dim=-1)))",
        "test_records.py",
        "no_doubt",
    ),
    Mutant(
        "forms.py",
        "g_nC -= outside_nC * self.rest[:, None]",
        "g_nC -= outside_nC",
        "test_records.py",
        "gradient_of_a_bucket",
    ),
    Mutant(
        "forms.py",
        "        outside_nC = torch.where(self.rest[:, None] == 0, 0, outside_nC)\n        g",
        "        g",
        "test_records.py",
    ),
    Mutant(
        "forms.py",
        "            outside_nC = torch.where(self.rest[:, None] == 0, 0, outside_nC)\n            loss_n",
        "            loss_n",
        "test_records.py",
        "without_mass",
    ),
    Mutant("forms.py", "x * torch.where(positive, x, 1).log()", "x * (x + 1e-8).log()", "test_values.py", TWIN),
    Mutant(
        "forms.py",
        "positive, x * torch.where(positive, x, 1).log(), 0)",
        "positive, x * x.log(), 0)",
        "test_gradients.py",
        "probability_of_zero",
    ),
    Mutant("forms.py", "(mu == 0) & torch.isneginf(s), 0, s)", "mu != mu, 0, s)", "test_extremes.py", "costs_nothing"),
    Mutant(
        "forms.py",
        "ratio_nC = log_mu_nC - (s_nC - log_A_n[:, None])",
        "ratio_nC = log_mu_nC - (s_nC - log_A_n[:, None]).clamp_min(-1e5)",
        "test_extremes.py",
    ),
    Mutant("forms.py", "torch.where(empty_nC, 0, ratio_nC)).sum", "ratio_nC).sum", "test_extremes.py", "costs_nothing"),
    Mutant("forms.py", "empty_nC = self.mu == 0", "empty_nC = self.mu < 1e-9", "test_properties.py"),
    Mutant(
        "forms.py",
        "torch.where(empty_nC, -torch.inf, torch.where(empty_nC, 1, mu_nC).log())",
        "mu_nC.log()",
        "test_gradients.py",
        "probability_of_zero",
    ),
    Mutant(
        "forms.py",
        "torch.softmax(log_nC / scale",
        "torch.softmax(log_nC * scale",
        "test_values.py",
        "probabilities and measure_is",
    ),
    Mutant(
        "forms.py", "mu_nC * self.class_weight.to(dtype)", "mu_nC", "test_values.py", "probabilities and measure_is"
    ),
    Mutant("forms.py", "unstored_n = all_n - ", "unstored_n = all_n + ", "test_values.py", f"{TWIN} and smoothing"),
    Mutant("forms.py", " | ((self.floor != 0) & (elsewhere_n > 0))", "", "test_extremes.py", "impossible"),
    Mutant(
        "forms.py",
        "(gone_nK & (self._stored() != 0)).any(dim=-1)",
        "gone_nK.any(dim=-1)",
        "test_extremes.py",
        "impossible",
    ),
    Mutant(
        "forms.py",
        "mass_n + self.floor * self._base_total()",
        "mass_n + self.floor * self.classes",
        "test_values.py",
        "measure_is",
    ),
    Mutant(
        "forms.py",
        "return mass_n if self.rest is None else",
        "return mass_n if True else",
        "test_values.py",
        "measure_is",
    ),
    Mutant(
        "forms.py",
        "_x_log_x(self.mass()) if self.log_mu is None else 0.0",
        "0.0",
        "test_values.py",
        f"{TWIN} and measure",
    ),
    Mutant(
        "forms.py",
        "s_nC, log_A_n, _, _ = normalise(self.head.logits(rows).to(dtype) / scale)",
        "s_nC = self.head.logits(rows).to(dtype) / scale; log_A_n = torch.logsumexp(s_nC, -1)",
        "test_values.py",
        "kl_is_zero",
    ),
    Mutant(
        "forms.py",
        "self.head.logits(rows).to(dtype) / scale",
        "self.head.logits(rows).to(dtype)",
        "test_values.py",
        f"{TWIN} and teacher",
    ),
    Mutant(
        "forms.py", "self.temperature is None or self.temperature == temperature", "True", "test_values.py", "refuses"
    ),
    # -------------------------------------------------------------------------------------------------- targets
    Mutant(
        "targets.py", "(1 - confidence) * classes / (classes - 1)", "1 - confidence", "test_values.py", "measure_is"
    ),
    Mutant(
        "targets.py",
        "        weight_N = torch.where(ignored_N, 0, weight_N)\n",
        "        pass\n",
        "test_values.py",
        "denominator",
    ),
    Mutant("targets.py", "weight_N.double() * count_N", "weight_N * count_N", "test_values.py", f"{TWIN} and bfloat16"),
    Mutant("targets.py", "weight_N.double() * count_N", "count_N", "test_values.py", "denominator"),
    Mutant("targets.py", "rest_N / (classes - stored)", "rest_N / classes", "test_values.py", "measure_is"),
    Mutant("targets.py", "Sparse(value=p - floor_N[:, None]", "Sparse(value=p", "test_values.py", "sum_to_one"),
    Mutant("targets.py", "p / sums_N.clamp_min(1)[:, None]", "p", "test_records.py", "half_precision"),
    Mutant("targets.py", "base=base_C if smoothing else None", "base=None", "test_values.py", "measure_is"),
    Mutant("targets.py", "value=value / sums_N[:, None]", "value=value", "test_records.py", "unbiased"),
    # ---------------------------------------------------------------------------------------- score and objective
    Mutant("score.py", "nothing = total == 0", "nothing = total < 0", "test_objective.py", "nothing"),
    Mutant(
        "score.py", "(share_N == 0) & ~torch.isfinite(rows_N)", "share_N != share_N", "test_extremes.py", "weight_zero"
    ),
    Mutant("score.py", "weight_N.double() / torch", "1 / torch", "test_values.py", f"{TWIN} and weight"),
    Mutant("score.py", "((count_N != 0) | (part_N != 0))", "(count_N != 0)", "test_objective.py", "weighs_nothing"),
    Mutant("score.py", "(1 - n * count_N /", "0 * (1 - n * count_N /", "test_objective.py", "error_of_its_sample"),
    Mutant("score.py", "torch.where(torch.isfinite(m), m, 0)", "m", "test_objective.py", "infinite_loss"),
    Mutant("objective.py", "term.temperature**2", "term.temperature", "test_objective.py", "mixture"),
    Mutant("objective.py", "term.weight * term", "term", "test_objective.py", "mixture"),
    Mutant(
        "objective.py",
        "share_N = shares(target.weight, target.count, total)",
        "share_N = shares(target.weight, target.count)",
        "test_gradients.py",
        "accumulated",
    ),
    Mutant(
        "objective.py", "shares(None, counted_N, total)", "shares(None, counted_N)", "test_gradients.py", "accumulated"
    ),
    Mutant("objective.py", "else counted_N | counts_N", "else counted_N & counts_N", "test_objective.py", "z_loss"),
    Mutant("objective.py", "z_loss * counted_N * shares", "z_loss * shares", "test_objective.py", "z_loss"),
    # ---------------------------------------------------------------------------------------------- divergences
    Mutant(
        "divergences.py",
        "own_p, own_q = torch.tensor([beta, 1 - beta]",
        "own_q, own_p = torch.tensor([beta, 1 - beta]",
        "test_divergences.py",
        "definition",
    ),
    Mutant(
        "divergences.py",
        "beta * _kl(log_p_NC, log_m_NC)",
        "_kl(log_p_NC, log_m_NC)",
        "test_divergences.py",
        "transforms",
    ),
    Mutant(
        "divergences.py",
        "None if a_N is None else a_N[rows][part]",
        "None if a_N is None else a_N[rows][part] * 0 + 1",
        "test_divergences.py",
        "definition",
    ),
    Mutant(
        "divergences.py",
        "empty = torch.isneginf(log_a_NC)",
        "empty = torch.isnan(log_a_NC)",
        "test_divergences.py",
        "impossible",
    ),
    Mutant(
        "divergences.py",
        "None if beta == 0 else -most, None if beta == 1 else most",
        "-most, most",
        "test_divergences.py",
        "impossible",
    ),
    Mutant("divergences.py", ".masked_fill_((a_n == 0)[:, None], 0)", "", "test_divergences.py", "nan_stays"),
    Mutant(
        "divergences.py",
        "torch.where(r_nC.abs() < 1, q_nC * h_nC, q_nC - p_nC)",
        "q_nC - p_nC",
        "test_divergences.py",
        "its_digits",
    ),
    Mutant(
        "divergences.py",
        "exact(head.autocast()), exact(own)",
        "head.autocast(), own",
        "test_divergences.py",
        "half_precision",
    ),
    Mutant(
        "kernels/exact.py",
        "dx_nD += product(g_nC[:, c], self.weight[c])",
        "dx_nD += product(g_nC[:, c].to(self.dtype), self.weight[c])",
        "test_divergences.py",
        "half_precision",
    ),
]
