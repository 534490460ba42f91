"""Which of a loss's parameters is what: by the names that are common, and by what the user says."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from likely import functional, nn
from likely._checks import require

NAMES: dict[str, tuple[str, ...]] = {
    "student": (
        *("student", "student_logits", "logits_student", "logits_s", "s_logits", "stu_logits", "student_output"),
        *("student_outputs", "outputs_student", "output_student", "student_log_probs", "student_logprobs", "s", "z_s"),
        *("student_probs", "y_s", "out_s", "logit_s", "f_s", "preds_s", "logits", "input", "inputs", "pred", "preds"),
        *("output", "outputs", "y_pred", "log_q", "q", "student_input", "student_hidden", "student_hidden_states"),
    ),
    "teacher": (
        *("teacher", "teacher_logits", "logits_teacher", "logits_t", "t_logits", "tea_logits", "teacher_output"),
        *("teacher_outputs", "outputs_teacher", "output_teacher", "teacher_log_probs", "teacher_logprobs", "t", "z_t"),
        *(
            "teacher_probs",
            "y_t",
            "out_t",
            "logit_t",
            "f_t",
            "preds_t",
            "soft_targets",
            "soft_labels",
            "teacher_scores",
        ),
        *("y_true", "log_p", "p", "teacher_input", "teacher_hidden", "teacher_hidden_states", "target_logits"),
    ),
    "student_weight": ("student_weight", "student_lm_head", "student_head"),
    "teacher_weight": ("teacher_weight", "teacher_lm_head", "teacher_head"),
    "temperature": ("temperature", "T", "tau", "temp", "kd_temperature", "kd_temp", "kd_T", "softmax_temperature"),
    "labels": (
        "labels",
        "label",
        "y",
        "true_labels",
        "hard_labels",
        "hard_targets",
        "gt",
        "ground_truth",
        "target_ids",
    ),
    "shifted": ("shift_labels", "shifted_labels", "next_tokens"),
    "mask": ("mask", "attention_mask", "loss_mask", "token_mask", "valid_mask", "completion_mask", "response_mask"),
    "total": ("num_items_in_batch", "total", "num_items", "normalizer", "num_valid_tokens", "denominator"),
    "chunk": ("chunk_size", "chunks", "num_chunks", "num_output_chunks", "n_chunks", "block_size", "chunk_length"),
    "index": ("target_token_ids", "topk_ids", "top_k_ids", "topk_indices", "top_k_indices", "teacher_indices", "index"),
    "stored": ("target_logprobs", "topk_logprobs", "top_k_logprobs", "teacher_topk_logprobs", "topk_logps"),
    "stored_mask": ("target_mask", "topk_mask"),
}
"""The roles and the names that are taken for them. `target` and `targets` are the teacher's where nothing else is,
and labels otherwise. Single letters are read as they are written: `T` is a temperature, `t` a teacher."""

FORMS = ("logits", "log_probs", "probs")
OPTIONS = ("student", "teacher", "temperature", "labels", "mask", "total")
"""The roles that the user can give by name."""


@dataclass
class Binding:
    """A callable's parameters by role.

    Args:
        make: builds the callable from the constructor's arguments; of a function it gives the function.
        built: role -> name, of the constructor's parameters.
        called: role -> name, of the call's.
        built_with, called_with: values that are fixed.
        student_form, teacher_form: what the two are given as, one of FORMS.
        positional: whether student and teacher were found by their places, for want of a known name.
    """

    make: Callable[..., Callable[..., Any]]
    built: dict[str, str]
    called: dict[str, str]
    built_with: dict[str, Any]
    called_with: dict[str, Any]
    student_form: str = "logits"
    teacher_form: str = "logits"
    positional: bool = False
    defaults: dict[str, Any] = field(default_factory=dict)

    def has(self, role: str) -> bool:
        return role in self.called or role in self.built

    def name(self, role: str) -> str:
        return self.called.get(role) or self.built[role]

    def described(self) -> dict[str, str]:
        """Parameter -> what it is given, to print."""
        shown = {"student": f"the student's {_SAID[self.student_form]}", "temperature": "1 and others"}
        shown |= {"teacher": f"the teacher's {_SAID[self.teacher_form]}", "labels": "labels, −100 where masked"}
        shown |= {"mask": "a mask, 0 where masked", "total": "the number of rows that count", "chunk": "several sizes"}
        shown |= {"student_weight": "the identity", "teacher_weight": "the identity", "shifted": "the next labels"}
        shown |= {"index": "the stored classes", "stored": "their log-probabilities", "stored_mask": "ones"}
        found = {name: shown[role] for role, name in (self.called | self.built).items()}
        found |= {name: repr(value) for name, value in (self.built_with | self.called_with).items()}
        return found


_SAID = {"logits": "logits", "log_probs": "log-probabilities", "probs": "probabilities"}


def bind(loss: Any, call: Mapping[str, Any], names: Mapping[str, str], inputs: str | None) -> Binding:
    """Finds out what the parameters of a loss are.

    Args:
        loss: a function, a class whose instances are called, or such an instance.
        call: values of further parameters, of the constructor or of the call.
        names: role -> the name of a parameter, for the roles in OPTIONS.
        inputs: "logits", "log_probs" or "probs", for both, or "student's,teacher's"; by default told from the names.

    Raises:
        TypeError: it cannot be called, or its parameters cannot be read.
        ValueError: a name that is no parameter; a parameter without a default of which nothing is known.
    """
    require(callable(loss), f"loss: a {type(loss).__name__} cannot be called", TypeError)
    built: dict[str, inspect.Parameter] = {}
    if inspect.isclass(loss):
        built = _parameters(loss)
        method = loss.forward if issubclass(loss, torch.nn.Module) else loss.__call__
        called = _parameters(method, skip=1)
    else:
        called = _parameters(loss.forward if isinstance(loss, torch.nn.Module) else loss)
    for name in (*names.values(), *call):
        require(
            name in called or name in built,
            f"{name}: is no parameter of the loss; they are {', '.join([*built, *called])}",
        )
    roles = {name: role for role, name in names.items()}
    varied = ("temperature", "chunk")  # a value that is given for them is one of several that are tried
    free = [name for name in called if name not in call or name in roles or _role(name) in varied]
    for name in free:
        role = _role(name)
        if name not in roles and role is not None and role not in roles.values():
            roles[name] = role
    positional = _fill_in(roles, free, called)
    in_call = {role: name for name, role in roles.items() if name in called}
    in_constructor = {}
    for name in built:
        role = roles.get(name) or _role(name)
        if role in varied and role not in in_call:
            in_constructor[role] = name
    fixed = {n for role, n in (in_call | in_constructor).items()}
    make: Any = loss if inspect.isclass(loss) else lambda: loss
    binding = Binding(
        make=make,
        built=in_constructor,
        called=in_call,
        built_with={name: value for name, value in call.items() if name in built and name not in fixed},
        called_with={n: value for n, value in call.items() if n in called and n not in built and n not in fixed},
        positional=positional,
        defaults={n: call.get(n, p.default) for n, p in (built | called).items()},
    )
    for where, parameters in (("its constructor", built), ("it", called)):
        for name, parameter in parameters.items():
            if parameter.default is parameter.empty and name not in fixed and name not in call:
                raise ValueError(
                    f"{name}: {where} needs it, and the name says nothing here; give it a value (call {name}=…) or say "
                    f"which role it has ({', '.join(OPTIONS)})"
                )
    binding.student_form, binding.teacher_form = _forms(loss, binding, inputs)
    return binding


def _parameters(of: Any, skip: int = 0) -> dict[str, inspect.Parameter]:
    try:
        listed = list(inspect.signature(of).parameters.values())[skip:]
    except (TypeError, ValueError):
        raise TypeError(f"loss: the parameters of {of!r} cannot be read; wrap it in a function of your own") from None
    return {p.name: p for p in listed if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _role(name: str) -> str | None:
    for role, known in NAMES.items():
        if name in known or (len(name) > 1 and name.lower() in [one for one in known if len(one) > 1]):
            return role
    return None


def _fill_in(roles: dict[str, str], free: list[str], called: Mapping[str, inspect.Parameter]) -> bool:
    """Gives student and teacher a parameter where the names did not; says whether places had to serve."""
    sparse = {"index", "stored"} <= set(roles.values())
    for name in ("target", "targets"):
        if name in free and name not in roles:
            taken = "teacher" in roles.values() or sparse
            roles[name] = "labels" if taken and "labels" not in roles.values() else "teacher"
    if not sparse:
        for name in [name for name, role in roles.items() if role in ("index", "stored", "stored_mask")]:
            del roles[name]
    positional = False
    for role in ("student",) if sparse else ("student", "teacher"):
        if role not in roles.values():
            left = [name for name in free if name not in roles and called[name].default is inspect.Parameter.empty]
            require(bool(left), f"{role}: no parameter of the loss is known to be the {role}'s; name it ({role}=…)")
            roles[left[0]] = role
            positional = True
    return positional


def _forms(loss: Any, binding: Binding, inputs: str | None) -> tuple[str, str]:
    if inputs is not None:
        parts = inputs.split(",")
        require(
            len(parts) in (1, 2) and set(parts) <= set(FORMS),
            f"inputs: is {inputs!r}; it is {', '.join(FORMS)}, or two of them, the student's and the teacher's: a,b",
        )
        return parts[0], parts[-1]
    for functions, classes, given in _KNOWN:
        if loss in functions or loss in classes or isinstance(loss, classes):
            logs = binding.defaults.get("log_target") is True or getattr(loss, "log_target", False) is True
            return (given[0], "log_probs") if logs else given
    return tuple(_form(binding.called.get(role, "")) for role in ("student", "teacher"))  # type: ignore[return-value]


_KNOWN: tuple[tuple[tuple[Any, ...], tuple[type, ...], tuple[str, str]], ...] = (
    ((F.kl_div, functional.kl_div), (torch.nn.KLDivLoss, nn.KLDivLoss), ("log_probs", "probs")),
    (
        (F.cross_entropy, functional.cross_entropy),
        (torch.nn.CrossEntropyLoss, nn.CrossEntropyLoss),
        ("logits", "probs"),
    ),
)
"""What the losses of torch are given, whose names do not say it."""


def _form(name: str) -> str:
    if "log_prob" in name or "logprob" in name or name in ("log_q", "log_p"):
        return "log_probs"
    return "probs" if "prob" in name or name in ("q", "p", "soft_targets", "soft_labels") else "logits"
