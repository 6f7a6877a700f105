"""Casts rays exactly through a room with simple solids in it.

World axes: x to the right, y up, z into the room, metres. A ray is `origin + t * direction`; camera rays have a
component of exactly 1 along the optical axis, so that `t` *is* the depth that a depth map stores. Rays are held as
(3, R) float32 arrays: one scene at a time keeps every array in the processor's cache, which is faster than many
scenes side by side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

ROOM_FACES = 6
"""Owners 0–5 are the faces of the room: axis * 2 + (1 where the face lies at the larger coordinate)."""
FLOOR_FACE, CEILING_FACE = 2, 3
FACES_PER_OWNER = 8
"""Surface ids are owner * FACES_PER_OWNER + smooth face of that owner."""


@dataclass(frozen=True)
class Solid:
    """A convex solid: the unit shape of its kind, scaled by `half` and turned by `yaw` (radians, about y) at
    `centre`.

    `box` is [-1, 1]³; `sphere` has radius 1; `cylinder` is x² + z² ≤ 1 with |y| ≤ 1; `cone` has its apex at y = 1 and
    a base of radius 1 at y = -1. Solids that are parts of one object share its `instance`.
    """

    kind: str
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    yaw: float = 0.0
    label: int = 0
    instance: int = 0

    def rotation(self) -> Floats:
        """The (3, 3) matrix from the solid's axes to the world's."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]], np.float32)

    def to_local(self, points: Floats) -> Floats:
        """World points (3, R) in the solid's own axes, metres from its centre."""
        return self.rotation().T @ (points - np.array(self.centre, np.float32)[:, None])


@dataclass(frozen=True)
class Panel:
    """A flat rectangle on a face of the room: a door, a window, a picture, a rug. (u, v) are the face's two other
    axes in order.
    """

    face: int
    low: tuple[float, float]
    high: tuple[float, float]
    label: int = 0
    instance: int = 0


@dataclass(frozen=True)
class Camera:
    """A pinhole camera. Angles in radians: yaw to the right, pitch upwards, roll clockwise. `field` is the full angle
    of view.
    """

    position: tuple[float, float, float]
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    field: float = 1.1

    def basis(self) -> Floats:
        """(3, 3): the rows are the world directions of the picture's right, its up, and the optical axis."""
        cy, sy, cp, sp = np.cos(self.yaw), np.sin(self.yaw), np.cos(self.pitch), np.sin(self.pitch)
        forward = np.array([sy * cp, sp, cy * cp])
        right = np.array([cy, 0.0, -sy])
        up = np.array([-sy * sp, cp, -cy * sp])
        cr, sr = np.cos(self.roll), np.sin(self.roll)
        return np.stack([cr * right + sr * up, cr * up - sr * right, forward]).astype(np.float32)

    def rays(self, columns: Floats, rows: Floats, size: int) -> Floats:
        """World directions (3, R) through picture positions in pixels; (0.5, 0.5) is the centre of the first pixel."""
        focal = 0.5 * size / np.tan(0.5 * self.field)
        in_camera = np.stack([(columns - 0.5 * size) / focal, (0.5 * size - rows) / focal, np.ones_like(rows)])
        return self.basis().T @ in_camera.astype(np.float32)

    def see_normals(self, normals: Floats) -> Floats:
        """World normals (3, R) in camera axes: x right, y up, z towards the viewer."""
        return (self.basis() * np.array([[1], [1], [-1]], np.float32)) @ normals


@dataclass(frozen=True)
class Room:
    """The inside of a box from `low` to `high`, metres."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """All that a ray can meet. Owners are numbered: the six faces of the room, then the panels, then the solids."""

    room: Room
    solids: tuple[Solid, ...]
    panels: tuple[Panel, ...]
    camera: Camera
    room_labels: tuple[int, int, int, int, int, int] = (0, 0, 0, 0, 0, 0)

    @cached_property
    def kinds(self) -> NDArray[np.intp]:
        """(K,): the kind of each solid, an index into the order of `_ENTER`."""
        return np.array([list(_ENTER).index(x.kind) for x in self.solids], np.intp)

    @cached_property
    def centres(self) -> Floats:
        """(K, 3): the solids' centres, metres."""
        return np.array([x.centre for x in self.solids], np.float32).reshape(-1, 3)

    @cached_property
    def to_unit(self) -> Floats:
        """(3, 3, K): from world offsets about a solid's centre to the frame in which it is the unit shape of its
        kind.
        """
        maps = [x.rotation().T / np.array(x.half, np.float32)[:, None] for x in self.solids]
        return np.ascontiguousarray(np.array(maps, np.float32).reshape(-1, 3, 3).transpose(1, 2, 0))

    @cached_property
    def bounds(self) -> Floats:
        """(K,): |centre|² less the squared radius of a sphere about the solid, m²."""
        radius = [_radius(x) for x in self.solids]
        result: Floats = ((self.centres**2).sum(axis=1) - np.square(radius)).astype(np.float32)
        return result

    def labels(self) -> NDArray[np.uint8]:
        """The class of each owner."""
        return np.array([*self.room_labels, *(x.label for x in self.panels), *(x.label for x in self.solids)], np.uint8)

    def instances(self) -> NDArray[np.int32]:
        """The instance of each owner; every face of the room is its own."""
        return np.array(
            [*range(ROOM_FACES), *(x.instance for x in self.panels), *(x.instance for x in self.solids)], np.int32
        )


