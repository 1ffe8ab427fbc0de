"""hash_encoding on CUDA: the kernels; launch.py says how they play together.

`encode_kernel` and `scatter_kernel` serve single points and the voxels of a grid, the former also a
grid out of a lattice of vertices that were looked up before. Addresses are 64-bit, arithmetic is
float32; the cells are those of the reference to the bit, which takes launches without fused
multiply-add. `geometry` is [L, 6] int64: first row, rows, floor(2^32 / rows), the strides of y and
z, hashed or not.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _cell(position, scale):
    shifted = (position.to(tl.float64) * scale + 0.5).to(position.dtype)
    lower = tl.floor(shifted)
    return lower.to(tl.int32), (shifted - lower).to(tl.float32)


@triton.jit
def _row(x, y, z, geometry):
    """Row within a level of vertices x, y, z (uint32): value modulo rows, for every value."""
    size = tl.load(geometry + 1).to(tl.uint32)
    inverse = tl.load(geometry + 2).to(tl.uint32)
    y = y * tl.load(geometry + 3).to(tl.uint32)
    z = z * tl.load(geometry + 4).to(tl.uint32)
    value = tl.where(tl.load(geometry + 5) != 0, x ^ y ^ z, x + y + z)
    # the quotient falls short by one at most
    rest = value - tl.umulhi(value, inverse) * size
    return tl.where(rest >= size, rest - size, rest).to(tl.int64)


@triton.jit
def _corner(lower, fraction, upper: tl.constexpr):
    vertex = (lower + upper).to(tl.uint32)
    weight = fraction if upper else 1.0 - fraction
    return vertex, weight


@triton.jit
def _place(blocks, plane_size, width, k_stride, start, GRID: tl.constexpr, BLOCK: tl.constexpr):
    """Outputs i of this program, which of them exist, and where their z, y and x lie.

    A plane of the grid is `blocks` programs, so that no 64-bit number is divided; points are one
    plane, and their coordinates the columns of [N, 3].
    """
    plane = (tl.program_id(0) // blocks).to(tl.int64)
    at = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if GRID:
        column = at.to(tl.int32)
        z = (start + plane * k_stride) + tl.zeros([BLOCK], tl.int64)
        y, x = column // width, column % width
    else:
        z, y, x = 3 * at + 2, 3 * at + 1, 3 * at
    return plane * plane_size + at, at < plane_size, z, y, x


@triton.jit
def _coordinate(axis, slots, fractions, at, length, mask, scale, level, LATTICE: tl.constexpr):
    if LATTICE:
        lower = tl.load(slots + level * length + at, mask, other=0)
        fraction = tl.load(fractions + level * length + at, mask, other=0.0)
    else:
        lower, fraction = _cell(tl.load(axis + at, mask, other=0.0), scale)
    return lower, fraction


@triton.jit
def encode_kernel(
    out,
    z_axis,
    y_axis,
    x_axis,
    z_slots,
    y_slots,
    x_slots,
    z_fractions,
    y_fractions,
    x_fractions,
    table,
    scales,
    geometry,
    weights,
    blocks,
    plane_size,
    depth,
    height,
    width,
    k_stride,
    start,
    first_level,
    last_level,
    n_outputs,
    TAPS: tl.constexpr,
    F: tl.constexpr,
    FEATURES: tl.constexpr,
    LEVELS: tl.constexpr,
    GRID: tl.constexpr,
    LATTICE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """LEVELS levels of BLOCK outputs: as many as fill a 32-byte sector of a row of the result.

    Levels are the second grid axis, the slower one: the parts of the table that are looked up at a
    time stay in the L2 cache. The TAPS slices of a window are summed in registers.
    """
    i, inside, z0, y, x = _place(blocks, plane_size, width, k_stride, start, GRID, BLOCK)
    f = tl.arange(0, FEATURES)
    for step in tl.static_range(LEVELS):
        level = first_level + tl.program_id(1).to(tl.int64) * LEVELS + step
        mask = tl.where(level < last_level, inside, False)
        both = mask[:, None] & (f < F)[None, :]
        known = tl.minimum(level, last_level - 1)
        scale, numbers = tl.load(scales + known), geometry + known * 6
        rows = table + tl.load(numbers) * F
        ly, fy = _coordinate(y_axis, y_slots, y_fractions, y, height, mask, scale, known, LATTICE)
        lx, fx = _coordinate(x_axis, x_slots, x_fractions, x, width, mask, scale, known, LATTICE)
        total = tl.zeros([BLOCK, FEATURES], tl.float32)
        for tap in range(TAPS):
            z = z0 + tap
            lz, fz = _coordinate(
                z_axis, z_slots, z_fractions, z, depth, mask, scale, known, LATTICE
            )
            features = tl.zeros([BLOCK, FEATURES], tl.float32)
            for corner in tl.static_range(8):
                vx, wx = _corner(lx, fx, corner % 2)
                vy, wy = _corner(ly, fy, corner // 2 % 2)
                vz, wz = _corner(lz, fz, corner // 4)
                if LATTICE:
                    row = vx + vy * tl.load(numbers + 3) + vz * tl.load(numbers + 4)
                else:
                    row = _row(vx, vy, vz, numbers)
                entry = tl.load(rows + row[:, None] * F + f[None, :], both, other=0.0)
                features += entry.to(tl.float32) * (wx * wy * wz)[:, None]
            if GRID:
                features *= tl.load(weights + tap)
            total += features
        to = out + i[:, None] * n_outputs + level * F + f[None, :]
        tl.store(to, total.to(out.dtype.element_ty), both)


@triton.jit
def _add(sums, value, unit, mask):
    """Adds in fixed point, rounded to the nearest unit."""
    fixed = tl.floor(value.to(tl.float64) * unit + 0.5).to(tl.int64)
    tl.atomic_add(sums, fixed, mask=mask, sem="relaxed")


@triton.jit
def scatter_kernel(
    sums,
    grad,
    z_axis,
    y_axis,
    x_axis,
    scales,
    geometry,
    weights,
    units,
    blocks,
    plane_size,
    width,
    k_stride,
    start,
    first_level,
    n_outputs,
    TAPS: tl.constexpr,
    F: tl.constexpr,
    FEATURES: tl.constexpr,
    GRID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Transpose of `encode_kernel` without a lattice: BLOCK outputs of one level."""
    i, mask, z0, y, x = _place(blocks, plane_size, width, k_stride, start, GRID, BLOCK)
    f = tl.arange(0, FEATURES)
    level = first_level + tl.program_id(1).to(tl.int64)
    both = mask[:, None] & (f < F)[None, :]
    scale, numbers, unit = tl.load(scales + level), geometry + level * 6, tl.load(units)
    rows = sums + tl.load(numbers) * F
    g = tl.load(grad + i[:, None] * n_outputs + level * F + f[None, :], both, other=0.0)
    g = g.to(tl.float32)
    ly, fy = _cell(tl.load(y_axis + y, mask, other=0.0), scale)
    lx, fx = _cell(tl.load(x_axis + x, mask, other=0.0), scale)
    for tap in range(TAPS):
        z = z0 + tap
        lz, fz = _cell(tl.load(z_axis + z, mask, other=0.0), scale)
        part = g
        if GRID:
            part = g * tl.load(weights + tap)
        for corner in tl.static_range(8):
            vx, wx = _corner(lx, fx, corner % 2)
            vy, wy = _corner(ly, fy, corner // 2 % 2)
            vz, wz = _corner(lz, fz, corner // 4)
            row = _row(vx, vy, vz, numbers)
            value = part * (wx * wy * wz)[:, None]
            _add(rows + row[:, None] * F + f[None, :], value, unit, both)


@triton.jit
def slope_kernel(
    out,
    grad,
    positions,
    table,
    scales,
    geometry,
    n,
    N_LEVELS: tl.constexpr,
    F: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradient of the positions: each point sums its levels, in order."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    f = tl.arange(0, FEATURES)
    mask = i < n
    both = mask[:, None] & (f < F)[None, :]
    px = tl.load(positions + 3 * i, mask, other=0.0)
    py = tl.load(positions + 3 * i + 1, mask, other=0.0)
    pz = tl.load(positions + 3 * i + 2, mask, other=0.0)
    sx = tl.zeros([BLOCK], tl.float32)
    sy = tl.zeros([BLOCK], tl.float32)
    sz = tl.zeros([BLOCK], tl.float32)
    for level in range(N_LEVELS):
        scale, numbers = tl.load(scales + level), geometry + level * 6
        rows = table + tl.load(numbers) * F
        g = tl.load(grad + (i * N_LEVELS + level)[:, None] * F + f[None, :], both, other=0.0)
        lx, fx = _cell(px, scale)
        ly, fy = _cell(py, scale)
        lz, fz = _cell(pz, scale)
        for corner in tl.static_range(8):
            vx, wx = _corner(lx, fx, corner % 2)
            vy, wy = _corner(ly, fy, corner // 2 % 2)
            vz, wz = _corner(lz, fz, corner // 4)
            row = _row(vx, vy, vz, numbers)
            entry = tl.load(rows + row[:, None] * F + f[None, :], both, other=0.0)
            inner = tl.sum(entry.to(tl.float32) * g.to(tl.float32), 1) * scale.to(tl.float32)
            sx += inner * (wy * wz) * (2 * (corner % 2) - 1)
            sy += inner * (wx * wz) * (2 * (corner // 2 % 2) - 1)
            sz += inner * (wx * wy) * (2 * (corner // 4) - 1)
    tl.store(out + 3 * i, sx.to(out.dtype.element_ty), mask)
    tl.store(out + 3 * i + 1, sy.to(out.dtype.element_ty), mask)
    tl.store(out + 3 * i + 2, sz.to(out.dtype.element_ty), mask)


# --- lattices: the vertices of a level that the cells of a grid touch ---


@triton.jit
def _apart(cell, following):
    return tl.where(following == cell, 0, tl.where(following == cell + 1, 1, 2))


@triton.jit
def axis_kernel(
    slots,
    fractions,
    vertices,
    begins,
    ends,
    counts,
    axis,
    scales,
    rooms,
    length,
    BLOCK: tl.constexpr,
):
    """One level of an axis [length]: its touched vertices in a list, cell i between slots[i] and
    the next; vertex v has the coordinates [begins[v], ends[v]) around it.
    """
    level = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < length
    scale, room = tl.load(scales + level), tl.load(rooms + level)
    lower, fraction = _cell(tl.load(axis + i, inside, other=0.0), scale)
    before, _ = _cell(tl.load(axis + i - 1, inside & (i > 0), other=0.0), scale)
    after, _ = _cell(tl.load(axis + i + 1, i + 1 < length, other=0.0), scale)
    # cells share both vertices (0), one (1) or none (2) with their neighbours
    left = tl.where(i == 0, 2, _apart(before, lower))
    right = tl.where(i + 1 == length, 2, _apart(lower, after))
    slot = tl.cumsum(tl.where(inside & (i > 0), left, 0), 0)
    # no more than `room` for ascending axes in [0, 1]; never outside the memory for others
    slot = tl.minimum(slot, room - 2).to(tl.int32)
    tl.store(slots + level * length + i, slot, inside)
    tl.store(fractions + level * length + i, fraction, inside)
    tl.store(counts + level, tl.max(tl.where(inside, slot, 0), 0) + 2)
    to = level * 2 * length + slot
    # (stored as they are, Triton 3.6 places a layout conversion before its operand)
    vertex = lower.to(tl.int64)
    tl.store(vertices + to, vertex, inside)
    tl.store(vertices + to + 1, vertex + 1, inside)
    # the first voxel of a cell begins its upper vertex, and the lower where no cell is before it
    tl.store(begins + to + 1, i, inside & (left > 0))
    tl.store(begins + to, i, inside & (left == 2))
    tl.store(ends + to, i + 1, inside & (right > 0))
    tl.store(ends + to + 1, i + 1, inside & (right == 2))


@triton.jit
def look_up_kernel(
    lattice,
    table,
    z_vertices,
    y_vertices,
    x_vertices,
    z_counts,
    y_counts,
    x_counts,
    geometry,
    lattice_geometry,
    depth,
    height,
    width,
    F: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The table entries of BLOCK lattice vertices of one level."""
    level = tl.program_id(1).to(tl.int64)
    f = tl.arange(0, FEATURES)
    numbers, lattice_numbers = geometry + level * 6, lattice_geometry + level * 6
    row_size, plane_size = tl.load(lattice_numbers + 3), tl.load(lattice_numbers + 4)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    z, y, x = i // plane_size, i % plane_size // row_size, i % row_size
    mask = (i < tl.load(lattice_numbers + 1)) & (z < tl.load(z_counts + level))
    mask = mask & (y < tl.load(y_counts + level)) & (x < tl.load(x_counts + level))
    vz = tl.load(z_vertices + level * 2 * depth + z, mask, other=0).to(tl.uint32)
    vy = tl.load(y_vertices + level * 2 * height + y, mask, other=0).to(tl.uint32)
    vx = tl.load(x_vertices + level * 2 * width + x, mask, other=0).to(tl.uint32)
    row = tl.load(numbers) + _row(vx, vy, vz, numbers)
    both = mask[:, None] & (f < F)[None, :]
    entry = tl.load(table + row[:, None] * F + f[None, :], both, other=0.0)
    to = (tl.load(lattice_numbers) + i)[:, None] * F + f[None, :]
    tl.store(lattice + to, entry, both)


@triton.jit
def back_along_z_kernel(
    planes,
    grad,
    z_slots,
    z_fractions,
    z_begins,
    z_ends,
    z_counts,
    offsets,
    weights,
    blocks,
    plane_size,
    depth,
    count,
    k_stride,
    start,
    n_outputs,
    TAPS: tl.constexpr,
    F: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums the gradient around one vertex along z, for BLOCK columns (y, x) of one level.

    (`while`: the interpreter of Triton 3.6 takes no tensors as bounds of a range.)
    """
    level = tl.program_id(1).to(tl.int64)
    vertex = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    f = tl.arange(0, FEATURES)
    known = vertex < tl.load(z_counts + level)
    both = tl.where(known, column < plane_size, False)[:, None] & (f < F)[None, :]
    begin = tl.load(z_begins + level * 2 * depth + vertex, known, other=0)
    end = tl.load(z_ends + level * 2 * depth + vertex, known, other=0)
    total = tl.zeros([BLOCK, FEATURES], tl.float64)
    z = begin
    while z < end:
        fraction = tl.load(z_fractions + level * depth + z)
        upper = tl.load(z_slots + level * depth + z) < vertex
        weight = tl.where(upper, fraction, 1.0 - fraction).to(tl.float64)
        for tap in range(TAPS):
            # the window, if there is one, whose slice number `tap` is z
            ahead = z - start - tap
            k = (ahead // k_stride).to(tl.int64)
            hit = (ahead >= 0) & (ahead % k_stride == 0) & (k < count)
            at = (k * plane_size + column)[:, None] * n_outputs + level * F + f[None, :]
            g = tl.load(grad + at, tl.where(hit, both, False), other=0.0)
            total += g.to(tl.float32).to(tl.float64) * (weight * tl.load(weights + tap))
        z += 1
    to = ((tl.load(offsets + level) + vertex) * plane_size + column)[:, None] * F + f[None, :]
    tl.store(planes + to, total.to(tl.float32), both)


@triton.jit
def back_to_table_kernel(
    sums,
    planes,
    y_slots,
    x_slots,
    y_fractions,
    x_fractions,
    z_vertices,
    y_vertices,
    x_vertices,
    y_begins,
    x_begins,
    y_ends,
    x_ends,
    z_counts,
    y_counts,
    x_counts,
    geometry,
    lattice_geometry,
    offsets,
    units,
    depth,
    height,
    width,
    F: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums the planes of `back_along_z_kernel` around BLOCK vertices of one row of a level's
    lattice, and adds the sums to the table.
    """
    level = tl.program_id(2).to(tl.int64)
    numbers, lattice_numbers = geometry + level * 6, lattice_geometry + level * 6
    row_size, plane_size = tl.load(lattice_numbers + 3), tl.load(lattice_numbers + 4)
    rows = plane_size // row_size
    vz = tl.program_id(0) // rows
    vy = tl.program_id(0) % rows
    vx = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    f = tl.arange(0, FEATURES)
    known = (vz < tl.load(z_counts + level)) & (vy < tl.load(y_counts + level))
    mask = tl.where(known, vx < tl.load(x_counts + level), False)
    listed_y, listed_x = level * 2 * height + vy, level * 2 * width + vx
    first = tl.load(y_begins + listed_y, known, other=0)
    last = tl.load(y_ends + listed_y, known, other=0)
    begin = tl.load(x_begins + listed_x, mask, other=0)
    length = tl.load(x_ends + listed_x, mask, other=0) - begin
    plane = (tl.load(offsets + level) + vz) * height
    longest = tl.max(length, 0)
    total = tl.zeros([BLOCK, FEATURES], tl.float64)
    y = first
    while y < last:
        fraction = tl.load(y_fractions + level * height + y)
        upper = tl.load(y_slots + level * height + y) < vy
        wy = tl.where(upper, fraction, 1.0 - fraction).to(tl.float64)
        step = 0
        while step < longest:
            x = begin + step
            inside = mask & (step < length)
            fx = tl.load(x_fractions + level * width + x, inside, other=0.0)
            upper_x = tl.load(x_slots + level * width + x, inside, other=0) < vx
            wx = tl.where(upper_x, fx, 1.0 - fx)
            at = ((plane + y) * width + x)[:, None] * F + f[None, :]
            g = tl.load(planes + at, inside[:, None] & (f < F)[None, :], other=0.0)
            total += g * (wy * wx)[:, None]
            step += 1
        y += 1
    at_z = tl.load(z_vertices + level * 2 * depth + vz, known, other=0).to(tl.uint32)
    at_y = tl.load(y_vertices + listed_y, known, other=0).to(tl.uint32)
    at_x = tl.load(x_vertices + listed_x, mask, other=0).to(tl.uint32)
    row = tl.load(numbers) + _row(at_x, at_y, at_z, numbers)
    both = mask[:, None] & (f < F)[None, :]
    _add(sums + row[:, None] * F + f[None, :], total, tl.load(units), both)
