"""Makes small indoor scenes with exact labels for five dense tasks and for detection by a ray caster: data of a seed.

A scene is a room (floor, walls, ceiling) with doors, windows, pictures and a rug, furnished with boxes, balls,
cylinders, cones, tables and chairs, lit by two lights that throw shadows, seen by a jittered camera with a noisy
sensor. Patterns and colours are drawn without regard to the class, so shape and context must be learned. The labels
come from the same rays as the pixels:

- `semseg`: the class of the surface, an index into `CLASSES`.
- `depth`: metres along the optical axis. `normals`: unit vectors in camera axes, x right, y up, z towards the viewer.
- `edge`: 1 where two neighbouring pixels see different smooth surfaces, on one side only: the nearer one where the
  depth jumps (an outline belongs to what it outlines), else the panel against its wall, else the nearer. Mirroring an
  image mirrors its edges.
- `sal`: the salient objects. An object's score is its visible pixels · exp(-2 r²) · contrast, where r is the distance
  from the picture's centre to the object's centroid in half-widths and contrast is the distance between its mean
  colour and the mean colour of the rest. The best object is salient, and any whose score is at least `SALIENT_SHARE`
  of the best.
- `floor`: 1 where a robot can drive, on the floor and on a rug.
- `detection`: a row (x1, y1, x2, y2, class) for each object of which enough is seen, pixels, the class an index into
  `OBJECTS`. The box is the smallest that holds all visible pixels of the object. Rows of nothing come last; their class
  is -1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlc.zoo.furniture import CLASSES, OBJECTS, View, furnish
from mtlc.zoo.raycast import FLOOR_FACE, ROOM_FACES, Floats, Hits, Panel, Scene, cast_rays, shadowed

__all__ = ["CLASSES", "OBJECTS", "VERSION", "boxes", "draw", "edges", "render", "salient"]

VERSION = 1
"""Goes up whenever the same seed would give other arrays: part of the identity of generated data."""
SALIENT_SHARE = 0.75
SMALLEST_SALIENT = 0.004
"""The share of the picture below which an object is never salient."""

SMALLEST_BOX = 0.003
"""The share of the picture below which an object has no box: 12 pixels at 64 × 64."""
MOST_BOXES = 12
"""Rows of `detection`: six objects at most, and each may carry another."""

_DRIVABLE = [CLASSES.index("floor"), CLASSES.index("rug")]
_JUMP = 0.05  # metres between neighbours that make an edge an outline and not a crease


def render(count: int, size: int = 64, seed: int = 0, start: int = 0) -> dict[str, NDArray[Any]]:
    """Scenes `start` to `start + count` of a seed, `size` × `size` pixels. Scene i depends on (seed, i, size) only.

    Returns image uint8 (N, H, W, 3), semseg uint8 (N, H, W), depth float32 (N, H, W), normals float32 (N, H, W, 3),
    edge uint8 (N, H, W), sal uint8 (N, H, W), floor uint8 (N, H, W), detection float32 (N, MOST_BOXES, 5).
    """
    if size < 8 or size % 8:
        raise ValueError(f"size must be a positive multiple of 8, not {size}")
    out: dict[str, NDArray[Any]] = {
        "image": np.empty((count, size, size, 3), np.uint8),
        "semseg": np.empty((count, size, size), np.uint8),
        "depth": np.empty((count, size, size), np.float32),
        "normals": np.empty((count, size, size, 3), np.float32),
        "edge": np.empty((count, size, size), np.uint8),
        "sal": np.empty((count, size, size), np.uint8),
        "floor": np.empty((count, size, size), np.uint8),
        "detection": np.empty((count, MOST_BOXES, 5), np.float32),
    }
    for index in range(count):
        rng = np.random.default_rng(np.random.SeedSequence((seed, start + index)))
        for name, array in draw(furnish(rng), size, rng).items():
            out[name][index] = array
    return out


def draw(view: View, size: int, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """The picture and the labels of one view; `rng` makes the sensor's noise. Shapes as in `render` without N."""
    scene = view.scene
    rows, columns = (x.reshape(-1).astype(np.float32) + np.float32(0.5) for x in np.indices((size, size)))
    hits, colour = _look(view, columns, rows, size)
    surface, depth = hits.surface().reshape(size, size), hits.distance.reshape(size, size)
    instance = scene.instances()[hits.owner].reshape(size, size)

    # Four more rays where neighbours differ: smooth outlines for little time, as most of a picture is flat.
    rough = np.flatnonzero(_differs(surface, colour.reshape(3, size, size)))
    across, down = np.array([(-0.375, -0.125), (0.125, -0.375), (0.375, 0.125), (-0.125, 0.375)], np.float32).T[
        :, :, None
    ]
    _, fine = _look(view, (columns[rough] + across).reshape(-1), (rows[rough] + down).reshape(-1), size)
    colour[:, rough] = fine.reshape(3, 4, -1).mean(axis=1)

    picture = colour.T.reshape(size, size, 3)
    semseg = scene.labels()[hits.owner].reshape(size, size)
    noisy = picture + rng.normal(0, view.noise, picture.shape).astype(np.float32)
    return {
        "image": (np.clip(noisy, 0, 1) * 255 + 0.5).astype(np.uint8),
        "semseg": semseg,
        "depth": depth,
        "normals": scene.camera.see_normals(hits.normal).T.reshape(size, size, 3),
        "edge": edges(surface, instance, depth),
        "sal": salient(instance, picture, {x.instance for x in scene.solids}),
        "floor": drivable(semseg),
        "detection": boxes(instance, {x.instance: OBJECTS.index(CLASSES[x.label]) for x in scene.solids}),
    }


