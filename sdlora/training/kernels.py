"""Two parts of a UNet as Triton kernels of our own: group normalisation, with SiLU after it, and GEGLU.

Between matrix products a UNet moves memory. torch normalises groups in channels-first memory only, which
turns every picture around twice where convolutions want channels last, and GEGLU passes the memory four times
where one is enough. Both repeat their bits: no sum depends on the order in which blocks finish.

Shapes: B batch, C channels, G groups, P places of a picture, N rows, D features.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

# One form of every kernel serves all shapes: to compile each anew would take half a minute.
_ROWS, _COLUMNS = 32, 128  # places and channels that a program holds at once
_PARTS = 64  # parts of a picture whose sums are merged at once
_PROGRAMS = 528  # that keep every multiprocessor of today's cards busy
_MANY = 1024  # values of GEGLU that a program makes


def run_all(device: torch.device, dtype: torch.dtype) -> None:
    """Every kernel has run once, on next to nothing, and is compiled for pictures of `dtype`.

    Compiling takes a second for each, the first time on a machine, so they are compiled side by side. Raises
    whatever a compiler raises that is missing or does not fit.
    """
    with torch.cuda.device(device):
        launches = _launches(torch.ones(1, 32, 4, 4, device=device, dtype=dtype))
        launches.pop()()  # makes what the others share
    with ThreadPoolExecutor(initializer=torch.cuda.set_device, initargs=(device,)) as pool:
        for launched in [pool.submit(launch) for launch in launches]:
            launched.result()
    torch.cuda.synchronize(device)


def group_norm(x: Tensor, norm: nn.GroupNorm, *, silu: bool) -> Tensor:
    """What `norm` answers to x [B,C,H,W], or SiLU of that, in channels-last memory."""
    out: Tensor = _GroupNorm.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps, silu)  # type: ignore[no-untyped-call]  # torch's gap
    return out


def geglu(both: Tensor) -> Tensor:
    """value * gelu(gate) of both halves of the last dimension: Shazeer 2020, eq. 6. [...,2D] -> [...,D]."""
    out: Tensor = _GeGlu.apply(both)  # type: ignore[no-untyped-call]  # as above
    return out


def geglu_slope(both: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of `both` [...,2D] for that of what `geglu` made of it [...,D]."""
    gradient, out = gradient.contiguous(), torch.empty_like(both)
    _geglu_back[_rows(gradient)](both, gradient, out, gradient.shape[-1], _MANY)
    return out


