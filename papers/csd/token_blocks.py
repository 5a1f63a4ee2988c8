"""Per-token losses over a large vocabulary, block by block, with one buffer kept for the backward pass.

Logits of shape [batch, length, vocabulary] are the largest tensors of a distillation step, and every intermediate
that autograd keeps is one more of them. A per-token loss needs none: a token's value, and its gradient with respect
to that token's student logits, depend on that token alone. So both are computed together, over a block of tokens
small enough for the processor's cache, and only the gradient is kept; backward scales it by what comes in. Apart
from that buffer and the gradient that is returned, memory does not grow with the number of tokens.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of one tensor in a block. One megabyte of float32 per thread stays in a processor's cache; an
# accelerator wants few launches of large kernels (a quarter of a gigabyte of float32).
CPU_ELEMENTS_PER_THREAD = 2**18
ACCELERATOR_ELEMENTS = 2**26

ValueAndGradient = Callable[..., tuple[Tensor, Tensor | None]]


def token_loss(value_and_gradient: ValueAndGradient, student_logits: Tensor, *constants: Tensor) -> Tensor:
    """Per-token loss [...] of ``student_logits`` [..., V], differentiable once in them and in nothing else.

    Args:
        value_and_gradient: called as ``(student, *constants, needs_gradient=...)`` on blocks of tokens, all in
            ``compute_dtype`` of the inputs; returns the values [...] and, if needed, their gradients [..., V]. It
            must not write into its arguments.
        student_logits: [..., V].
        constants: the teacher's logits and whatever else has the leading shape of ``student_logits``; detached.

    Returns:
        [...] in ``compute_dtype``. The gradient has the dtype of ``student_logits``, and is zero wherever the incoming
        gradient of a token is zero, even if that token's logits are not finite: a masked position cannot leak.
    """
    needs_gradient = torch.is_grad_enabled() and student_logits.requires_grad
    constants = tuple(constant.detach() for constant in constants)
    if student_logits.ndim == 1:
        constants = tuple(constant.unsqueeze(0) for constant in constants)
        return token_loss(value_and_gradient, student_logits.unsqueeze(0), *constants).squeeze(0)
    return _TokenLoss.apply(value_and_gradient, needs_gradient, student_logits, *constants)


def by_autograd(
    value: Callable[..., Tensor], *, minimum: float = -math.inf, maximum: float = math.inf
) -> ValueAndGradient:
    """Make ``value(student, *constants)`` a ``value_and_gradient`` by differentiating within the block.

    The values are clamped to a range that in exact arithmetic they never leave; the gradient is that of ``value``.
    """

    def value_and_gradient(student: Tensor, *constants: Tensor, needs_gradient: bool) -> tuple[Tensor, Tensor | None]:
        if not needs_gradient:
            return value(student, *constants).clamp(minimum, maximum), None
        with torch.enable_grad():
            student = student.detach().requires_grad_()
            values = value(student, *constants)
            (gradient,) = torch.autograd.grad(values.sum(), student)
        return values.detach().clamp(minimum, maximum), gradient

    return value_and_gradient


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Widest dtype of the tensors, and at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value_and_gradient, needs_gradient, student_logits, *constants):
        dtype = compute_dtype(student_logits, *constants)
        values = student_logits.new_empty(student_logits.shape[:-1], dtype=dtype)
        # bfloat16 has the range of float32, so that its buffer may stay half as large. In float16 a small
        # coefficient would vanish before a loss scale could save it.
        buffer_dtype = torch.float32 if student_logits.dtype == torch.float16 else student_logits.dtype
        width = student_logits.shape[-1] if needs_gradient else 0
        gradient = student_logits.new_empty((*student_logits.shape[:-1], width), dtype=buffer_dtype)
        for values_out, gradient_out, *inputs in _blocks(values.unsqueeze(-1), gradient, student_logits, *constants):
            value, coefficient = value_and_gradient(*(x.to(dtype) for x in inputs), needs_gradient=needs_gradient)
            values_out.copy_(value.unsqueeze(-1))
            if needs_gradient:
                gradient_out.copy_(coefficient)
        ctx.save_for_backward(gradient)
        ctx.logits_dtype = student_logits.dtype
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx, incoming):
        (gradient,) = ctx.saved_tensors
        if gradient.dtype == ctx.logits_dtype and (scale := _common_value(incoming)) is not None:
            # A scalar does not promote: half precision is scaled in one pass, with the scale itself in full precision.
            return None, None, gradient * scale, *(None for _ in ctx.needs_input_grad[3:])
        logits_gradient = torch.empty_like(gradient, dtype=ctx.logits_dtype)
        for scale, coefficient, out in _blocks(incoming.unsqueeze(-1), gradient, logits_gradient):
            out.copy_(coefficient * scale)
        masked = incoming == 0
        if masked.any():
            # A zero must win over a coefficient that is not finite: 0 * nan is nan.
            logits_gradient[masked] = 0.0
        return None, None, logits_gradient, *(None for _ in ctx.needs_input_grad[3:])


def _common_value(incoming: Tensor) -> Tensor | None:
    """What all tokens get, () like the mean over all of them gives; None where they differ or some get nothing."""
    if incoming.numel() == 0:
        return None
    first = incoming.flatten()[0]
    return first if bool(((incoming == first) & (incoming != 0)).all()) else None


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of all tensors over the same tokens, none above the element limit unless a single token is.

    The tensors share their leading shape and have one trailing dimension or more. Cutting along the leading
    dimensions as they are avoids the copy that flattening a slice (``logits[:, :-1]``) would make.
    """
    if tensors[0].numel() == 0:
        return
    entries = len(tensors[0])
    on_cpu = tensors[0].device.type == "cpu"
    limit = CPU_ELEMENTS_PER_THREAD * torch.get_num_threads() if on_cpu else ACCELERATOR_ELEMENTS
    elements = max(tensor.numel() for tensor in tensors) // entries
    if elements > limit and tensors[0].ndim > 2:
        for entry in zip(*tensors, strict=True):
            yield from _blocks(*entry)
    else:
        size = max(1, limit // elements)
        yield from zip(*(tensor.split(size) for tensor in tensors), strict=True)
