"""Pinhole cameras."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llarva.cameras import (
    CameraError,
    from_negative_focal,
    intrinsics_from_fov,
    look_at,
    project,
    unproject,
    visible,
)
from llarva.kinematics import rotation_matrix


@st.composite
def cameras(draw):
    intrinsics = np.array(
        [
            [draw(st.floats(50, 800)), draw(st.floats(-2, 2)), draw(st.floats(0, 400))],
            [0, draw(st.floats(50, 800)), draw(st.floats(0, 400))],
            [0, 0, 1],
        ]
    )
    pose = np.eye(4)
    pose[:3, :3] = rotation_matrix(draw(arrays(np.float64, 3, elements=st.floats(-3, 3))))
    pose[:3, 3] = draw(arrays(np.float64, 3, elements=st.floats(-3, 3)))
    return intrinsics, pose


pixels_and_depth = st.tuples(
    arrays(np.float64, (4, 2), elements=st.floats(-500, 1000)), arrays(np.float64, 4, elements=st.floats(0.05, 20))
)


@given(cameras(), pixels_and_depth)
@settings(max_examples=100, deadline=None)
def test_unproject_then_project_is_identity(camera, seen):
    pixels, depth = seen
    again, far = project(unproject(pixels, depth, *camera), *camera)
    assert np.allclose(again, pixels, atol=1e-6, rtol=1e-8) and np.allclose(far, depth, atol=1e-9)


@given(cameras(), arrays(np.float64, (5, 3), elements=st.floats(-3, 3)))
@settings(max_examples=100, deadline=None)
def test_project_then_unproject_is_identity(camera, points):
    pixels, depth = project(points, *camera)
    front = depth > 1e-3
    assume(front.any())
    assert np.allclose(unproject(pixels[front], depth[front], *camera), points[front], atol=1e-6)


@given(cameras(), arrays(np.float64, (5, 3), elements=st.floats(-3, 3)))
@settings(max_examples=50, deadline=None)
def test_points_behind_have_no_pixel(camera, points):
    pixels, depth = project(points, *camera)
    assert np.array_equal(np.isnan(pixels).all(axis=-1), depth <= 0)
    assert np.array_equal(np.isnan(pixels).any(axis=-1), depth <= 0)
    assert not visible(pixels, depth, (10_000, 10_000))[depth <= 0].any()


def test_axes_are_those_of_opencv():
    intrinsics, pose = intrinsics_from_fov(np.pi / 2, (100, 200)), np.eye(4)
    pixels, depth = project([[0, 0, 2], [1, 0, 2], [0, 1, 2]], intrinsics, pose)
    assert np.allclose(pixels, [[100, 50], [125, 50], [100, 75]]) and np.allclose(depth, 2)


def test_field_of_view_reaches_the_edge():
    intrinsics = intrinsics_from_fov(np.deg2rad(40), (128, 128))
    edge = [0, np.tan(np.deg2rad(20)), 1]
    assert np.allclose(project(edge, intrinsics, np.eye(4))[0], [64, 128])
    with pytest.raises(CameraError, match="field of view"):
        intrinsics_from_fov(np.pi, (1, 1))


@pytest.mark.parametrize(
    "pixel, inside",
    [
        ((0, 0), True),
        ((31.999, 15.999), True),
        ((32, 5), False),
        ((5, 16), False),
        ((-1e-6, 5), False),
        ((5, -1), False),
    ],
)
def test_edges_of_the_image(pixel, inside):
    assert visible(pixel, 1.0, (16, 32)) == inside


def test_nan_and_the_camera_plane_are_not_visible():
    assert not visible([np.nan, np.nan], 1.0, (16, 16))
    assert not visible([3, 3], 0.0, (16, 16))
    assert np.isnan(project([1.0, 0, 0], np.eye(3), np.eye(4))[0]).all()


def test_shapes_are_kept():
    intrinsics, pose = intrinsics_from_fov(0.7, (64, 64)), look_at((2, 0, 1), (0, 0, 0))
    pixels, depth = project(np.zeros((2, 0, 3)), intrinsics, pose)
    assert pixels.shape == (2, 0, 2) and depth.shape == (2, 0)
    pixels, depth = project([0, 0, 0], intrinsics, pose)
    assert np.allclose(pixels, [32, 32]) and np.isclose(depth, np.sqrt(5))


def test_look_at_keeps_up_up():
    pose = look_at((2, 0, 1), (0, 0, 0))
    assert np.allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3)) and np.isclose(np.linalg.det(pose[:3, :3]), 1)
    higher, _ = project([0, 0, 0.5], intrinsics_from_fov(0.7, (64, 64)), pose)
    assert higher[1] < 32
    for target in ((2, 0, 5), (2, 0, 1)):
        with pytest.raises(CameraError, match="up direction"):
            look_at((2, 0, 1), target)


@pytest.mark.parametrize(
    "points, intrinsics, pose",
    [
        (np.zeros((3, 2)), np.eye(3), np.eye(4)),
        (np.zeros(3), np.eye(4), np.eye(4)),
        (np.zeros(3), np.eye(3), np.eye(3)),
        (np.zeros(3), np.diag([1, -1, 1]), np.eye(4)),
        (np.zeros(3), np.diag([0, 1, 1]), np.eye(4)),
    ],
)
def test_wrong_cameras_are_refused(points, intrinsics, pose):
    with pytest.raises(CameraError):
        project(points, intrinsics, pose)
    with pytest.raises(CameraError):
        unproject(np.zeros(2) if np.shape(points) == (3,) else np.zeros(3), 1.0, intrinsics, pose)


@given(cameras(), arrays(np.float64, (5, 3), elements=st.floats(-3, 3)))
@settings(max_examples=50, deadline=None)
def test_negative_focal_cameras_see_the_same_pixels(camera, points):
    intrinsics, pose = camera
    recorded = intrinsics.copy()
    recorded[:2, :2] *= -1  # x left, y up
    converted = from_negative_focal(recorded, pose)
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    front = local[:, 2] > 1e-3
    assume(front.any())
    flat = local[front] @ recorded.T
    assert np.allclose(project(points[front], *converted)[0], flat[:, :2] / flat[:, 2:], atol=1e-6)
    assert np.isclose(np.linalg.det(converted[1][:3, :3]), 1)
    with pytest.raises(CameraError, match="negative"):
        from_negative_focal(*converted)
    with pytest.raises(CameraError, match="from_negative_focal"):
        project(points, recorded, pose)
