"""The ray caster against geometry worked out by hand, and what the generated labels promise."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlc.zoo.furniture import build, furnish
from mtlc.zoo.raycast import ROOM_FACES, Camera, Panel, Room, Scene, Solid, cast_rays, shadowed
from mtlc.zoo.scenes import CLASSES, edges, render, salient

ROOM = Room((-2, 0, 0), (2, 2.5, 5))
EYE = (0.0, 1.0, 0.5)


def scene(*solids: Solid, panels: tuple[Panel, ...] = (), **camera: float) -> Scene:
    return Scene(ROOM, solids, panels, Camera(EYE, **camera))


def look(made: Scene, x: float, y: float) -> tuple[float, np.ndarray, int]:
    """Depth, normal in camera axes and owner along the camera ray (x, y, 1)."""
    direction = made.camera.basis().T @ np.array([[x], [y], [1]], np.float32)
    hits = cast_rays(made, np.array(EYE, np.float32)[:, None], direction)
    return float(hits.distance[0]), made.camera.see_normals(hits.normal)[:, 0], int(hits.owner[0])


def test_room_depth_is_along_the_optical_axis():
    empty = scene()
    # Straight on and aside: the same depth, for depth is not distance.
    for x in (0.0, 0.3, -0.4):
        depth, normal, owner = look(empty, x, 0.0)
        assert depth == pytest.approx(4.5, rel=1e-6)
        np.testing.assert_allclose(normal, [0, 0, 1], atol=1e-6)
        assert owner == 5
    # The floor is 1 m below the eye: a ray that falls by 1/2 m a metre meets it at 2 m; the left wall is 2 m aside.
    depth, normal, owner = look(empty, 0.0, -0.5)
    assert (depth, owner) == (pytest.approx(2.0), 2)
    np.testing.assert_allclose(normal, [0, 1, 0], atol=1e-6)
    depth, normal, owner = look(empty, -0.8, 0.0)
    assert (depth, owner) == (pytest.approx(2.5), 0)
    np.testing.assert_allclose(normal, [1, 0, 0], atol=1e-6)


def test_turned_camera_sees_turned_normals():
    yaw = 0.3
    depth, normal, owner = look(scene(yaw=yaw), 0.0, 0.0)
    assert owner == 5
    assert depth == pytest.approx(4.5 / np.cos(yaw), rel=1e-6)
    # Seen by a camera that turns right, the back wall's normal leans to the right.
    np.testing.assert_allclose(normal, [np.sin(yaw), 0, np.cos(yaw)], atol=1e-6)
    _, normal, owner = look(scene(pitch=-0.6), 0.0, 0.0)
    assert owner == 2
    np.testing.assert_allclose(normal, [0, np.cos(0.6), np.sin(0.6)], atol=1e-6)


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (0.1, 0.05), (-0.15, 0.1), (0.0, -0.19)])
def test_ball(x: float, y: float):
    ball = Solid("sphere", (0, 1, 3), (0.5, 0.5, 0.5))
    # |t (x, y, 1) - (0, 0, 2.5)|² = 1/4, the smaller root
    a, b, c = x * x + y * y + 1, -2 * 2.5, 2.5**2 - 0.25
    expected = (-b - np.sqrt(b * b - 4 * a * c)) / (2 * a)
    depth, normal, owner = look(scene(ball), x, y)
    assert owner == ROOM_FACES
    assert depth == pytest.approx(expected, rel=1e-5)
    point = expected * np.array([x, y, 1]) - [0, 0, 2.5]
    np.testing.assert_allclose(normal, 2 * point * [1, 1, -1], atol=1e-4)


def test_box_turned_by_45_degrees():
    box = Solid("box", (0, 1, 3), (0.5, 0.5, 0.5), yaw=np.pi / 4)
    half = np.sqrt(0.5)
    depth, _, _ = look(scene(box), 0.0, 0.0)
    assert depth == pytest.approx(2.5 - half, rel=1e-5)
    for side in (-1, 1):
        # The face z = 2.5 - √½ + |x| and the ray x = 0.1 z meet at z (1 - 0.1) = 2.5 - √½.
        depth, normal, _ = look(scene(box), side * 0.1, 0.0)
        assert depth == pytest.approx((2.5 - half) / 0.9, rel=1e-5)
        np.testing.assert_allclose(normal, [side * half, 0, half], atol=1e-5)


def test_cylinder_side_and_lid():
    can = Solid("cylinder", (0, 0.4, 3), (0.3, 0.4, 0.3))
    depth, normal, _ = look(scene(can), 0.0, -0.2)
    assert depth == pytest.approx(2.2, rel=1e-5)  # the front lies 0.3 m before the middle
    np.testing.assert_allclose(normal, [0, 0, 1], atol=1e-5)
    depth, normal, _ = look(scene(can), 0.0, -0.08)  # the lid, 0.2 m below the eye
    assert depth == pytest.approx(2.5, rel=1e-5)
    np.testing.assert_allclose(normal, [0, 1, 0], atol=1e-5)


def test_cone_has_its_slope():
    cone = Solid("cone", (0, 0.6, 3), (0.4, 0.6, 0.4))
    # Its radius falls from .4 at the floor to 0 at 1.2 m: r(y) = (1.2 - y)/3. Along (0, -.2, 1): z = 2.5 - r, y = 1 -
    # z/5.
    depth, normal, _ = look(scene(cone), 0.0, -0.2)
    assert depth == pytest.approx((2.5 - 0.2 / 3) / (1 + 1 / 15), rel=1e-5)
    np.testing.assert_allclose(normal, np.array([0, 1, 3]) / np.sqrt(10), atol=1e-5)
    assert look(scene(cone), 0.0, 0.21)[2] == 5  # the other sheet of the double cone is not there


def test_panel_is_on_its_wall_and_nearer_things_hide_it():
    picture = Panel(5, (-0.5, 0.8), (0.5, 1.4), label=5, instance=6)
    made = scene(panels=(picture,))
    depth, normal, owner = look(made, 0.1, 0.0)
    assert (depth, owner) == (pytest.approx(4.5), ROOM_FACES)
    np.testing.assert_allclose(normal, [0, 0, 1], atol=1e-6)
    assert look(made, 0.12, 0.0)[2] == 5  # 0.54 m aside
    hidden = scene(Solid("sphere", (0, 1, 3), (0.5, 0.5, 0.5)), panels=(picture,))
    assert look(hidden, 0.1, 0.0)[2] == ROOM_FACES + 1


def test_shadow_falls_under_the_ball_only():
    made = scene(Solid("sphere", (0, 1, 3), (0.5, 0.5, 0.5)))
    light = np.array([[0], [2], [3]], np.float32)
    # The light is 1 m above the centre: the shadow's cone has sin = 1/2, so its radius on the floor is 2 tan 30° =
    # 1.155 m.
    points = np.array([[0, 1.14, 1.17], [0, 0, 0], [3, 3, 3]], np.float32)
    up = np.array([[0], [1], [0]], np.float32) * np.ones_like(points)
    np.testing.assert_array_equal(shadowed(made, points, light, up), [True, True, False])


def outside(solid: Solid, points: np.ndarray) -> np.ndarray:
    """How far beyond the solid's surface world points (3, R) are: 0 on it, negative inside, in unit-shape
    coordinates.
    """
    x, y, z = solid.to_local(points) / np.array(solid.half)[:, None]
    if solid.kind == "box":
        return np.max(np.abs([x, y, z]), axis=0) - 1
    if solid.kind == "sphere":
        return np.sqrt(x * x + y * y + z * z) - 1
    radius = 1.0 if solid.kind == "cylinder" else (1 - y) / 2
    return np.maximum(np.sqrt(x * x + z * z) - radius, np.abs(y) - 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_hits_lie_on_their_surface_and_nothing_is_nearer(seed: int):
    made = furnish(np.random.default_rng(seed)).scene
    rows, columns = (x.reshape(-1).astype(np.float32) * 3 + 1.5 for x in np.indices((21, 21)))
    origin = np.array(made.camera.position, np.float32)[:, None]
    direction = made.camera.rays(columns, rows, 63)
    hits = cast_rays(made, origin, direction)
    points = origin + hits.distance * direction
    np.testing.assert_allclose(np.linalg.norm(hits.normal, axis=0), 1, atol=1e-5)
    assert ((hits.normal * direction).sum(axis=0) < 1e-3).all()  # every surface seen faces the camera
    first_solid = ROOM_FACES + len(made.panels)
    for index, solid in enumerate(made.solids):
        mine = hits.owner == first_solid + index
        np.testing.assert_allclose(outside(solid, points[:, mine]), 0, atol=3e-3)
        for share in (0.3, 0.6, 0.9, 0.97):
            before = origin + share * hits.distance * direction
            assert (outside(solid, before) > -3e-3).all()
    bare = hits.owner < first_solid
    gap = np.minimum(points - np.array(made.room.low)[:, None], np.array(made.room.high)[:, None] - points)
    np.testing.assert_allclose(gap.min(axis=0)[bare], 0, atol=1e-4)


def test_a_table_stands_on_the_floor_as_one_object():
    parts = build("table", (1, 0, 3), (0.6, 0.35, 0.4), 0.5, instance=7)
    assert {part.instance for part in parts} == {7}
    assert min(part.centre[1] - part.half[1] for part in parts) == pytest.approx(0)
    assert max(part.centre[1] + part.half[1] for part in parts) == pytest.approx(0.7)


def test_edge_lies_on_the_outline_of_what_is_nearer():
    surface = np.array([[0, 0, 9, 9, 0, 0]], np.int32)
    depth = np.array([[4, 4, 2, 2, 4, 4]], np.float32)
    np.testing.assert_array_equal(edges(surface, surface, depth), [[0, 0, 1, 1, 0, 0]])
    # A picture on a slanted wall: the picture, though one of its sides is the farther one.
    slanted = np.linspace(3, 3.1, 6, dtype=np.float32)[None]
    np.testing.assert_array_equal(edges(surface, surface, slanted), [[0, 0, 1, 1, 0, 0]])
    # A crease within one object: the nearer face.
    one = np.zeros_like(surface)
    np.testing.assert_array_equal(edges(np.array([[0, 0, 0, 1, 1, 1]], np.int32), one, slanted), [[0, 0, 1, 0, 0, 0]])
    assert not edges(one, one, depth).any()


def test_salient_is_the_best_by_area_centrality_and_contrast():
    instance = np.zeros((16, 16), np.int32)
    instance[7:9, 7:9] = 1
    instance[7:9, 13:15] = 2
    picture = np.full((16, 16, 3), 0.5, np.float32)
    picture[instance > 0] = (1, 0, 0)
    np.testing.assert_array_equal(salient(instance, picture, {1, 2}), instance == 1)  # alike, but central
    picture[instance == 1] = 0.5
    np.testing.assert_array_equal(salient(instance, picture, {1, 2}), instance == 2)  # the central one has no contrast
    assert not salient(instance, picture, set()).any()


@pytest.fixture(scope="module")
def rendered() -> dict[str, np.ndarray]:
    return render(60, 64, seed=3)


def test_arrays(rendered: dict[str, np.ndarray]):
    shapes = {key: (array.shape, str(array.dtype)) for key, array in rendered.items()}
    assert shapes == {
        "image": ((60, 64, 64, 3), "uint8"),
        "semseg": ((60, 64, 64), "uint8"),
        "depth": ((60, 64, 64), "float32"),
        "normals": ((60, 64, 64, 3), "float32"),
        "edge": ((60, 64, 64), "uint8"),
        "sal": ((60, 64, 64), "uint8"),
        "floor": ((60, 64, 64), "uint8"),
        "detection": ((60, 12, 5), "float32"),
    }
    assert set(np.unique(rendered["semseg"])) == set(range(len(CLASSES)))
    assert 0.5 < rendered["depth"].min() < rendered["depth"].max() < 9
    np.testing.assert_allclose(np.linalg.norm(rendered["normals"], axis=-1), 1, atol=1e-5)
    assert rendered["normals"][..., 2].mean() > 0.3  # what is seen faces the viewer
    assert 0.03 < rendered["edge"].mean() < 0.2
    assert rendered["sal"].reshape(60, -1).any(axis=1).all()
    assert 0.02 < rendered["sal"].mean() < 0.3


def test_a_mirrored_picture_has_mirrored_edges(rendered: dict[str, np.ndarray]):
    surface = rendered["semseg"].astype(np.int32)
    for index in range(10):
        labels, depth = surface[index], rendered["depth"][index]
        mirrored = edges(labels[:, ::-1], labels[:, ::-1], depth[:, ::-1])
        np.testing.assert_array_equal(mirrored[:, ::-1], edges(labels, labels, depth))


def test_a_scene_depends_on_the_seed_and_its_number_only(rendered: dict[str, np.ndarray]):
    for key, array in render(2, 64, seed=3, start=4).items():
        np.testing.assert_array_equal(array, rendered[key][4:6])
    assert (render(1, 64, seed=4)["image"][0] != rendered["image"][0]).mean() > 0.5


def test_sizes():
    small, large = render(1, 64)["depth"][0], render(1, 128)["depth"][0]
    assert large.shape == (128, 128)
    assert np.median(np.abs(large[::2, ::2] - small)) < 0.05  # the same room
    with pytest.raises(ValueError, match="multiple of 8"):
        render(1, 60)


def test_colour_alone_does_not_tell_the_class(rendered: dict[str, np.ndarray]):
    """The best guess from a pixel's colour, fitted to these very pixels, is right little more often than 'wall'
    always is.
    """
    colour = (rendered["image"] >> 5).astype(int) @ np.array([64, 8, 1])
    counts = np.zeros((512, len(CLASSES)), int)
    np.add.at(counts, (colour.ravel(), rendered["semseg"].ravel()), 1)
    assert counts.max(axis=1).sum() / counts.sum() < 0.7


def test_speed():
    start = time.process_time()
    render(25, 64, seed=11)
    assert (time.process_time() - start) / 25 < 0.06  # s; about 0.016 on an idle core
