"""Grids, lattices and patches: round trips, orientations, and agreement with ITK and SciPy."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from lib.sam.geometry import Grid, Lattice, PatchFrame, cut_begin, reorder
from scipy import ndimage
from scipy.spatial.transform import Rotation

ORIENTATIONS = [
    (axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


def affine_of(spacing, angles=(0.0, 0.0, 0.0), origin=(0.0, 0.0, 0.0), shear=0.0):
    direction = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    direction = direction @ np.array([[1, 0, 0], [0, 1, shear], [0, 0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(spacing)
    affine[:3, 3] = origin
    return affine


AFFINES = {
    "axis_aligned": affine_of((0.8, 0.8, 2.5), origin=(-50, 20, 7)),
    "negative_determinant": affine_of((0.9, 1.1, 2.0)) @ np.diag([1, -1, 1, 1.0]),
    "oblique": affine_of((0.7, 1.3, 3.1), (20, -15, 33), (11, -90, 4)),
    "tie_45_degrees": affine_of((1.0, 1.0, 2.0), (0, 0, 45)),
    "sheared": affine_of((0.9, 0.8, 2.0), (10, 5, 0), shear=0.2),
}


def scan(shape, seed=0):
    rng = np.random.default_rng(seed)
    return ndimage.gaussian_filter(rng.normal(size=shape), 1.5).astype(np.float32) * 100


@st.composite
def grids(draw):
    shape = tuple(draw(st.integers(1, 60)) for _ in range(3))
    spacing = tuple(draw(st.floats(0.05, 40)) for _ in range(3))
    angles = tuple(draw(st.floats(-180, 180)) for _ in range(3))
    origin = tuple(draw(st.floats(-500, 500)) for _ in range(3))
    flips = np.diag([*(draw(st.sampled_from([1.0, -1.0])) for _ in range(3)), 1.0])
    return Grid(shape, affine_of(spacing, angles, origin) @ flips)


# ---------------------------------------------------------------- Grid


@pytest.mark.parametrize(
    "shape, affine",
    [
        ((3, 3), np.eye(4)),
        ((3, 0, 3), np.eye(4)),
        ((3, 3, 3), np.eye(3)),
        ((3, 3, 3), np.diag([1, 0, 1, 1.0])),
        ((3, 3, 3), np.diag([1, np.nan, 1, 1.0])),
        ((3, 3, 3), np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])),
    ],
)
def test_grid_refuses_what_is_no_grid(shape, affine):
    with pytest.raises(ValueError, match="got"):
        Grid(shape, affine)


def test_grid_is_a_value():
    affine = affine_of((1, 2, 3))
    one, two = Grid((3, 4, 5), affine), Grid([3, 4, 5], affine.copy())
    affine[0, 0] = 9
    assert one == two and hash(one) == hash(two) and one != Grid((3, 4, 6), one.affine)
    with pytest.raises(ValueError):
        one.affine[0, 0] = 2


@given(grids(), st.lists(st.tuples(*[st.floats(-100, 100)] * 3), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_world_round_trip(grid, points):
    np.testing.assert_allclose(grid.to_voxel(grid.to_world(points)), points, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(grid.affine[:3, :3], axis=0), grid.spacing_mm)


def test_contains_counts_the_nearest_voxel():
    grid = Grid((3, 4, 5), np.eye(4))
    points = [(0, 0, 0), (2.4, 3.4, 4.4), (-0.6, 0, 0), (2.6, 0, 0), (np.nan, 0, 0), (np.inf, 0, 0)]
    assert grid.contains(points).tolist() == [True, True, False, False, False, False]


@pytest.mark.parametrize("name", AFFINES)
def test_canonical_directions_do_not_depend_on_the_storage(name):
    grid = Grid((7, 8, 9), AFFINES[name])
    expected = grid.reordered(*grid.canonical_axes())
    assert np.all(np.diag(expected.affine[:3, :3]) > 0)
    for orientation in ORIENTATIONS:
        stored = grid.reordered(*orientation)
        np.testing.assert_allclose(stored.reordered(*stored.canonical_axes()).affine, expected.affine, atol=1e-9)


def test_axcodes():
    assert Grid((3, 3, 3), np.diag([-1, -1, 2, 1.0])).axcodes() == ("L", "P", "S")
    swapped = np.array([[0, 0, 2, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    assert Grid((3, 3, 3), swapped).axcodes() == ("P", "S", "R")


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_reordered_grid_follows_the_array(orientation):
    grid = Grid((4, 5, 6), AFFINES["oblique"])
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    world = grid.to_world(index.reshape(-1, 3)).reshape(index.shape)
    stored = grid.reordered(*orientation)
    moved = np.stack([reorder(world[..., c], *orientation) for c in range(3)], -1)
    at = np.stack(np.meshgrid(*map(np.arange, stored.shape), indexing="ij"), -1).reshape(-1, 3)
    np.testing.assert_allclose(stored.to_world(at).reshape(moved.shape), moved, atol=1e-9)


# ---------------------------------------------------------------- lattices and patches


@given(grids(), st.tuples(*[st.floats(0, 1)] * 3), st.sampled_from(["click", "corner"]), st.floats(0.3, 6))
@settings(max_examples=80, deadline=None)
def test_patch_points_round_trip(grid, fraction, lattice, spacing):
    centre = np.floor(np.array(fraction) * (np.array(grid.shape) - 1) + 0.5)
    frame = PatchFrame.around(grid, centre, 16, spacing, lattice)
    points = np.array([centre, (0, 0, 0), np.array(grid.shape) - 1])
    patch = frame.to_patch(points)
    np.testing.assert_allclose(frame.to_source(patch), points, atol=1e-6)
    np.testing.assert_allclose(frame.patch_grid.to_world(patch), grid.to_world(points), atol=1e-6)
    np.testing.assert_allclose(frame.patch_grid.spacing_mm, spacing)
    assert frame.size == 16 and frame.spacing_mm == spacing
    if lattice == "click":
        np.testing.assert_allclose(patch[0], 8)
    else:  # the voxel's nearest node is the centre; the patch follows whole nodes
        assert np.all(np.abs(patch[0] - 8) <= 0.5 + 1e-6)
    rounded = frame.to_source(np.floor(patch + 0.5))
    assert np.all(np.abs(rounded - points) <= 0.5 * spacing / grid.spacing_mm + 1e-6)


@pytest.mark.parametrize("lattice", ["click", "corner"])
@pytest.mark.parametrize("name", AFFINES)
def test_crop_is_exact_for_a_linear_image(name, lattice):
    grid = Grid((40, 33, 21), AFFINES[name])
    direction, offset = np.array([0.3, -1.1, 0.7]), 12.0
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1).reshape(-1, 3)
    image = (grid.to_world(index) @ direction + offset).reshape(grid.shape).astype(np.float32)
    frame = PatchFrame.around(grid, (11, 30, 3), 24, 1.5, lattice)
    patch = frame.crop(image, fill=-777.0)
    nodes = np.stack(np.meshgrid(*[np.arange(24)] * 3, indexing="ij"), -1).reshape(-1, 3)
    at = frame.to_source(nodes)
    inside = np.all((at >= -0.5 - 1e-9) & (at <= np.array(grid.shape) - 0.5 + 1e-9), axis=1)
    clamped = np.clip(at, 0, np.array(grid.shape) - 1)
    expected = np.where(inside, grid.to_world(clamped) @ direction + offset, -777.0)
    np.testing.assert_allclose(patch.ravel(), expected, atol=2e-3)
    np.testing.assert_array_equal(frame.inside().ravel(), inside)
    assert patch.dtype == np.float32 and patch.flags.c_contiguous


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64, bool])
@pytest.mark.parametrize("order", ["C", "F"])
def test_crop_takes_every_dtype_and_memory_order(dtype, order):
    grid = Grid((20, 18, 16), AFFINES["axis_aligned"])
    image = np.random.default_rng(1).integers(0, 200, grid.shape).astype(dtype)
    frame = PatchFrame.around(grid, (9, 9, 9), 20, 1.5)
    expected = frame.crop(image.astype(np.float32))
    got = frame.crop(np.asarray(image, order=order))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert frame.crop(np.asarray(image, order=order), order=0).dtype == dtype
    np.testing.assert_allclose(frame.crop(np.asarray(image[::-1], order=order)[::-1]), expected, rtol=1e-6)


def test_crop_agrees_with_itk():
    grid = Grid((50, 40, 30), affine_of((0.9, 1.2, 2.0), (12, -9, 25), (5, 6, 7)))
    image = scan(grid.shape)
    frame = PatchFrame.around(grid, (25, 20, 15), 40, 1.5)
    reference = sitk.GetImageFromArray(image.T)
    target = sitk.Image(40, 40, 40, sitk.sitkFloat32)
    for picture, g in ((reference, grid), (target, frame.patch_grid)):
        lps = np.diag([-1, -1, 1]) @ g.affine[:3]
        picture.SetSpacing(g.spacing_mm.tolist())
        picture.SetDirection((lps[:, :3] / g.spacing_mm).ravel().tolist())
        picture.SetOrigin(lps[:, 3].tolist())
    resampled = sitk.Resample(reference, target, sitk.Transform(), sitk.sitkLinear, -5.0)
    np.testing.assert_allclose(frame.crop(image, -5.0), sitk.GetArrayFromImage(resampled).T, atol=1e-3)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("lattice", ["click", "corner"])
@pytest.mark.parametrize("name", AFFINES)
def test_paste_agrees_with_a_whole_volume_computation(name, lattice, order):
    grid = Grid((45, 38, 20), AFFINES[name])
    frame = PatchFrame.around(grid, (40, 5, 10), 24, 1.5, lattice)
    logits = scan((24, 24, 24), 3) + scan((24, 24, 24), 4)[::-1] - 5
    box, corner = frame.paste(logits, 1.25, order)
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1).reshape(-1, 3)
    at = frame.to_patch(index)
    inside = np.all((at >= -0.5) & (at <= 23.5), axis=1)
    values = ndimage.map_coordinates(logits.astype(np.float64), at.T, order=order, mode="nearest")
    expected = (inside & (values > 1.25)).reshape(grid.shape)
    whole = np.zeros(grid.shape, bool)
    whole[tuple(slice(c, c + n) for c, n in zip(corner, box.shape))] = box
    close = np.abs(values - 1.25).reshape(grid.shape) < 1e-3  # rounding decides there
    if order == 0:  # voxels half way between two nodes may go to either
        close |= (np.abs(at % 1 - 0.5) < 1e-6).any(axis=1).reshape(grid.shape)
    assert expected.any() and box.dtype == np.uint8 and set(np.unique(box)) <= {0, 1}
    np.testing.assert_array_equal(whole[~close], expected[~close])


def test_paste_of_nothing_and_of_everything():
    grid = Grid((10, 12, 14), AFFINES["oblique"])
    frame = PatchFrame.around(grid, (5, 5, 5), 8, 1.5)
    assert frame.paste(np.full((8, 8, 8), -1.0, np.float32))[0].shape == (0, 0, 0)
    box, corner = frame.paste(np.full((8, 8, 8), 1.0, np.float32))
    assert box.all() and box.size and all(c >= 0 for c in corner)
    far = np.full((8, 8, 8), -1.0, np.float32)
    far[0, 0, 0] = 1.0  # a node outside the scan
    outside = PatchFrame.around(Grid((2, 2, 2), np.eye(4)), (0, 0, 0), 8, 1.5)
    assert outside.paste(far)[0].shape == (0, 0, 0)


@pytest.mark.parametrize("name", AFFINES)
def test_48_orientations_give_one_patch_and_one_mask(name):
    grid = Grid((30, 26, 14), AFFINES[name])
    image, centre = scan(grid.shape, 5), np.array([12, 20, 5])
    frame = PatchFrame.around(grid, centre, 32, 1.5)
    patch = frame.crop(image)
    logits = scan((32, 32, 32), 6)
    mask = np.zeros(grid.shape, np.uint8)
    box, corner = frame.paste(logits)
    mask[tuple(slice(c, c + n) for c, n in zip(corner, box.shape))] = box
    assert 0 < mask.sum() < mask.size
    for axes, signs in ORIENTATIONS:
        stored = grid.reordered(axes, signs)
        point = stored.to_voxel(grid.to_world(centre))[0]
        assert np.all(np.abs(point - np.rint(point)) < 1e-6)
        again = PatchFrame.around(stored, point, 32, 1.5)
        np.testing.assert_allclose(again.crop(reorder(image, axes, signs)), patch, atol=1e-3)
        np.testing.assert_allclose(again.to_patch(point), [[16, 16, 16]], atol=1e-9)
        box, corner = again.paste(logits)
        turned = np.zeros(stored.shape, np.uint8)
        turned[tuple(slice(c, c + n) for c, n in zip(corner, box.shape))] = box
        np.testing.assert_array_equal(turned, reorder(mask, axes, signs))


@pytest.mark.parametrize("name", AFFINES)
def test_centres_between_voxels_do_not_depend_on_the_storage(name):
    grid = Grid((30, 26, 14), AFFINES[name])
    centre = np.array([12.5, 20.5, 5.5])
    expected = PatchFrame.around(grid, centre, 8).patch_grid.affine
    for orientation in ORIENTATIONS:
        stored = grid.reordered(*orientation)
        mirrored = [n - 1 - centre[a] if s < 0 else centre[a] for a, s, n in zip(*orientation, stored.shape)]
        np.testing.assert_allclose(PatchFrame.around(stored, mirrored, 8).patch_grid.affine, expected, atol=1e-9)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_corner_lattice_is_canonical_for_every_orientation(orientation):
    grid = Grid((30, 26, 14), AFFINES["oblique"])
    stored = grid.reordered(*orientation)
    lattice = Lattice.resampled(stored, 1.5)
    expected = PatchFrame.around(grid, (0, 0, 0)).grid.affine[:3, :3]
    np.testing.assert_allclose(lattice.canonical().grid.affine[:3, :3], expected, atol=1e-9)
    image = reorder(scan(grid.shape, 7), *orientation)
    whole = reorder(lattice.crop(image), *lattice.grid.canonical_axes())
    np.testing.assert_allclose(lattice.canonical().crop(image), whole, atol=1e-4)


def test_resampled_sizes_are_not_enlarged_by_rounding():
    # 150 * 1.1 / 1.5 is 110.00000000000001 in floating point
    lattice = Lattice.resampled(Grid((230, 150, 100), np.diag([0.9, 1.1, 2.0, 1])), 1.5)
    assert lattice.shape == (138, 110, 134)


def test_outer_corners_stay_aligned():
    grid = Grid((90, 70, 40), np.diag([1.0, 1.0, 2.5, 1]))
    lattice = Lattice.resampled(grid, 1.5)
    np.testing.assert_allclose(lattice.grid.to_world([[-0.5] * 3]), grid.to_world([[-0.5] * 3]))


def test_single_slice_and_huge_spacing():
    for spacing in ((0.5, 0.5, 5.0), (0.5, 0.5, 200.0), (30.0, 0.4, 0.4)):
        grid = Grid((60, 50, 1), affine_of(spacing, (0, 40, 0)))
        image = scan(grid.shape)
        frame = PatchFrame.around(grid, (30, 25, 0), 32, 1.5)
        patch = frame.crop(image, fill=-9999.0)
        inside = frame.inside()
        assert inside.any() and np.all(patch[~inside] == -9999.0) and np.all(patch[inside] > -9999.0)
        box, corner = frame.paste(np.ones((32, 32, 32), np.float32))
        assert box.shape[2] == 1 and corner[2] == 0 and box[tuple(np.array([30, 25, 0]) - corner)]


def test_half_a_voxel_beyond_the_outer_centres_is_inside():
    grid = Grid((4, 4, 4), np.diag([3.0, 3.0, 3.0, 1]))
    frame = PatchFrame.around(grid, (0, 0, 0), 8, 1.5)  # nodes at -2, -1.5, ... voxels
    assert frame.inside_axes() == (slice(3, 8),) * 3
    image = np.arange(64, dtype=np.float32).reshape(4, 4, 4)
    assert frame.crop(image, fill=-1)[3, 3, 3] == image[0, 0, 0] and frame.crop(image, fill=-1)[2, 3, 3] == -1


def test_only_the_needed_part_of_a_volume_is_touched():
    shape = (30_000, 30_000, 30_000)  # 54 TB, were it real
    grid = Grid(shape, np.diag([0.7, 0.7, 1.0, 1]))
    image = np.broadcast_to(np.int16(7), shape)
    frame = PatchFrame.around(grid, (15_000, 2, 29_999), 64, 1.5)
    patch = frame.crop(image)
    assert patch.max() == 7 and patch.min() == 0
    box, corner = frame.paste(patch, 3.0)
    assert box.any() and max(box.shape) < 64 * 1.5 / 0.7 + 2


def test_frames_are_values():
    grid = Grid((9, 9, 9), np.eye(4))
    frames = {PatchFrame.around(grid, (4, 4, 4)), PatchFrame.around(Grid((9, 9, 9), np.eye(4)), (4.2, 3.9, 4))}
    assert len(frames) == 1 and PatchFrame.around(grid, (4, 4, 5)) not in frames


def test_published_crop_begins_where_the_box_centre_says():
    assert cut_begin((25, 20, 22), (40, 32, 39), 128) == (-31, -38, -33)
    assert cut_begin((68, 113, 73), (92, 131, 102), 128) == (16, 58, 24)


@pytest.mark.parametrize(
    "arguments",
    [
        {"centre_ijk": (1, 2)},
        {"centre_ijk": (1, np.nan, 2)},
        {"centre_ijk": (1, 1, 1), "size": 0},
        {"centre_ijk": (1, 1, 1), "spacing_mm": 0.0},
        {"centre_ijk": (1, 1, 1), "spacing_mm": float("nan")},
        {"centre_ijk": (1, 1, 1), "lattice": "middle"},
    ],
)
def test_around_names_what_is_wrong(arguments):
    with pytest.raises(ValueError, match="must"):
        PatchFrame.around(Grid((9, 9, 9), np.eye(4)), **arguments)


def test_shapes_and_orders_are_checked():
    frame = PatchFrame.around(Grid((9, 9, 9), np.eye(4)), (4, 4, 4), 8)
    with pytest.raises(ValueError, match="shape"):
        frame.crop(np.zeros((9, 9, 8)))
    with pytest.raises(ValueError, match="shape"):
        frame.paste(np.zeros((9, 9, 9)))
    with pytest.raises(ValueError, match="order"):
        frame.crop(np.zeros((9, 9, 9)), order=3)