def drivable(semseg: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """1 where a segmentation (..., H, W) by `CLASSES` has what a robot can drive on, else 0."""
    return np.isin(semseg, _DRIVABLE).astype(np.uint8)


def boxes(instance: NDArray[np.int32], classes: dict[int, int]) -> Floats:
    """The boxes (MOST_BOXES, 5) of an instance map (H, W), by the rule in the module's docstring; `classes` holds the
    class of each instance that is an object.
    """
    found = np.zeros((MOST_BOXES, 5), np.float32)
    found[:, 4] = -1
    row = 0
    for number, label in sorted(classes.items()):
        rows, columns = np.nonzero(instance == number)
        if len(rows) < SMALLEST_BOX * instance.size:
            continue
        found[row] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, label
        row += 1
    return found


def edges(surface: NDArray[np.int32], instance: NDArray[np.int32], depth: Floats) -> NDArray[np.uint8]:
    """The edge map (H, W) of surface ids, instance ids and depths (each (H, W)), by the rule in the module's
    docstring.
    """
    out = np.zeros(surface.shape, np.uint8)
    for axis in (0, 1):
        a = (slice(None, -1), slice(None)) if axis == 0 else (slice(None), slice(None, -1))
        b = (slice(1, None), slice(None)) if axis == 0 else (slice(None), slice(1, None))
        # Positive where the first pixel has the better claim: how far the second lies behind it, or the order of
        # their instances.
        claim = depth[b] - depth[a]
        rank = (instance[a] - instance[b]).astype(np.float32)
        claim = np.where((np.abs(claim) < _JUMP) & (rank != 0), rank, claim)
        border = surface[a] != surface[b]
        out[a] |= (border & (claim >= 0)).astype(np.uint8)
        out[b] |= (border & (claim <= 0)).astype(np.uint8)
    return out


def salient(instance: NDArray[np.int32], picture: Floats, objects: set[int]) -> NDArray[np.uint8]:
    """The salient mask (H, W) of an instance map (H, W), a picture (H, W, 3) in 0..1, and the instances that are
    objects.
    """
    height, width = instance.shape
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    scores: dict[int, float] = {}
    for number in sorted(objects):
        mask = instance == number
        area = int(mask.sum())
        if area < SMALLEST_SALIENT * mask.size or area == mask.size:
            continue
        down = (rows[mask].mean() + 0.5) / height * 2 - 1
        across = (columns[mask].mean() + 0.5) / width * 2 - 1
        contrast = np.linalg.norm(picture[mask].mean(axis=0) - picture[~mask].mean(axis=0))
        scores[number] = float(area * np.exp(-2 * (down**2 + across**2)) * contrast)
    best = max(scores.values(), default=0.0)
    chosen = [number for number, score in scores.items() if score >= SALIENT_SHARE * best]
    return np.isin(instance, chosen).astype(np.uint8)


# --- Light ----------------------------------------------------------------------------------------------------------


def _look(view: View, columns: Floats, rows: Floats, size: int) -> tuple[Hits, Floats]:
    """What the camera sees at picture positions (R,): the hits, and display RGB (3, R) in 0..1."""
    scene = view.scene
    origin = np.array(scene.camera.position, np.float32)[:, None]
    direction = scene.camera.rays(columns, rows, size)
    hits = cast_rays(scene, origin, direction)
    points = origin + hits.distance * direction
    base, glow = _paint(view, hits.owner, points)
    open_share = _openness(scene, hits, points)
    light = view.ambient * open_share * (0.8 + 0.2 * hits.normal[1]) * np.ones((3, 1), np.float32)
    shine = np.zeros_like(base)
    gloss = np.array([x.gloss for x in view.materials], np.float32)[hits.owner]
    toward_eye = -direction / np.linalg.norm(direction, axis=0)
    for lamp in view.lights:
        at = lamp.position[:, None]
        toward = at - points
        far = np.linalg.norm(toward, axis=0)
        toward /= far
        lit = ~shadowed(scene, points, at, hits.normal)
        power = lamp.power[:, None] * (lit / (1 + 0.12 * far * far))
        light += power * np.maximum((hits.normal * toward).sum(axis=0), 0) * (0.5 + 0.5 * open_share)
        half = toward + toward_eye
        half /= np.linalg.norm(half, axis=0) + np.float32(1e-6)
        shine += power * gloss * np.maximum((hits.normal * half).sum(axis=0), 0) ** 40
    linear = base * (light + glow * 2.2) + shine
    return hits, ((1 - np.exp(-1.25 * linear)) ** np.float32(1 / 2.2)).astype(np.float32)


def _paint(view: View, owner: NDArray[np.int32], points: Floats) -> tuple[Floats, Floats]:
    """The linear base colour (3, R) and the glow (R,) of surface points (3, R)."""
    scene = view.scene
    colour = np.empty_like(points)
    glow = np.zeros(points.shape[1], np.float32)
    for number in np.unique(owner):
        rays = np.flatnonzero(owner == number)
        here, material = points[:, rays], view.materials[number]
        if number >= ROOM_FACES + len(scene.panels):
            here = scene.solids[number - ROOM_FACES - len(scene.panels)].to_local(here)
        colour[:, rays] = material.colour(here)
        if number == FLOOR_FACE and material.pattern == "stripes":  # planks: no two alike, joints dark
            board = np.floor(here[0] / 0.22)
            colour[:, rays] *= 0.8 + 0.3 * np.mod(np.abs(np.sin(board * 12.9898)) * 43.7, 1)
        elif number < ROOM_FACES and number // 2 != 1:
            colour[:, rays[here[1] < 0.1]] = 0.75  # the skirting board belongs to the wall
        elif ROOM_FACES <= number < ROOM_FACES + len(scene.panels):
            panel = scene.panels[number - ROOM_FACES]
            colour[:, rays], glow[rays] = _paint_panel(panel, colour[:, rays], here)
    return colour, glow


def _paint_panel(panel: Panel, colour: Floats, points: Floats) -> tuple[Floats, Floats]:
    """Frames, glazing bars, door panels and hems over the panel's texture. Returns colour (3, R) and glow (R,)."""
    axes = [a for a in range(3) if a != panel.face // 2]
    if panel.face // 2 == 0:
        axes.reverse()  # along the wall first, then up
    low, high = dict(zip(sorted(axes), panel.low, strict=True)), dict(zip(sorted(axes), panel.high, strict=True))
    along, up = ((points[a] - low[a], high[a] - low[a]) for a in axes)
    rim = np.minimum(np.minimum(along[0], along[1] - along[0]), np.minimum(up[0], up[1] - up[0]))
    s, t = along[0] / along[1], up[0] / up[1]
    glow = np.zeros(points.shape[1], np.float32)
    kind = CLASSES[panel.label]
    if kind == "window":
        sky = np.stack([0.35 + 0.3 * (1 - t), 0.55 + 0.2 * (1 - t), 0.95 - 0.1 * (1 - t)])
        land = np.array([[0.18], [0.32], [0.12]], np.float32)
        hills = t < 0.3 + 0.06 * np.sin(9 * s + panel.low[0])
        bars = (rim < 0.05) | (np.abs(s - 0.5) * along[1] < 0.025) | (np.abs(t - 0.5) * up[1] < 0.025)
        colour = np.where(bars, np.float32(0.8), np.where(hills, land, sky)).astype(np.float32)
        glow = np.where(bars, 0, 0.6).astype(np.float32)
    elif kind == "picture":
        colour = np.where(rim < 0.03, np.float32(0.05), np.where(rim < 0.09, np.float32(0.8), colour)).astype(
            np.float32
        )
    elif kind == "door":
        field = np.minimum(np.abs(np.mod(t * 2, 1) - 0.5), 0.5) < 0.38
        groove = field ^ (np.abs(np.mod(t * 2, 1) - 0.5) < 0.35)
        inside = np.abs(s - 0.5) < 0.34
        groove = inside & (groove | (field & (np.abs(s - 0.5) > 0.3)))
        knob = (along[0] - 0.9 * along[1]) ** 2 + (up[0] - 1.0) ** 2 < 0.045**2
        colour = colour * np.where(groove | (rim < 0.04), np.float32(0.55), np.float32(1))
        colour = np.where(knob, np.array([[0.8], [0.6], [0.2]], np.float32), colour).astype(np.float32)
    else:
        colour = colour * np.where(rim < 0.08, np.float32(0.35), np.float32(1))
    return colour, glow


def _openness(scene: Scene, hits: Hits, points: Floats) -> Floats:
    """(R,): the share of ambient light that arrives, by the solid angle of each solid's sphere and a fall-off in the
    room's corners.
    """
    closed = np.zeros(points.shape[1], np.float32)
    if scene.solids:
        apart = (points * points).sum(axis=0) - 2 * scene.centres @ points + (scene.centres**2).sum(axis=1)[:, None]
        squared = np.maximum(apart, np.float32(1e-3))  # (solids, R)
        facing = np.maximum(scene.centres @ hits.normal - (hits.normal * points).sum(axis=0), 0) / np.sqrt(squared)
        spheres = np.array([np.prod(x.half) ** (2 / 3) for x in scene.solids], np.float32)[:, None]
        closed += (facing * np.minimum(spheres / squared, 1)).sum(axis=0)
    low, high = np.array(scene.room.low, np.float32)[:, None], np.array(scene.room.high, np.float32)[:, None]
    corners = (np.exp((low - points) * 6) + np.exp((points - high) * 6)).sum(axis=0)
    closed += 0.35 * np.maximum(corners - (hits.owner < ROOM_FACES + len(scene.panels)), 0)
    result: Floats = np.maximum(1 - 0.7 * closed, 0.15)
    return result


def _differs(surface: NDArray[np.int32], colour: Floats) -> NDArray[np.bool_]:
    """(H, W): the pixels beside which another surface, shadow or texture begins."""
    out = np.zeros(surface.shape, bool)
    for a, b in (
        ((slice(None, -1),), (slice(1, None),)),
        ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
    ):
        change = (surface[a] != surface[b]) | (
            np.abs(colour[(slice(None), *a)] - colour[(slice(None), *b)]).max(axis=0) > 0.04
        )
        out[a] |= change
        out[b] |= change
    return out
