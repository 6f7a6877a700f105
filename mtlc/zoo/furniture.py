"""Furnishes the rooms of `mtlc.zoo.scenes`: what stands and hangs where, what it is made of, and how it is lit.

Patterns and colours are drawn without regard to the class, so that a colour alone never tells what a thing is.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

from mtlc.zoo.raycast import CEILING_FACE, FLOOR_FACE, ROOM_FACES, Camera, Floats, Panel, Room, Scene, Solid

CLASSES: tuple[str, ...] = (
    "wall", "floor", "ceiling", "door", "window", "picture", "rug", "box", "ball", "cylinder", "cone", "table", "chair",
)  # fmt: skip
OBJECTS = CLASSES[7:]
"""What stands in a room: the classes of detection."""

_LABEL = {name: index for index, name in enumerate(CLASSES)}
_SHAPES = {"box": "box", "ball": "sphere", "cylinder": "cylinder", "cone": "cone"}
_PATTERNS = ("plain", "checker", "stripes", "noise")


@dataclass(frozen=True)
class Material:
    """A procedural texture: two colours (linear RGB) and a solid pattern of `scale` radians per metre, so it needs no
    unwrapping.
    """

    pattern: str
    first: Floats  # (3,)
    second: Floats  # (3,)
    scale: float
    phase: Floats  # (3,) radians
    waves: Floats  # (3, 3): rows are unit directions
    gloss: float = 0.0

    def colour(self, points: Floats) -> Floats:
        """Linear RGB (3, R) at points (3, R), metres in the owner's axes."""
        if self.pattern == "checker":
            mix = (np.sin(self.scale * points + self.phase[:, None]).prod(axis=0) > 0).astype(np.float32)
        elif self.pattern == "stripes":
            mix = (np.sin(self.scale * (self.waves[0] @ points) + self.phase[0]) > 0).astype(np.float32)
        else:
            field = np.sin(self.scale * (self.waves @ points) + self.phase[:, None]).sum(axis=0)
            strength = 0.5 if self.pattern == "noise" else 0.06
            mix = np.clip(0.5 + strength * field, 0, 1)
        result: Floats = self.first[:, None] + (self.second - self.first)[:, None] * mix
        return result


@dataclass(frozen=True)
class Light:
    """A point light: `position` (3,) metres, `power` (3,) linear RGB."""

    position: Floats
    power: Floats


@dataclass(frozen=True)
class View:
    """A scene with its looks: one material per owner, the lights, the ambient light, the sensor's noise (standard
    deviation).
    """

    scene: Scene
    materials: tuple[Material, ...]
    lights: tuple[Light, ...]
    ambient: float
    noise: float


def furnish(rng: np.random.Generator) -> View:
    """A random room with its furniture, camera and lights."""
    width, height, length = rng.uniform(3.2, 5.2), rng.uniform(2.3, 2.8), rng.uniform(3.6, 6.0)
    room = Room((-width / 2, 0.0, 0.0), (width / 2, height, length))
    camera = Camera(
        position=(rng.uniform(-0.25, 0.25) * width, rng.uniform(1.15, 1.65), rng.uniform(0.1, 0.35)),
        yaw=rng.uniform(-0.35, 0.35),
        pitch=rng.uniform(-0.34, -0.06),
        roll=rng.normal(0, 0.025),
        field=rng.uniform(1.0, 1.2),
    )
    pale = _material(rng, vivid=False, patterns=("plain", "plain", "stripes", "noise"), scale=(4, 14))
    pale = _lighten(pale, float(rng.uniform(0.3, 0.6)))
    ground = _material(rng, vivid=False, patterns=("checker", "stripes", "noise", "plain"), scale=(6, 14))
    plaster = _lighten(_material(rng, vivid=False, patterns=("plain",)), 0.8)
    faces = [pale] * ROOM_FACES
    faces[FLOOR_FACE], faces[CEILING_FACE] = ground, plaster
    panels, panel_looks = _hang(rng, room)
    solids, solid_looks = _place(rng, room, camera)
    lights = []
    for power in (rng.uniform(1.2, 1.9), rng.uniform(0.3, 0.8)):
        at = (rng.uniform(-0.4, 0.4) * width, rng.uniform(0.8, 0.96) * height, rng.uniform(0.1, 0.8) * length)
        tint = np.array([1, rng.uniform(0.85, 1), rng.uniform(0.7, 1)])
        lights.append(Light(np.array(at, np.float32), (power * tint).astype(np.float32)))
    labels = (0, 0, _LABEL["floor"], _LABEL["ceiling"], 0, 0)
    scene = Scene(room, tuple(solids), tuple(panels), camera, labels)
    looks = (*faces, *panel_looks, *solid_looks)
    return View(scene, looks, tuple(lights), float(rng.uniform(0.16, 0.3)), float(rng.uniform(0.006, 0.018)))


