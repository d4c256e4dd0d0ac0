"""The drawn pictures: deterministic, and their masks are true."""

import hashlib

import numpy as np
import pytest

from talk2dino.toy.objects import OBJECTS, Brush, draw_object
from talk2dino.toy.scene import CLASS_NAMES, TEXTURES, class_palette, draw_scene


def scenes(count, size=96, world=1):
    return [draw_scene(size, np.random.default_rng([0, index]), world) for index in range(count)]


def test_the_same_seed_draws_the_same_picture():
    first, second = (draw_scene(96, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.mask, second.mask)
    assert first.objects == second.objects


@pytest.mark.parametrize(("world", "digest"), [(1, "8caacd4f9b473fed"), (2, "38dc0583174c281e")])
def test_the_pictures_of_a_world_stay_as_they_were_first_drawn(world, digest):
    drawn = hashlib.sha256()
    for scene in scenes(24, world=world):
        drawn.update(scene.image.tobytes() + scene.mask.tobytes())
    assert drawn.hexdigest().startswith(digest)


def test_different_seeds_draw_different_pictures():
    first, second = scenes(2)
    assert not np.array_equal(first.image, second.image)


def test_the_mask_holds_exactly_what_the_scene_names():
    for scene in scenes(40):
        present = {CLASS_NAMES[label] for label in np.unique(scene.mask)}
        assert present == {*scene.objects, scene.texture}


def test_pictures_have_between_no_and_three_objects_each_of_another_class():
    objects = [scene.objects for scene in scenes(60)]
    assert {len(names) for names in objects} == {0, 1, 2, 3}
    assert all(len(set(names)) == len(names) for names in objects)


def test_every_class_occurs():
    seen = {name for scene in scenes(60) for name in (*scene.objects, scene.texture)}
    assert seen == set(CLASS_NAMES)


def test_masked_pixels_have_the_colour_of_their_object():
    """Paste only red apples' pixels together: on average they are red, whatever the ground."""
    apples = [s.image[s.mask == CLASS_NAMES.index("apple")] for s in scenes(60)]
    red, green, blue = np.concatenate(apples).mean(axis=0)
    assert red > 150
    assert max(green, blue) < 110


def test_no_object_is_mostly_hidden_or_cut_off():
    for scene in scenes(40, size=128):
        for name in scene.objects:
            assert (scene.mask == CLASS_NAMES.index(name)).mean() > 0.01


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_is_opaque_inside_smooth_at_its_edge_and_ends_before_the_canvas(name):
    picture = np.asarray(draw_object(name, 60, np.random.default_rng(0)))
    alpha = picture[..., 3]
    assert picture.shape == (120, 120, 4)
    assert 0.25 < (alpha == 255).mean() < 0.85
    assert ((alpha > 0) & (alpha < 255)).any()
    border = np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
    assert (border > 0).mean() < 0.05


@pytest.mark.parametrize("name", TEXTURES)
def test_a_texture_fills_the_picture_and_varies(name):
    picture = np.asarray(TEXTURES[name](80, np.random.default_rng(0)))
    assert picture.shape == (80, 80, 3)
    assert picture.std(axis=(0, 1)).min() > 1


def test_details_do_not_grow_an_object():
    square = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    pictures = []
    for detailed in (False, True):
        brush = Brush(50, 0.0, False, np.random.default_rng(0))
        brush.add(square, (200, 0, 0))
        if detailed:
            brush.detail(square * 2, (0, 0, 200))
        pictures.append(np.asarray(brush.picture()))
    plain, detailed = pictures
    np.testing.assert_array_equal(plain[..., 3], detailed[..., 3])
    assert plain[25, 25, 0] > 150
    assert detailed[25, 25, 2] > 150


def test_every_class_has_a_colour_of_its_own():
    assert len({tuple(colour) for colour in class_palette().tolist()}) == len(CLASS_NAMES)