class _GroupNorm(torch.autograd.Function):
    """(x - mean) / std * weight + bias over groups of channels, and if asked SiLU of that.

    Wu & He 2018, eq. 1-2. x [B,C,H,W] in any layout -> the same in channels-last memory; sums in fp32.
    `weight` and `bias` [C] are frozen and get no gradient.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        shape = _Shape(x, groups)
        partial = x.new_empty(shape.batch, shape.parts, 2, shape.channels, dtype=torch.float32)
        stats = x.new_empty(shape.batch, groups, 2, dtype=torch.float32)
        _moments[shape.grid](x, partial, *shape.sizes)
        _merge_moments[(shape.batch, groups)](x, partial, stats, eps, *shape.merging)
        out = torch.empty_like(x)
        _normalise[shape.grid](x, stats, weight, bias, out, *shape.sizes, silu)
        ctx.save_for_backward(x, weight, bias, stats)
        ctx.groups, ctx.silu = groups, silu
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight, bias, stats = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        shape = _Shape(x, ctx.groups)
        partial = torch.empty_like(stats.new_empty(shape.batch, shape.parts, 2, shape.channels))
        sums = torch.empty_like(stats)
        _products[shape.grid](x, gradient, stats, weight, bias, partial, *shape.sizes, ctx.silu)
        _merge_products[(shape.batch, ctx.groups)](partial, weight, sums, *shape.merging)
        out = torch.empty_like(x)
        _denormalise[shape.grid](x, gradient, stats, sums, weight, bias, out, *shape.sizes, ctx.silu)
        return out, None, None, None, None, None


class _GeGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, both: Tensor) -> Tensor:
        both = both.contiguous()
        out = both.new_empty(*both.shape[:-1], both.shape[-1] // 2)
        _geglu[_rows(out)](both, out, out.shape[-1], _MANY)
        ctx.save_for_backward(both)
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return geglu_slope(ctx.saved_tensors[0], gradient)


def _launches(x: Tensor) -> list[Callable[[], object]]:
    """One of every kernel, for x [B,C,H,W] in groups of one channel."""
    shape = _Shape(x, x.shape[1])
    each, out, weight = (shape.batch, x.shape[1]), torch.empty_like(x), x[0, :, 0, 0].contiguous()
    parts = x.new_empty(shape.batch, shape.parts, 2, shape.channels, dtype=torch.float32)
    stats = x.new_empty(*each, 2, dtype=torch.float32)
    launches = [
        functools.partial(_moments[shape.grid], x, parts, *shape.sizes),
        functools.partial(_merge_moments[each], x, parts, stats, 1e-5, *shape.merging),
        functools.partial(_merge_products[each], parts, weight, stats, *shape.merging),
        functools.partial(_geglu_back[1, 1], x, weight, x, 16, _MANY),
    ]
    for silu in (False, True):
        norm = (weight, weight, out, *shape.sizes, silu)
        launches += [
            functools.partial(_normalise[shape.grid], x, stats, *norm),
            functools.partial(_products[shape.grid], x, x, stats, weight, weight, parts, *shape.sizes, silu),
            functools.partial(_denormalise[shape.grid], x, x, stats, stats, *norm),
        ]
    return [*launches, functools.partial(_geglu[1, 1], x, weight, 16, _MANY)]


class _Shape:
    """How the places of pictures [B,C,H,W] are shared out to programs."""

    def __init__(self, x: Tensor, groups: int) -> None:
        self.batch, self.channels = x.shape[:2]
        self.places = x.shape[2] * x.shape[3]
        blocks = triton.cdiv(self.channels, _COLUMNS)
        each = triton.cdiv(triton.cdiv(self.places, _ROWS), max(1, _PROGRAMS // (self.batch * blocks)))
        self.parts = triton.cdiv(self.places, each * _ROWS)
        self.grid = (self.batch, self.parts, blocks)
        self.sizes = (self.places, self.channels, groups, each, _ROWS, _COLUMNS)
        self.merging = (self.places, self.channels, self.parts, each * _ROWS, _PARTS, _COLUMNS)


def fits(channels: int, groups: int) -> bool:
    """Whether `group_norm` takes pictures of so many channels and groups."""
    return channels // groups <= _COLUMNS


def _rows(out: Tensor) -> tuple[int, int]:
    width = out.shape[-1]
    return out.numel() // width, triton.cdiv(width, _MANY)


@triton.jit(do_not_specialize=("places", "groups", "each"))
def _moments(x, partial, places, channels, groups, each, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sum, and sum of squares about the part's first row, of every channel over a part of the places."""
    batch, part = tl.program_id(0), tl.program_id(1)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < channels
    x += batch.to(tl.int64) * places * channels
    start = part * each * ROWS
    pivot = tl.load(x + start * channels + column, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((COLUMNS,), tl.float32)
    square = tl.zeros((COLUMNS,), tl.float32)
    for tile in range(each):
        row = start + tile * ROWS + tl.arange(0, ROWS)
        there = (row < places)[:, None] & inside[None, :]
        value = tl.load(x + row[:, None] * channels + column[None, :], mask=there, other=0.0).to(tl.float32)
        value = tl.where(there, value - pivot[None, :], 0.0)
        total += tl.sum(value, 0)
        square += tl.sum(value * value, 0)
    partial += ((batch * tl.num_programs(1) + part) * 2) * channels + column
    tl.store(partial, total, mask=inside)
    tl.store(partial + channels, square, mask=inside)


@triton.jit(do_not_specialize=("eps", "places", "parts", "share"))
def _merge_moments(
    x, partial, stats, eps, places, channels, parts, share, PARTS: tl.constexpr, WIDTH: tl.constexpr
):
    """Mean and 1/std of a group from the sums of its parts, each about its own pivot: Chan et al. 1979."""
    batch, group = tl.program_id(0), tl.program_id(1)
    width = channels // tl.num_programs(1)
    column = tl.arange(0, WIDTH)[None, :]
    channel = group * width + column
    number = (places * width).to(tl.float32)
    x += batch.to(tl.int64) * places * channels
    partial += batch * parts * 2 * channels
    summed = 0.0
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)[:, None]
        there = (part < parts) & (column < width)
        count = tl.minimum(places - part * share, share).to(tl.float32)
        pivot = tl.load(x + part * share * channels + channel, mask=there, other=0.0).to(tl.float32)
        total = tl.load(partial + part * 2 * channels + channel, mask=there, other=0.0)
        summed += tl.sum(tl.sum(tl.where(there, pivot * count + total, 0.0), 1), 0)
    mean = summed / number
    spread = 0.0
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)[:, None]
        there = (part < parts) & (column < width)
        count = tl.minimum(places - part * share, share).to(tl.float32)
        pivot = tl.load(x + part * share * channels + channel, mask=there, other=0.0).to(tl.float32)
        total = tl.load(partial + part * 2 * channels + channel, mask=there, other=0.0)
        square = tl.load(partial + (part * 2 + 1) * channels + channel, mask=there, other=0.0)
        apart = pivot - mean
        spread += tl.sum(
            tl.sum(tl.where(there, square + 2 * apart * total + count * apart * apart, 0.0), 1), 0
        )
    stats += (batch * tl.num_programs(1) + group) * 2
    tl.store(stats, mean)
    tl.store(stats + 1, 1.0 / tl.sqrt(spread / number + eps))