def _radius(solid: Solid) -> float:
    """The radius of a sphere about a solid, metres, a little generous so that rounding never loses a ray."""
    x, y, z = solid.half
    if solid.kind == "sphere":
        reach = max(x, y, z)
    else:
        reach = math.hypot(x, y, z) if solid.kind == "box" else math.hypot(max(x, z), y)
    return 1.001 * reach + 1e-3


@dataclass(frozen=True)
class Hits:
    """The first surface that each of R rays meets: `distance` (R,), world `normal` (3, R), `owner` (R,) and its
    smooth `face` (R,).
    """

    distance: Floats
    normal: Floats
    owner: NDArray[np.int32]
    face: NDArray[np.int32]

    def surface(self) -> NDArray[np.int32]:
        """(R,): rays with one id meet the same smooth surface."""
        return self.owner * FACES_PER_OWNER + self.face


def cast_rays(scene: Scene, origin: Floats, direction: Floats) -> Hits:
    """What each ray meets first. `origin` (3, 1) must lie inside the room and outside all solids; `direction` is (3,
    R).
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        hits = _trace_room(scene, origin, direction)
        which, rays, near, normal, face = _enter(scene, origin, direction)
    first = np.full(direction.shape[1], np.inf, np.float32)
    np.minimum.at(first, rays, near)
    best = np.flatnonzero((near == first[rays]) & (near < hits.distance[rays]))
    which, rays, normal = which[best], rays[best], normal[:, best]
    # A normal transforms by the inverse transpose of the map that its solid's points take.
    world = np.einsum("ijr,ir->jr", scene.to_unit[:, :, which], normal)
    hits.distance[rays] = near[best]
    hits.normal[:, rays] = world / np.sqrt((world * world).sum(axis=0))
    hits.owner[rays] = ROOM_FACES + len(scene.panels) + which
    hits.face[rays] = face[best]
    return hits


def shadowed(scene: Scene, points: Floats, light: Floats, normals: Floats) -> NDArray[np.bool_]:
    """(R,): whether a solid stands between each point (3, R) and the light at (3, 1)."""
    start = points + normals * np.float32(2e-3)  # off the surface, or it would shadow itself
    dark = np.zeros(points.shape[1], bool)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        _, rays, near, _, _ = _enter(scene, start, light - start)
    dark[rays[near < 1]] = True
    return dark


def _trace_room(scene: Scene, origin: Floats, direction: Floats) -> Hits:
    low = np.array(scene.room.low, np.float32)[:, None]
    high = np.array(scene.room.high, np.float32)[:, None]
    positive = direction > 0
    exits = np.where(direction == 0, np.float32(np.inf), (np.where(positive, high, low) - origin) / direction)
    axis = exits.argmin(axis=0)
    rays = np.arange(direction.shape[1])
    distance = exits[axis, rays]
    side = positive[axis, rays]
    normal = np.zeros_like(direction)
    normal[axis, rays] = np.where(side, -1, 1)
    owner = (2 * axis + side).astype(np.int32)
    room_face = owner.copy()
    for index, panel in enumerate(scene.panels):
        on_face = np.flatnonzero(room_face == panel.face)
        u, v = (a for a in range(3) if a != panel.face // 2)
        points = origin + distance[on_face] * direction[:, on_face]
        inside = (points[u] > panel.low[0]) & (points[u] < panel.high[0])
        inside &= (points[v] > panel.low[1]) & (points[v] < panel.high[1])
        owner[on_face[inside]] = ROOM_FACES + index
    return Hits(distance, normal, owner, np.zeros_like(owner))


def _enter(
    scene: Scene, origin: Floats, direction: Floats
) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats, Floats, NDArray[np.int32]]:
    """Every entry of a ray into a solid: solid (K,), ray (K,), t (K,), unscaled normal in the solid's frame (3, K),
    face (K,).
    """
    kinds, shift = scene.kinds, scene.centres
    if not len(kinds):
        nothing = np.zeros(0, np.intp)
        return nothing, nothing, np.zeros(0, np.float32), np.zeros((3, 0), np.float32), nothing.astype(np.int32)
    # Most rays miss. In world axes, a bounding sphere per solid sends them away before the real work.
    a = (direction * direction).sum(axis=0)
    b = shift @ direction - (origin * direction).sum(axis=0)  # (solids, R)
    c = scene.bounds[:, None] - 2 * shift @ origin + (origin * origin).sum(axis=0)
    which, rays = np.nonzero((b * b >= a * c) & ((b > 0) | (c < 0)))
    order = np.argsort(kinds[which], kind="stable")
    which, rays = which[order], rays[order]
    to_unit = scene.to_unit[:, :, which]
    start = (origin[:, rays] if origin.shape[1] > 1 else origin) - shift[which].T
    o, d = np.einsum("ijk,jk->ik", to_unit, start), np.einsum("ijk,jk->ik", to_unit, direction[:, rays])
    cuts = np.searchsorted(kinds[which], np.arange(len(_ENTER) + 1))
    met = [
        enter(o[:, first:last], d[:, first:last])
        for enter, first, last in zip(_ENTER.values(), cuts[:-1], cuts[1:], strict=True)
        if first < last
    ]
    if not met:
        return which, rays, np.zeros(0, np.float32), o, which.astype(np.int32)
    near, normal, face = (np.concatenate(x, axis=-1) for x in zip(*met, strict=True))
    good = np.flatnonzero((near > 1e-4) & np.isfinite(near))
    return which[good], rays[good], near[good], normal[:, good], face[good]


def _enter_box(o: Floats, d: Floats) -> tuple[Floats, Floats, NDArray[np.int32]]:
    first, second = (-1 - o) / d, (1 - o) / d
    nears, fars = np.minimum(first, second), np.maximum(first, second)
    axis = nears.argmax(axis=0)
    rays = np.arange(d.shape[1])
    near = nears[axis, rays]
    normal = np.zeros_like(d)
    sign = np.sign(d[axis, rays])
    normal[axis, rays] = -sign
    face: NDArray[np.int32] = (2 * axis + (sign < 0)).astype(np.int32)
    return np.where(near <= fars.min(axis=0), near, np.float32(np.inf)), normal, face


def _enter_sphere(o: Floats, d: Floats) -> tuple[Floats, Floats, NDArray[np.int32]]:
    a, b = (d * d).sum(axis=0), (o * d).sum(axis=0)
    # |o - (b/a) d|² is the squared distance of the ray's closest point: far more exact in float32 than b² - ac.
    closest = o - (b / a) * d
    room = 1 - (closest * closest).sum(axis=0)
    first = -b / a - np.sqrt(room / a)
    near: Floats = np.where(room >= 0, first, np.inf).astype(np.float32)
    return near, o + near * d, np.zeros(len(near), np.int32)


def _enter_cylinder(o: Floats, d: Floats) -> tuple[Floats, Floats, NDArray[np.int32]]:
    a = np.maximum(d[0] * d[0] + d[2] * d[2], np.float32(1e-9))
    b = o[0] * d[0] + o[2] * d[2]
    middle = -b / a
    x, z = o[0] + middle * d[0], o[2] + middle * d[2]
    room = (1 - x * x - z * z) / a
    spread = np.sqrt(np.maximum(room, 0))
    first, second = (-1 - o[1]) / d[1], (1 - o[1]) / d[1]
    cap_near, cap_far = np.minimum(first, second), np.maximum(first, second)
    near = np.maximum(middle - spread, cap_near)
    far = np.minimum(middle + spread, cap_far)
    on_cap = cap_near > middle - spread
    point = o + near * d
    up = -np.sign(d[1])
    normal = np.where(on_cap, np.stack([0 * up, up, 0 * up]), np.stack([point[0], 0 * up, point[2]]))
    face = np.where(on_cap, np.where(up > 0, 1, 2), 0).astype(np.int32)
    return np.where((room >= 0) & (near <= far), near, np.float32(np.inf)), normal.astype(np.float32), face


def _enter_cone(o: Floats, d: Floats) -> tuple[Floats, Floats, NDArray[np.int32]]:
    # The side is x² + z² = k² with k = (1 - y)/2: a quadratic in t, of which only the sheet with |y| ≤ 1 counts.
    k, dk = (1 - o[1]) / 2, -d[1] / 2
    a = d[0] * d[0] + d[2] * d[2] - dk * dk
    a = np.where(np.abs(a) < 1e-9, np.float32(1e-9), a)
    b = o[0] * d[0] + o[2] * d[2] - k * dk
    c = o[0] * o[0] + o[2] * o[2] - k * k
    root = np.sqrt(b * b - a * c)  # NaN where the ray misses, and NaN fails every comparison below
    best = np.full(a.shape, np.inf, np.float32)
    for t in ((-b - root) / a, (-b + root) / a):
        y = o[1] + t * d[1]
        best = np.where((y <= 1) & (y >= -1) & (t > 1e-4) & (t < best), t, best)
    base = (-1 - o[1]) / d[1]
    x, z = o[0] + base * d[0], o[2] + base * d[2]
    on_base = (x * x + z * z <= 1) & (base > 1e-4) & (base < best)
    best = np.where(on_base, base, best).astype(np.float32)
    point = o + best * d
    side = np.stack([point[0], (1 - point[1]) / 4, point[2]])
    normal = np.where(on_base, np.array([[0], [-1], [0]], np.float32), side)
    return best, normal.astype(np.float32), on_base.astype(np.int32)


_ENTER = {"box": _enter_box, "sphere": _enter_sphere, "cylinder": _enter_cylinder, "cone": _enter_cone}