def _hang(rng: np.random.Generator, room: Room) -> tuple[list[Panel], list[Material]]:
    """Doors, windows and pictures on the three walls in view, and sometimes a rug."""
    panels: list[Panel] = []
    looks: list[Material] = []
    sizes = {
        "door": (0.85, 2.0, 0.0),
        "window": (1.2, 1.1, 0.95),
        "picture": (0.8, 0.6, 1.25),
    }  # width, height, sill: metres
    for face in (0, 1, 5):
        along = 2 if face < 2 else 0
        start, stop = room.low[along] + 0.3 + (0.8 if face < 2 else 0), room.high[along] - 0.3
        slots = 1 if stop - start < 2.4 else 2
        for slot in range(slots):
            kind = str(rng.choice(["door", "window", "picture", "picture", "none"]))
            if kind == "none":
                continue
            wide, tall, sill = sizes[kind]
            wide *= rng.uniform(0.85, 1.15)
            tall *= rng.uniform(0.92, 1.05) if kind == "door" else rng.uniform(0.8, 1.2)
            share = (stop - start) / slots
            at = start + slot * share + rng.uniform(0, max(share - wide - 0.1, 0.01))
            ends = ((at, sill), (at + wide, sill + tall))
            low, high = (x if along == 0 else x[::-1] for x in ends)  # a side wall's first axis is up
            panels.append(Panel(face, low, high, _LABEL[kind], ROOM_FACES + len(panels)))
            looks.append(_material(rng, vivid=kind == "picture", patterns=("plain",) if kind == "door" else _PATTERNS))
    if rng.random() < 0.5:
        wide, deep = rng.uniform(0.5, 0.9), rng.uniform(0.4, 0.8)
        x, z = rng.uniform(-0.4, 0.4), rng.uniform(0.45, 0.6) * room.high[2]
        panels.append(
            Panel(FLOOR_FACE, (x - wide, z - deep), (x + wide, z + deep), _LABEL["rug"], ROOM_FACES + len(panels))
        )
        looks.append(_material(rng, vivid=True, patterns=_PATTERNS))
    return panels, looks


def _place(rng: np.random.Generator, room: Room, camera: Camera) -> tuple[list[Solid], list[Material]]:
    """Three to six objects that stand clear of each other in the camera's view; some carry a smaller one."""
    solids: list[Solid] = []
    looks: list[Material] = []
    taken: list[tuple[float, float, float]] = []
    right, _, ahead = camera.basis()
    wanted, instance = int(rng.integers(3, 7)), 100
    for _attempt in range(60):
        if len(taken) == wanted:
            break
        kind = str(rng.choice(["box", "ball", "cylinder", "cone", "table", "chair"]))
        half = _dimensions(rng, kind)
        reach = float(np.hypot(half[0], half[2])) if kind not in ("ball", "cylinder", "cone") else max(half[0], half[2])
        far = rng.uniform(1.5, room.high[2])
        aside = rng.uniform(-0.85, 0.85) * far * np.tan(camera.field / 2)
        x = float(camera.position[0] + far * ahead[0] + aside * right[0])
        z = float(camera.position[2] + far * ahead[2] + aside * right[2])
        if not (room.low[0] + reach < x < room.high[0] - reach and z < room.high[2] - reach):
            continue
        if np.hypot(x - camera.position[0], z - camera.position[2]) < reach + 1.0:
            continue
        if any(np.hypot(x - a, z - b) < reach + r + 0.05 for a, b, r in taken):
            continue
        taken.append((x, z, reach))
        yaw = float(rng.uniform(-np.pi, np.pi))
        parts = build(kind, (x, 0.0, z), half, yaw, instance)
        look = _material(rng, vivid=bool(rng.random() < 0.6), patterns=_PATTERNS)
        solids += parts
        looks += [look] * len(parts)
        instance += 1
        if kind in ("box", "table") and rng.random() < 0.6:
            top = 2 * half[1]
            rider = str(rng.choice(list(_SHAPES)))
            a, b, c = _dimensions(rng, rider)
            scale = min(0.55, 2 * min(half[0], half[2]))
            small = (scale * a, scale * b, scale * c)
            solids += build(rider, (x, top, z), small, yaw + 0.5, instance)
            looks.append(_material(rng, vivid=bool(rng.random() < 0.6), patterns=_PATTERNS))
            instance += 1
    return solids, looks