@triton.jit
def _silu_slope(value):
    """The derivative of value * sigmoid(value)."""
    open = tl.sigmoid(value)
    return open * (1.0 + value * (1.0 - open))


@triton.jit(do_not_specialize=("places", "groups", "each"))
def _normalise(
    x, stats, weight, bias, out,
    places, channels, groups, each, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    batch, part = tl.program_id(0), tl.program_id(1)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < channels
    stats += (batch * groups + column // (channels // groups)) * 2
    mean = tl.load(stats, mask=inside, other=0.0)
    scale = tl.load(stats + 1, mask=inside, other=0.0)
    scale *= tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    offset = batch.to(tl.int64) * places * channels
    for tile in range(each):
        row = (part * each + tile) * ROWS + tl.arange(0, ROWS)
        there = (row < places)[:, None] & inside[None, :]
        at = offset + row[:, None] * channels + column[None, :]
        value = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
        value = (value - mean[None, :]) * scale[None, :] + shift[None, :]
        if SILU:
            value *= tl.sigmoid(value)
        tl.store(out + at, value.to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=("places", "groups", "each"))
def _products(
    x, slope, stats, weight, bias, partial,
    places, channels, groups, each, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Sums of the gradient, and of it times the normalised value, of every channel over a part."""
    batch, part = tl.program_id(0), tl.program_id(1)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < channels
    stats += (batch * groups + column // (channels // groups)) * 2
    mean = tl.load(stats, mask=inside, other=0.0)
    root = tl.load(stats + 1, mask=inside, other=0.0)
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((COLUMNS,), tl.float32)
    product = tl.zeros((COLUMNS,), tl.float32)
    offset = batch.to(tl.int64) * places * channels
    for tile in range(each):
        row = (part * each + tile) * ROWS + tl.arange(0, ROWS)
        there = (row < places)[:, None] & inside[None, :]
        at = offset + row[:, None] * channels + column[None, :]
        value = (tl.load(x + at, mask=there, other=0.0).to(tl.float32) - mean[None, :]) * root[None, :]
        change = tl.load(slope + at, mask=there, other=0.0).to(tl.float32)
        if SILU:
            change *= _silu_slope(value * factor[None, :] + shift[None, :])
        total += tl.sum(change, 0)
        product += tl.sum(change * value, 0)
    partial += ((batch * tl.num_programs(1) + part) * 2) * channels + column
    tl.store(partial, total, mask=inside)
    tl.store(partial + channels, product, mask=inside)


@triton.jit(do_not_specialize=("places", "parts", "share"))
def _merge_products(
    partial, weight, sums, places, channels, parts, share, PARTS: tl.constexpr, WIDTH: tl.constexpr
):
    """Means over a group of both products, each times the weight."""
    batch, group = tl.program_id(0), tl.program_id(1)
    width = channels // tl.num_programs(1)
    column = tl.arange(0, WIDTH)[None, :]
    channel = group * width + column
    factor = tl.load(weight + channel, mask=column < width, other=0.0).to(tl.float32)
    number = (places * width).to(tl.float32)
    partial += batch * parts * 2 * channels
    total, product = 0.0, 0.0
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)[:, None]
        there = (part < parts) & (column < width)
        one = tl.load(partial + part * 2 * channels + channel, mask=there, other=0.0)
        other = tl.load(partial + (part * 2 + 1) * channels + channel, mask=there, other=0.0)
        total += tl.sum(tl.sum(one * factor, 1), 0)
        product += tl.sum(tl.sum(other * factor, 1), 0)
    sums += (batch * tl.num_programs(1) + group) * 2
    tl.store(sums, total / number)
    tl.store(sums + 1, product / number)


@triton.jit(do_not_specialize=("places", "groups", "each"))
def _denormalise(
    x, slope, stats, sums, weight, bias, out,
    places, channels, groups, each, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """(gradient * weight - its mean - normalised * mean of both) / std."""
    batch, part = tl.program_id(0), tl.program_id(1)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < channels
    group = (batch * groups + column // (channels // groups)) * 2
    mean = tl.load(stats + group, mask=inside, other=0.0)
    root = tl.load(stats + group + 1, mask=inside, other=0.0)
    total = tl.load(sums + group, mask=inside, other=0.0)
    product = tl.load(sums + group + 1, mask=inside, other=0.0)
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    offset = batch.to(tl.int64) * places * channels
    for tile in range(each):
        row = (part * each + tile) * ROWS + tl.arange(0, ROWS)
        there = (row < places)[:, None] & inside[None, :]
        at = offset + row[:, None] * channels + column[None, :]
        value = (tl.load(x + at, mask=there, other=0.0).to(tl.float32) - mean[None, :]) * root[None, :]
        change = tl.load(slope + at, mask=there, other=0.0).to(tl.float32) * factor[None, :]
        if SILU:
            change *= _silu_slope(value * factor[None, :] + shift[None, :])
        value = (change - total[None, :] - value * product[None, :]) * root[None, :]
        tl.store(out + at, value.to(out.dtype.element_ty), mask=there)


@triton.jit
def _geglu(both, out, width, MANY: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * MANY + tl.arange(0, MANY)
    there = column < width
    both += row * 2 * width
    value = tl.load(both + column, mask=there, other=0.0).to(tl.float32)
    gate = tl.load(both + width + column, mask=there, other=0.0).to(tl.float32)
    half = 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(out + row * width + column, (value * gate * half).to(out.dtype.element_ty), mask=there)


@triton.jit
def _geglu_back(both, slope, out, width, MANY: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * MANY + tl.arange(0, MANY)
    there = column < width
    both += row * 2 * width
    out += row * 2 * width
    value = tl.load(both + column, mask=there, other=0.0).to(tl.float32)
    gate = tl.load(both + width + column, mask=there, other=0.0).to(tl.float32)
    change = tl.load(slope + row * width + column, mask=there, other=0.0).to(tl.float32)
    half = 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    density = 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    tl.store(out + column, (change * gate * half).to(out.dtype.element_ty), mask=there)
    to_gate = change * value * (half + gate * density)
    tl.store(out + width + column, to_gate.to(out.dtype.element_ty), mask=there)
