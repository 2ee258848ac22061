"""Pictures: what is in front, what colour it has, where the lines are, and that the bytes repeat."""

import mesh_samples
import numpy as np
import pytest

from meshes.io import read_scene
from meshes.preview import View, fit_view, panels, render, save_png
from meshes.scene import Mesh, Node, Scene


def square(z: float = 0.0, size: float = 1.0) -> Mesh:
    points = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * size + [0, 0, z]
    return Mesh("m", points, np.array([4], np.int32), np.arange(4, dtype=np.int32))


FRONT = View(np.array([0, 0, -1.0]), np.array([0, 1.0, 0]), np.zeros(3), 2.0)


def test_a_square_fills_its_pixels_and_no_other():
    image = render(square(), 100, FRONT, wireframe=False, background=(1, 1, 1), face_colors=np.array([[1.0, 0, 0]]))
    inside = (image[:, :, 1] == 0) & (image[:, :, 0] > 0)
    assert image.shape == (100, 100, 3) and image.dtype == np.uint8
    assert inside.sum() == 2500 and inside[25:75, 25:75].all()


def test_the_nearer_one_hides_the_other_in_any_order():
    near, far = square(1.0, 0.5), square(-1.0)
    colors = {0: np.array([[1.0, 0, 0]]), 1: np.array([[0, 0, 1.0]])}
    for meshes, first in (([near, far], 0), ([far, near], 2)):
        scene = Scene([Node("a", mesh=0), Node("b", mesh=1)], meshes)
        image = render(scene, 80, FRONT, wireframe=False, face_colors=colors)
        center, ring = image[40, 40], image[40, 25]
        assert center[first] > 100 and center[2 - first] == 0
        assert ring[2 - first] > 100 and ring[first] == 0


def test_lines_are_the_polygons_own_edges_not_the_cut():
    image = render(square(), 200, FRONT, wireframe=True, background=(1, 1, 1)).astype(int).sum(2)
    assert image[100, 50] < 0.7 * image[100, 75]  # Just inside the left edge.
    assert abs(image[100, 100] - image[100, 75]) < 3  # The diagonal of the square.


def test_vertex_colours_run_into_each_other_and_instances_are_placed():
    colors = np.array([[0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]], float)
    image = render(square(), 100, FRONT, wireframe=False, vertex_colors=colors)
    row = image[50, 26:74, 0].astype(int)
    assert (np.diff(row) >= 0).all() and row[-1] - row[0] > 100
    matrix = np.eye(4)
    matrix[0, 3] = 1
    scene = Scene([Node("a", matrix=matrix, mesh=0)], [square(size=0.5)])
    drawn = render(scene, 80, FRONT, wireframe=False, background=(0, 0, 0)).sum(2) > 0
    assert np.flatnonzero(drawn.any(0)).tolist() == list(range(50, 70))


@pytest.mark.parametrize("axis", ["Y", "Z"])
def test_everything_is_in_the_picture_and_up_is_up(axis):
    high = 1 if axis == "Y" else 2
    points = np.zeros((4, 3))
    points[:3, [0, 3 - high]] = [[-1, -1], [1, -1], [0, 1]]
    points[3, high] = 4
    mesh = Mesh("m", points, np.full(3, 3, np.int32), np.array([0, 1, 3, 1, 2, 3, 2, 0, 3], np.int32))
    scene = Scene([Node("a", mesh=0)], [mesh], up_axis=axis)
    drawn = render(scene, (90, 120), wireframe=False, background=(0, 0, 0)).sum(2) > 0
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    assert rows[0] > 0 and rows[-1] < 119 and columns[0] > 0 and columns[-1] < 89
    widths = drawn.sum(1)[rows]
    assert widths[:5].max() < widths[len(widths) // 2]  # The tip is above.


def test_odd_meshes_are_drawn_without_complaint(tmp_path):
    broken = square()
    broken.points[0] = np.nan
    huge = square()
    huge.points = huge.points * 1e30
    empty = Mesh("none", np.zeros((0, 3)), np.zeros(0, np.int32), np.zeros(0, np.int32))
    for mesh in (broken, huge, empty):
        assert render(mesh, 32).shape == (32, 32, 3)
    assert render(Scene(), 32).shape == (32, 32, 3)
    assert render(square(), 32, View(np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), np.zeros(3), 2.0)).shape == (
        32,
        32,
        3,
    )


@pytest.mark.parametrize("sample", ["ngon_obj", "skinned_glb", "rigged_usd"])
def test_the_same_scene_gives_the_same_picture(tmp_path, sample):
    suffix = {"ngon_obj": ".obj", "skinned_glb": ".glb", "rigged_usd": ".usda"}[sample]
    scene = read_scene(getattr(mesh_samples, sample)(tmp_path / f"a{suffix}"))
    images = [render(scene, 160, fit_view(scene)) for _ in range(2)]
    assert np.array_equal(*images) and len(np.unique(images[0].reshape(-1, 3), axis=0)) > 20
    for number, image in enumerate(images):
        save_png(
            panels([(image, "before"), (render(scene, 160, wireframe=False), "after – 100 %")]),
            tmp_path / f"{number}.png",
        )
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()
    from PIL import Image

    with Image.open(tmp_path / "0.png") as picture:
        assert picture.size == (160 * 2 + 8, 160 + 30)


def test_many_triangles_in_many_batches_leave_no_holes(monkeypatch):
    import meshes.preview

    points, faces = mesh_samples.irregular_triangles(20_000)
    mesh = Mesh("m", points, np.full(len(faces), 3, np.int32), faces.reshape(-1))
    view = View(np.array([0, 0, -1.0]), np.array([0, 1.0, 0]), np.array([0.5, 0.5, 0]), 0.4)
    whole = render(mesh, 150, view)
    assert (render(mesh, 150, view, wireframe=False, background=(0, 0, 0)).sum(2) > 0).all()
    monkeypatch.setattr(meshes.preview, "_MAX_FRAGMENTS", 5000)
    assert np.array_equal(whole, render(mesh, 150, view))