def _dimensions(rng: np.random.Generator, kind: str) -> tuple[float, float, float]:
    """Half extents in metres."""
    low, high = {
        "box": ((0.18, 0.15, 0.18), (0.45, 0.5, 0.45)),
        "ball": ((0.18,) * 3, (0.42,) * 3),
        "cylinder": ((0.14, 0.2, 0.14), (0.34, 0.55, 0.34)),
        "cone": ((0.2, 0.25, 0.2), (0.4, 0.6, 0.4)),
        "table": ((0.4, 0.3, 0.35), (0.7, 0.4, 0.5)),
        "chair": ((0.2, 0.4, 0.2), (0.25, 0.5, 0.25)),
    }[kind]
    x, y, z = rng.uniform(low, high)
    return {"ball": (x, x, x), "cylinder": (x, y, x), "cone": (x, y, x)}.get(kind, (x, y, z))


def build(
    kind: str, foot: tuple[float, float, float], half: tuple[float, float, float], yaw: float, instance: int
) -> list[Solid]:
    """The solids of one object of a class in `CLASSES`; `foot` is the middle of where it stands, `half` its half
    extents.
    """
    w, h, d = half
    if kind in _SHAPES:
        pieces = [(_SHAPES[kind], (0.0, h, 0.0), half)]
    else:
        seat = 2 * h if kind == "table" else h
        leg, slab = 0.035, 0.03
        pieces = [("box", (0.0, seat - slab, 0.0), (w, slab, d))]
        for sx, sz in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            rise = seat / 2 - slab
            pieces.append(("box", (sx * (w - leg), rise, sz * (d - leg)), (leg, rise, leg)))
        if kind == "chair":
            pieces.append(("box", (0.0, 1.5 * h, leg - d), (w, h / 2, leg)))
    turn = Solid("box", (0, 0, 0), (1, 1, 1), yaw).rotation()
    out = []
    for shape, offset, size in pieces:
        x, y, z = (float(v) for v in np.array(foot) + turn @ np.array(offset))
        out.append(Solid(shape, (x, y, z), size, yaw, _LABEL[kind], instance))
    return out


def _material(
    rng: np.random.Generator, vivid: bool, patterns: tuple[str, ...], scale: tuple[float, float] = (10, 28)
) -> Material:
    """A random texture; vivid colours are saturated, the others nearly grey."""
    tones = []
    for _ in range(2):
        saturation = rng.uniform(0.6, 0.95) if vivid else rng.uniform(0.08, 0.4)
        tones.append(np.array(colorsys.hsv_to_rgb(rng.random(), saturation, rng.uniform(0.3, 0.9)), np.float32) ** 1.6)
    waves = rng.normal(size=(3, 3))
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    return Material(
        pattern=str(rng.choice(patterns)),
        first=tones[0],
        second=(0.35 * tones[0] + 0.65 * tones[1]).astype(np.float32),
        scale=float(rng.uniform(*scale)),
        phase=rng.uniform(0, 2 * np.pi, 3).astype(np.float32),
        waves=waves.astype(np.float32),
        gloss=float(rng.choice([0.0, 0.3, 0.8])) if vivid else 0.0,
    )


def _lighten(material: Material, amount: float) -> Material:
    """The same texture, nearer to white."""
    first, second = (
        ((1 - amount) * c + amount * np.float32(0.8)).astype(np.float32) for c in (material.first, material.second)
    )
    return Material(material.pattern, first, second, material.scale, material.phase, material.waves, material.gloss)
